"""A device package as a stranger would write it, for a device that happens to be the processor."""
