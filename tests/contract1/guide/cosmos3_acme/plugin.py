from cosmos3_core.contract import Backend, Device, Kernel, Unavailable, hookimpl


def probe():
    import torch

    if not torch.backends.mkldnn.is_available():
        raise Unavailable("torch was built without oneDNN; install the CPU build of torch")
    return Device(arch="acme1", name="ACME One", count=1, memory=8 * 2**30, unified=True)


def build_attention(device):
    from .attention import segment_attention

    return segment_attention


def refuse(ask):
    return None if ask.head_dim == 128 else f"written for heads of 128, and these are {ask.head_dim} wide"


ATTENTION = Kernel(
    op="attention",
    name="by_segment",
    build=build_attention,
    arch=("acme1",),
    dtypes=("float32", "bfloat16"),
    refuse=refuse,
)


@hookimpl
def cosmos3_backend():
    return Backend(name="acme", torch_device="cpu", collectives="gloo", probe=probe, kernels=(ATTENTION,))
