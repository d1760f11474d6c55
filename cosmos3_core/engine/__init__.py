"""Running it: checkpoints, the engine, media files and the manifest."""
