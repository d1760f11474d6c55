"""Files, in and out: written whole or not at all, pictures, and clips."""
