"""cosmos3: NVIDIA's Cosmos3 world models on any accelerator.

Importing this package loads no tensor library: `cosmos3 --help` has to answer at once, on a machine where the
device's own packages may be missing or broken. Names live in the subpackages; docs/architecture.md is the map.
"""

__version__ = "0.1.0"
