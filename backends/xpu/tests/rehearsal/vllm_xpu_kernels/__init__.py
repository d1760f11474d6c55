"""A stand-in: the operators of the package of this name, on the host."""
