"""A device package with a single kernel: the second half of a decoder layer, which applies the gate itself."""
