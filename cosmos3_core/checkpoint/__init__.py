"""Checkpoints: where their files come from, what their JSON says, and their tensors, read strictly."""
