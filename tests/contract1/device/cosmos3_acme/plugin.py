from __future__ import annotations

from cosmos3_core.contract import Ask, Backend, Device, Kernel, hookimpl


def probe() -> Device:
    return Device(arch="acme1", name="ACME One", count=1, memory=8 * 2**30, unified=True, versions={"driver": "3.1"})


def needs_head_dim_128(ask: Ask) -> str | None:
    if ask.head_dim in (0, 128):
        return None
    return f"written for heads of 128, and these are {ask.head_dim} wide"


def row(op: str, name: str, **options) -> Kernel:
    def build(device: Device):
        from . import kernels

        return getattr(kernels, name)

    return Kernel(op=op, name=name, build=build, arch=("acme1",), **options)


@hookimpl
def cosmos3_backend() -> Backend:
    dtypes = ("float32", "bfloat16")
    return Backend(
        name="acme",
        torch_device="cpu",
        collectives="gloo",
        probe=probe,
        kernels=(
            row("attention", "online_softmax", refuse=needs_head_dim_128, dtypes=dtypes),
            row("attention", "int8_kv", formats=("int8",), refuse=needs_head_dim_128, dtypes=("bfloat16",)),
            row("pack_linear", "transposed", formats=("none", "int8"), dtypes=dtypes),
            row("rms_norm", "fused_norm", formats=("none", "int8"), dtypes=dtypes),
            row("norm_rope", "complex_rope", dtypes=dtypes),
            row("gate", "exp_gate", formats=("none", "int8"), dtypes=dtypes),
            row("patch_embed", "strided_convolution", dtypes=dtypes),
            row("norm_silu", "fused_norm_silu", dtypes=dtypes),
            row("capture", "replayed", dtypes=dtypes),
        ),
    )
