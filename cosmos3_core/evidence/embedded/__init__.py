"""The embedded model's world, and whether a model does what this world asks of it: `cosmos3 evaluate`."""
