"""Our Triton kernels, for the backends that build their rows of them. `rows` is what a plugin imports."""
