"""The backend xpu where there is no Intel GPU: its rows on the host's processor, in the place of cosmos3-xpu.

torch's operators are their processor's kernels; what torch has for XPU alone, and vllm-xpu-kernels, are stand-ins in
plain arithmetic. So this is about what the package hands to a kernel and makes of the result, and no evidence that a
device works.
"""
