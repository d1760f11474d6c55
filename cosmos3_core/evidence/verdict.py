"""The rule by which a candidate is judged, and nothing else: a record's verdict is computed anew when it is read.

After 35 steps the smallest difference has grown to another picture: restarting the same server moved its videos by 27
to 32 dB PSNR (published by stewtong, for H200 and B200). So a bound on the full output cannot tell a bad kernel from a
restart; its PSNR and SSIM are measured and shown. Judged are the first velocity, the velocity of the middle step from
identical latents, and a short trajectory.

Nor can they be held against eager bf16. Where the model amplifies rounding, two implementations that are equally good
lie as far from each other as from the truth, on a device that repeats itself bit for bit too. So both are held against
the same evaluation in float32, as in the conformance kit: the candidate may lose a multiple of what eager bf16 loses.
Who names a quantization format has chosen what the format loses. So a recipe with formats may lose a multiple of what
eager torch loses in these formats; what eager bf16 loses is told beside it.

What a run makes besides pictures, sound and actions, is a thousandth of its latents, and an error of it would vanish
among theirs. So each modality that is made is judged by itself; one that is given is not, as no step changes it.

On random weights these three are taken without guidance. The two branches of such a model differ by chance, and
guidance multiplies the difference, and with it every rounding, until nothing can be told from it.

Errors against float32 say nothing of what is seen and heard. So the model inside the package, whose quality can be
measured, is evaluated with the recipe's rows, formats and dtype, and has to meet the bounds of that evaluation. Where a
row does not serve a model of its widths, that is told, and not held against the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

QUANTITIES = ("velocity_first", "velocity_middle", "short_trajectory")
MODALITIES = ("vision", "sound", "action")
"""What may be judged, in the order of a sequence's items."""
MULTIPLE = 2.0
"""As the conformance kit's. Independent errors add as squares: a candidate at 2 errs as if it rounded four times where
eager torch rounds once, and a fault of its own shows from 1.7 times what bf16 loses."""
FLOOR = 5e-4
"""And this on top, as the kit's for bf16: eager is at times exact, and another order of summation is no fault."""
MOST = 0.5
"""And never more than this: zeros err by 1. Where eager torch itself loses a quarter, a kernel cannot be judged."""
RULE = (
    f"in the first velocity, the middle step's and a short trajectory the relative L1 error against float32 is at most "
    f"{MULTIPLE:g} times what eager bf16 loses on the device, plus {FLOOR:g}, and at most {MOST:g}"
)
FORMATS_RULE = RULE.replace("eager bf16 loses", "eager torch loses in the recipe's formats")
EVALUATION_RULE = "with the same rows, formats and dtype the embedded model meets every bound of its quick evaluation"
ITSELF = "the candidate is the baseline (the same rows and dtype), so it is held against itself"


def quantities(modalities: Iterable[str]) -> tuple[str, ...]:
    """The names of what is judged of a run that makes these: vision's are `QUANTITIES` alone."""
    return tuple(name if one == "vision" else f"{one}_{name}" for one in modalities for name in QUANTITIES)


def judge(comparisons: dict[str, Any], same: bool, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """The verdict on `comparisons` (see `validate.compare`) and an `evaluation` (see `evaluated`; None in records from
    before there was one): `passed`, the `rule`, and each of its `checks` with the candidate's error as value, `eager`,
    the larger of the baseline's two, `formats`, eager torch's in the recipe's formats if it has any, and the bound; and
    of the evaluation how many `bounds` it has, and the measures that `missed` theirs, or why it was `not_run`. `same`
    says that candidate and baseline have one plan."""
    errors, checks = comparisons["error"], []
    formats = errors.get("formats")
    for quantity, value in errors["candidate"].items():
        eager = max(errors[name][quantity] for name in ("baseline", "restart"))
        check = {"quantity": quantity, "value": value, "eager": eager}
        if formats:
            check["formats"] = formats[quantity]
        bound = min(MULTIPLE * check.get("formats", eager) + FLOOR, MOST)
        checks.append(check | {"bound": bound, "held": value <= bound})
    rule = FORMATS_RULE if formats else RULE
    verdict = {"passed": all(check["held"] for check in checks), "rule": rule, "checks": checks}
    if evaluation is not None:
        verdict["evaluation"] = found = _outcome(evaluation)
        verdict["passed"] = verdict["passed"] and not found.get("missed")
    return verdict | ({"note": ITSELF} if same else {})


def _outcome(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    if "not_run" in evaluation:
        return {"not_run": evaluation["not_run"]}
    bounded = [one for one in evaluation["measures"] if one["least"] is not None or one["most"] is not None]
    missed = [one for one in bounded if not one["met"]]
    return {"rule": EVALUATION_RULE, "bounds": len(bounded), "missed": missed}


def state(verdict: dict[str, Any], weights: str) -> str:
    """What a recipe with this verdict is, measured on the model's "checkpoint" or on "random" weights."""
    if not verdict["passed"]:
        return "runs"
    return "validated" if weights == "checkpoint" else "validated on random weights"


def compared(output: dict[str, Any]) -> str:
    """How far an output is from the baseline's (`validate.compare`), in words."""
    said = ["equal" if output["psnr_db"] is None else f"{output['psnr_db']:.1f} dB / {output['ssim']:.3f}"]
    if "snr_db" in output:
        said.append("sound equal" if output["snr_db"] is None else f"sound {output['snr_db']:.1f} dB")
    if "error" in output:
        said.append(f"actions {output['error']:.2g}" if output["error"] else "actions equal")
    return "; ".join(said)


def failures(verdict: dict[str, Any]) -> str:
    """The checks that did not hold and the bounds of the evaluation that were missed, in words."""
    checks = [
        f"{check['quantity']}: {check['value']:.3g} from float32, bound {check['bound']:.3g}"
        for check in verdict["checks"]
        if not check["held"]
    ]
    missed = verdict.get("evaluation", {}).get("missed", ())
    return "; ".join([*checks, *(f"evaluation: {_measure(one)}" for one in missed)])


def evaluated(verdict: dict[str, Any]) -> str | None:
    """How the evaluation went, in words; None in a record from before there was one."""
    if (found := verdict.get("evaluation")) is None:
        return None
    if "not_run" in found:
        return f"not run ({found['not_run']})"
    if found["missed"]:
        return "; ".join(map(_measure, found["missed"]))
    return f"{found['bounds']} bounds met"


def _measure(one: Mapping[str, Any]) -> str:
    bound = f"at least {one['least']:g}" if one["least"] is not None else f"at most {one['most']:g}"
    return f"{one['task']} {one['measure']} {one['value']:.3g}, bound {bound}"
