"""The engine: inputs, passes, the pool of components, decoders, and the steps between them."""
