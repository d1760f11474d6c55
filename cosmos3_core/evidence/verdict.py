"""The rule by which a candidate is judged, and nothing else: a record's verdict is computed anew when it is read.

A device does not repeat itself bit for bit, and after 35 steps the smallest difference has grown to another picture:
restarting the same server moved its videos by 27 to 32 dB PSNR (published by stewtong, for H200 and B200). So a bound
on the full output cannot tell a bad kernel from a restart. Judged are the first velocity, the velocity of the middle
step from identical latents, and a short trajectory, each against what the baseline differs from itself: the floor, the
worse of a repetition in one process and one after a restart. PSNR and SSIM of the output are measured and shown.
"""

from __future__ import annotations

from typing import Any

LEAST_COSINE = 0.999
"""Of a velocity. A device that does not reach it against itself is held to its own floor."""
MOST_EXCESS = {"velocity_first": 0.05, "velocity_middle": 0.05, "short_trajectory": 0.10}
"""Relative L1 beyond the floor's. A cosine of 0.999 is an error of 0.045 at right angles to the velocity; up to eight
guided steps may double it. For scale, bf16 is 0.028 away from fp32 in the velocity, with a cosine of 0.9996, and 0.010
after eight steps (measured: tiny, 256x256)."""
RULE = (
    f"velocity cosine at least {LEAST_COSINE} or the floor's, and relative L1 beyond the floor's at most "
    f"{MOST_EXCESS['velocity_first']} for a velocity and {MOST_EXCESS['short_trajectory']} for the short trajectory"
)
FLOOR = ("repeat", "restart")
ITSELF = "the candidate is the baseline (the same rows and dtype), so these numbers are the noise floor itself"


def judge(comparisons: dict[str, Any], same: bool) -> dict[str, Any]:
    """The verdict on `comparisons` (see `validate.compare`): `passed`, the `rule`, and each of its `checks` with value,
    floor and bound. `same` says that candidate and baseline have one plan."""
    checks = []
    for quantity, excess in MOST_EXCESS.items():
        value, floors = comparisons["candidate"][quantity], [comparisons[name][quantity] for name in FLOOR]
        if "cosine" in value:
            floor = min(f["cosine"] for f in floors)
            bound = min(LEAST_COSINE, floor)
            checks.append(_check(quantity, "cosine", value["cosine"], floor, bound, value["cosine"] >= bound))
        floor = max(f["relative_l1"] for f in floors)
        held = value["relative_l1"] <= floor + excess
        checks.append(_check(quantity, "relative_l1", value["relative_l1"], floor, floor + excess, held))
    verdict = {"passed": all(check["held"] for check in checks), "rule": RULE, "checks": checks}
    return verdict | ({"note": ITSELF} if same else {})


def state(verdict: dict[str, Any]) -> str:
    """What a recipe with this verdict is."""
    return "validated" if verdict["passed"] else "runs"


def failures(verdict: dict[str, Any]) -> str:
    """The checks that did not hold, in words."""
    return "; ".join(
        f"{check['quantity']} {check['metric']} {check['value']:.4g}, bound {check['bound']:.4g}"
        for check in verdict["checks"]
        if not check["held"]
    )


def _check(quantity: str, metric: str, value: float, floor: float, bound: float, held: bool) -> dict[str, Any]:
    return {"quantity": quantity, "metric": metric, "value": value, "floor": floor, "bound": bound, "held": held}
