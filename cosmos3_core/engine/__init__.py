"""The engine: inputs, passes, the pool of components, codecs, and the steps between them."""
