"""What each way of choosing a quantized weight's codes costs, as the embedded model's velocities see it.

    python -m tools.embedded.methods [--out tools/embedded/methods.json]

All matrices of the media tower are quantized, as `cosmos3 quantize` writes them and a loader reads them. Statistics are
of captions of the world with other seeds than those that velocities are compared on, which are the evaluation's. In
float32, so that nothing else is rounded. What the file has of these weights already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from cosmos3_core.checkpoint.choosing import GPTQ, METHODS
from cosmos3_core.checkpoint.repository import EMBEDDED
from cosmos3_core.evidence.embedded.cases import cases_of
from cosmos3_core.evidence.quantizing.errors import Errors
from cosmos3_core.evidence.quantizing.prompts import WORLD, prompts_of
from cosmos3_core.evidence.quantizing.quantize import Asked, job_of, with_statistics
from cosmos3_core.evidence.quantizing.session import Session
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.dialects.written import WRITTEN

OUT = Path(__file__).with_name("methods.json")
CASES = 8
GROUPS = (128, 32)


def measured(errors: Errors, name: dict[str, Any], statistics: Path) -> float:
    """The velocity error of a row of what is written with a method."""
    calibrates = FORMATS[name["format"]].static or name["method"] == GPTQ
    asked = Asked(
        model=EMBEDDED,
        policy=str(statistics.with_name("policy.toml")),
        calibrate=str(statistics) if calibrates else None,
        **name,
    )
    job = with_statistics(asked, job_of(asked), statistics, lambda *_: None)
    return round(errors.error(job.choosing, job.modules), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        policy, statistics = Path(folder, "policy.toml"), Path(folder, "embedded.safetensors")
        policy.write_text("keep_first_layers = 0\n")
        asked = Asked(model=EMBEDDED, format="w4a16", method=GPTQ, calibrate=WORLD, policy=str(policy))
        with_statistics(asked, job_of(asked), statistics, lambda *_: None)
        session = Session.of(EMBEDDED, None, None, [case.prompt for case in cases_of("t2v", CASES)], {}, "float32")
        errors, said = (
            Errors.of(session, lambda steps: None),
            {
                "weights": session.seam.identity_with_sound,
                "device": session.ground.plan.device.name,
                "prompts": CASES,
                "calibrated_with": len(prompts_of(WORLD)),
            },
        )
        before = json.loads(out.read_text()) if out.exists() else {}
        rows = before.pop("methods", []) if before.get("weights") == said["weights"] else []
        for row in WRITTEN:
            for group in GROUPS if row.grouped else (None,):
                for method in METHODS:
                    name = {"format": row.format.name, "dialect": row.dialect, "group": group, "method": method}
                    if any(one.items() >= name.items() for one in rows):
                        continue
                    rows.append(name | {"error": measured(errors, name, statistics)})
                    print(rows[-1], flush=True)
                    out.write_text(json.dumps(said | {"methods": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
