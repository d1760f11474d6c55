"""How the processes of a run share its work: a mesh of them, as data.

A process for each device. Along `cfg` the guidance branches are dealt out; along `ring` and `ulysses` the media tokens
of a branch are, along `tensor` every layer is split, and each process along
`pipeline` has some of the layers. Beside the mesh, groups of `hsdp` processes keep the layers'
weights together, and groups of `vae` encode and decode together. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

from ..contract import InputError
from ..spelling import did_you_mean, shown

MOST = 1024
"""Devices of one run."""
BESIDE = ("hsdp", "vae")
"""Degrees of a layout that are no axes of its mesh: the same processes do that, too."""
COPY = "copy"
"""The axis, the slowest, along which processes do the same: where what lies beside the mesh takes more of them than it
has."""


@dataclass(frozen=True)
class Layout:
    """How many ways each axis is split. Processes are counted along the last axis first, so that those of one
    `tensor` group, which exchange most, are neighbours. Each `hsdp` neighbours among those with the same weights have
    these once among them, and each `vae` neighbours the rows of a picture that is encoded or decoded."""

    cfg: int = 1
    pipeline: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1
    hsdp: int = 1
    vae: int = 1

    @property
    def mesh(self) -> int:
        """Processes that have each a part of the work."""
        return self.cfg * self.split * self.apart

    @property
    def copies(self) -> int:
        """Processes that do the same part."""
        return -(-max(self.hsdp * self.apart, self.vae) // self.mesh)

    @property
    def apart(self) -> int:
        """Processes that have each other weights."""
        return self.pipeline * self.tensor

    @property
    def size(self) -> int:
        """Processes, and devices."""
        return self.mesh * self.copies

    @property
    def split(self) -> int:
        """Parts of the media tokens."""
        return self.ring * self.ulysses

    @property
    def exchanges(self) -> bool:
        """Whether devices exchange anything in a pass."""
        return self.split * self.apart * self.hsdp > 1

    def __str__(self) -> str:
        """As `typed` reads it: the axes that are split."""
        return ",".join(f"{axis}={degree}" for axis, degree in asdict(self).items() if degree > 1) or "cfg=1"

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a process lies on each axis."""
        found = {}
        for axis, degree in reversed([(COPY, self.copies), *((axis, getattr(self, axis)) for axis in AXES)]):
            rank, found[axis] = divmod(rank, degree)
        return dict(reversed(found.items()))

    def groups(self, *axes: str) -> list[list[int]]:
        """The processes that differ along these axes alone, group by group; each is in one of them. Of `hsdp`, those
        that have the layers' weights among them, of `vae` those that have a picture's rows."""
        if axes == ("hsdp",):
            whole = self.groups(COPY, "cfg", "ring", "ulysses")
            return [group[i : i + self.hsdp] for group in whole for i in range(0, len(group), self.hsdp)]
        if axes == ("vae",):
            return [list(range(i, i + self.vae)) for i in range(0, self.size, self.vae)]
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.size):
            other = tuple(place for axis, place in self.coordinates(rank).items() if axis not in axes)
            found.setdefault(other, []).append(rank)
        return list(found.values())


DEGREES = tuple(field.name for field in fields(Layout))
AXES = tuple(name for name in DEGREES if name not in BESIDE)
ALONE = Layout()


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What of a request is shared out: the `branches` of a step that has most of them, by name, the attention's `heads`
    and `kv_heads`, the MLP's width `inner`, the `layers`, the media `tokens` of the branch that has fewest, and the
    latents' `rows`; and whether the format of the layers' weights `splits` among so many devices, as every number does
    without one."""

    branches: Sequence[str]
    heads: int
    kv_heads: int
    inner: int
    layers: int
    tokens: int
    rows: int
    splits: Callable[[int], bool] = bool

    def misfit(self, layout: Layout) -> str | None:
        """Why it cannot be shared so, or None."""
        if layout.cfg > len(self.branches):
            if len(self.branches) == 1:
                return "the request has no guidance, and so one branch: there is nothing to deal out"
            return f"a step has {len(self.branches)} guidance branches: {', '.join(self.branches)}"
        among = layout.tensor * layout.ulysses
        if self.heads % among:
            return f"the model's {self.heads} heads are not split evenly among {among}"
        own = max(1, self.kv_heads // layout.tensor)
        for heads, count in ((self.kv_heads, layout.tensor), (own, layout.ulysses)):
            if heads % count and count % heads:
                return f"the model's {self.kv_heads} key heads are neither split among {among} nor repeated evenly"
        if self.inner % layout.tensor:
            return f"the MLP's {self.inner} features are not split evenly among {layout.tensor}"
        if layout.pipeline > self.layers:
            return f"the model has {self.layers} layers, fewer than the {layout.pipeline} devices of a pipeline"
        if (rows := layout.split * layout.tensor) > self.tokens:
            return f"the request has {self.tokens} media tokens, fewer than the {rows} devices of a branch"
        if (alike := layout.size // layout.apart) % layout.hsdp:
            return f"the {alike} devices with the same weights are not divided evenly into groups of {layout.hsdp}"
        if layout.size % layout.vae:
            return f"the {layout.size} devices are not divided evenly into groups of {layout.vae}"
        if layout.vae > self.rows:
            return f"the latents have {self.rows} rows, fewer than the {layout.vae} devices that encode and decode"
        return None

    def layouts(self, size: int) -> Iterator[Layout]:
        """All that can be on so many devices, the one that exchanges least first: branches meet once a step, heads
        cross twice a layer where a ring sends all keys and values around, tensor parallel sums all rows twice, and of
        a pipeline most devices wait."""
        ways = [count for count in range(1, size + 1) if size % count == 0]
        pipelines = [way for way in ways if way <= self.layers]
        tensors = [way for way in ways if self.heads % way == 0 and self.splits(way)]
        branches = [way for way in reversed(ways) if way <= len(self.branches)]
        for pipeline, tensor, cfg, ring in itertools.product(pipelines, tensors, branches, ways):
            ulysses, rest = divmod(size, pipeline * tensor * cfg * ring)
            if ulysses and not rest and not self.misfit(layout := Layout(cfg, pipeline, ring, ulysses, tensor)):
                yield layout

    def nearest(self, asked: Layout) -> Layout:
        """The layout that can be which is most like this one, on as many devices or fewer."""

        def distance(layout: Layout) -> float:
            idle = 1.5 * math.log2(asked.size / layout.size)  # rather another axis than half of the devices
            pairs = ((getattr(asked, axis), getattr(layout, axis)) for axis in DEGREES)
            return idle + sum(abs(math.log2(one / other)) for one, other in pairs)

        def largest(most: int, among: int) -> int:
            """How large even groups of `among` processes are that have `most` at most."""
            return next(size for size in range(min(most, among), 0, -1) if among % size == 0)

        fitting = (
            replace(one, hsdp=largest(asked.hsdp, size // one.apart), vae=largest(min(asked.vae, self.rows), size))
            for size in range(asked.size, 0, -1)
            for one in self.layouts(size)
        )
        return min(fitting, key=distance)


def typed(text: str) -> Layout:
    """AXIS=DEGREE, several with commas between. Raises InputError."""
    asked, degrees = f"`parallel` {text}", dict[str, int]()
    for word in text.split(","):
        axis, equals, degree = (piece.strip() for piece in word.partition("="))
        if axis in DEGREES and not equals:
            raise InputError(asked, f"{axis} has no degree", f"Type {axis}=2, or another number of parts", "parallel")
        if axis not in DEGREES:
            next_step = did_you_mean(axis, DEGREES, f"Type AXIS=DEGREE; axes are {', '.join(DEGREES)}")
            raise InputError(asked, f"{shown(word)} names no axis of the mesh", next_step, "parallel")
        if axis in degrees:
            raise InputError(asked, f"{axis} is given twice", "Keep one of them", "parallel")
        if not (degree.isascii() and degree.isdigit() and 1 <= int(degree[:9]) <= MOST):
            raise InputError(asked, f"{shown(degree)} is no number of parts", f"Type 1 to {MOST}", "parallel")
        degrees[axis] = int(degree)
    layout = Layout(**degrees)
    if layout.size > MOST:
        raise InputError(asked, f"it takes {layout.size} devices", f"Type up to {MOST} in all", "parallel")
    return layout


def settled(
    parallel: str | None,
    devices: int | None,
    shared: Shared,
    here: int | None,
    pick: Callable[[int], tuple[Layout, str]] | None = None,
) -> tuple[Layout, str]:
    """The layout that is asked for, or that which is picked for so many devices (by default the one that exchanges
    least), and why it is that one. Of devices there are so many `here` (None: any number). Raises InputError, with the
    nearest that can be."""
    if devices is not None and not (type(devices) is int and 1 <= devices <= MOST):
        raise InputError(f"`devices` {shown(devices)}", "that is no number of devices", f"Type 1 to {MOST}", "devices")
    if parallel is not None:
        layout, asked = typed(parallel), f"`parallel` {parallel}"
        if devices is not None and devices != layout.size:
            found = f"that layout takes {layout.size}"
            raise InputError(f"`devices` {devices} with {asked}", found, "Drop one of them", "parallel")
        if misfit := shared.misfit(layout):
            nearest = shared.nearest(layout)
            next_step = f"The nearest that can be is `parallel` {nearest}" if nearest.size > 1 else "Leave it out"
            raise InputError(asked, misfit, next_step, "parallel")
        why = "it was named"
    elif devices is not None:
        asked, others = f"`devices` {devices}", list(shared.layouts(devices))
        if not others:
            size = next(size for size in range(devices, 0, -1) if next(shared.layouts(size), None))
            found = f"neither branches nor tokens of this request are shared out among {devices}"
            raise InputError(asked, found, f"Type `devices` {size}", "devices")
        layout, why = pick(devices) if pick else (others[0], f"of {devices} devices it exchanges least")
    else:
        return ALONE, ""
    if here is not None and layout.size > here:
        found, few = f"it takes {layout.size} devices, and here {'is' if here == 1 else 'are'} {here}", list[str]()
        few = [str(one) for size in range(here, 1, -1) for one in shared.layouts(size)][:1]
        raise InputError(asked, found, f"Type `parallel` {few[0]}" if few else "Leave it out", "parallel")
    return layout, why
