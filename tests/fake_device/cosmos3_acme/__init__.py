"""A device package as a stranger would write it, for a device that happens to be the processor. With
COSMOS3_ACME_FAULT set to a name of `faults` it has that fault, which the conformance kit has to find."""
