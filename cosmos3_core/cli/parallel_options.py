"""The options that say how several devices share a run."""

from __future__ import annotations

from .options import DEVICE, option

TYPED = f"{__name__}.typed"
"""Of a command that runs another one: the key under which it has what stands for that one's line, which each of several
processes is started by."""
DEGREES = {
    "cfg_parallel_size": "cfg",
    "ulysses_degree": "ulysses",
    "ring_degree": "ring",
    "tensor_parallel_size": "tensor",
    "pipeline_parallel_size": "pipeline",
    "hsdp_shard_size": "hsdp",
    "vae_patch_parallel_size": "vae",
}
"""Options of single degrees of a layout, as other programs call them."""
PARALLEL = (
    option(
        DEVICE,
        "--parallel",
        metavar="AXIS=DEGREE,...",
        help="How several devices share the run: cfg deals out guidance branches, ulysses and ring split each branch's "
        "tokens, tensor splits each layer, pipeline has some of the layers on each, hsdp shares out the layers' "
        "weights, vae the rows of pictures that are encoded and decoded. A process for each is started.",
    ),
    option(DEVICE, "--devices", type=int, metavar="N", help="Share it among N devices as --objective says."),
    option(
        DEVICE,
        "--objective",
        metavar="latency|throughput|memory",
        default="latency",
        help="What --devices is for: one request in the least time; most requests in a time, each on as few devices as "
        "pay and several beside each other; or the least memory of a device.",
        show_default=True,
    ),
    *(
        option(DEVICE, f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"--parallel {axis}=N.")
        for name, axis in DEGREES.items()
    ),
    option(
        DEVICE, "--use-hsdp", is_flag=True, help="--parallel hsdp=N among all devices of the other degrees named here."
    ),
    option(DEVICE, "--picked", type=int, hidden=True),
    option(DEVICE, "--first", hidden=True),
)
