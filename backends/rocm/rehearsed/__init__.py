"""cosmos3-rocm without a GPU of AMD's: our kernels compiled for every architecture, and run in Triton's interpreter.

`python -m rehearsed` compiles them and writes docs/rocm-kernels.md. Nothing of this is evidence that a device works.
"""
