"""What a run leaves behind and takes up again: manifests and saved states."""
