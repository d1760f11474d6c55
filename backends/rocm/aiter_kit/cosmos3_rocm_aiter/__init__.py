"""The rows of AITER as the backend rocm on the host's processor, with stand-ins for AITER's functions and for our
kernels beside them. No evidence that a device works."""
