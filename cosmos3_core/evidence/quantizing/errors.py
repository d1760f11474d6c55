"""How far a model's velocities move when some of its matrices are quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...checkpoint.choosing import Choosing
from .session import Point, Session, Tell

if TYPE_CHECKING:
    from ...contract import Linear
    from ...sampling.state import State

POINTS = 4
"""Steps of a run at which velocities are compared, from the first to the last in equal distances."""


@dataclass(frozen=True)
class Errors:
    """The runs of a session's prompts, with the model as it is, and what is compared with them."""

    session: Session
    runs: Sequence[tuple[State, Sequence[Point]]]

    @classmethod
    def of(cls, session: Session, tell: Tell) -> Errors:
        """Run the prompts, and tell after each step."""
        return cls(session, [(state, _spread(points)) for state, points in session.runs(tell)])

    @property
    def points(self) -> int:
        return sum(len(points) for _, points in self.runs)

    def error(self, choosing: Choosing, modules: Collection[str]) -> float:
        """With these modules quantized, at the same latents: the distance of the velocity from that of the model as it
        is, as a share of the norm of the latter, the mean over prompts and steps."""
        total, session = 0.0, self.session
        with self._quantized(choosing, modules):
            # An engine keeps what prompts came to: a quantized text tower reads them with another.
            anew = session.reads_text(modules)
            engine = session.another_engine() if anew else session.engine
            for request, (state, points) in zip(session.requests, self.runs, strict=True):
                state = engine.start(request) if anew else state
                for point in points:
                    state.index, state.x = point.index, point.x.clone()
                    (velocity,) = engine.predict([state])
                    total += float((velocity - point.velocity).norm() / point.velocity.norm())
        return total / self.points

    @contextmanager
    def _quantized(self, choosing: Choosing, modules: Collection[str]) -> Iterator[None]:
        seam = self.session.seam
        by_input: dict[str, list[str]] = {}
        for module, name in choosing.inputs.items():
            by_input.setdefault(name, []).append(module)
        wanted = set(modules)
        try:
            for name, together in by_input.items():
                if wanted.intersection(together):
                    seam.instead[name] = self._linear(choosing, together, wanted)
            yield
        finally:
            seam.instead.clear()

    def _linear(self, choosing: Choosing, together: Sequence[str], wanted: Collection[str]) -> Linear:
        """Of modules that read one input, those that are wanted as they are loaded from what is written."""
        from ...plan.mixed import Joined
        from ...quant.numerics import Packed
        from ...reference.ops import PackedLinear, QuantizedLinear

        target = self.session.engine.target
        linears: list[Linear] = []
        weights = {module: weight.clone() for module, weight in self.session.seam.matrices(together)}
        for module in together:
            if module not in wanted:
                linears.append(PackedLinear(weights[module].to(target.device, target.dtype, copy=True), None))
                continue
            packed = choosing.as_loaded(module, weights[module])
            moved = {name: tensor.to(target.device) for name, tensor in packed.tensors().items()}
            linears.append(QuantizedLinear(Packed(packed.format, **moved), None))
        return linears[0] if len(linears) == 1 else Joined(linears)


def _spread(points: Sequence[Point]) -> list[Point]:
    last = len(points) - 1
    return [points[i] for i in sorted({round(last * k / (POINTS - 1)) for k in range(POINTS)})]
