"""The tables of benchmarks/README.md and the README's chart, from the committed results: `python -m benchmarks.tables`
writes them anew."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cosmos3_core.plan.cost.units import GIB

from . import chart

FOLDER = Path(__file__).parent
PAGE = FOLDER / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.tables -->", "<!-- end of results -->"
MEASURES = {
    "step": "The forward passes",
    "vae": "The decode",
    "versions": "Beside the version before",
    "e2e": "Whole runs",
    "scenarios": "Sound and actions",
    "attention": "Attention",
    "gemm": "One layer's products",
    "accuracy": "Accuracy",
    "formats": "What each format loses",
    "quantized": "Every format at Nano's size",
    "memory": "What cosmos3 plan says",
    "residency": "Weights that lie on the host",
    "rocm_rows": "ROCm's rows on a GPU of NVIDIA's",
}


def render() -> str:
    """All results, by benchmark."""
    found = [(path.name, json.loads(path.read_text())) for path in sorted((FOLDER / "results").glob("*.json"))]
    sections = []
    for name, title in MEASURES.items():
        head, rows_of = TABLES[name]
        rows = [row for file, result in found if result["benchmark"] == name for row in rows_of(file, result)]
        sections += [f"### {title}\n\n{table(head, rows)}"] if rows else []
    return "\n".join(sections)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def precision(result: dict[str, Any], otherwise: str) -> str:
    return ", ".join(f"{op} {name}" for op, name in result["formats"].items()) or otherwise


def where(file: str, result: dict[str, Any]) -> str:
    environment = result["environment"]
    threads = f", {environment['threads']} threads" if environment["threads"] else ""
    return f"[{environment['device']}{threads}](results/{file})"


def seconds(times: dict[str, dict[str, Any]], sides: Sequence[str], shared: bool) -> str:
    """Absolute times mean nothing on a CPU that others use too."""
    return "(shared CPU)" if shared else " / ".join(f"{1e3 * times[side]['median_s']:.1f}" for side in sides)


def of_step(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    settings, shared = result["settings"], result["environment"]["threads"] is not None
    what = f"{settings['steps']} steps" if settings["steps"] else "a step's passes"
    guided = "guided" if settings["guidance"] != 1 else "one prompt"
    for one in result["results"]:
        rows = one["kernels"]
        linear = rows.get("pack_linear") or rows["finish"]  # where composites do all products, no linear is chosen
        yield (
            f"{settings['model']} {one['work']}, {what}, {guided}",
            precision(one, settings["dtype"]),
            f"{rows['attention']}, {linear}",
            seconds(one["seconds"], ("cosmos3", settings["peer"]), shared),
            f"{one['speed_ratio']:.2f}x",
            f"{one['relative_error']:.1e}",
            where(file, result),
        )


def of_vae(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    sides, settings = ("cosmos3", "diffusers"), result["settings"]
    peaks = (f"{result['peak_bytes'][side]['allocated'] / 1e9:.1f}" for side in sides)
    errors = (f"{result['relative_error_to_fp32'][side]:.1e}" for side in sides)
    times = (f"{result['seconds'][side]['median_s']:.2f}" for side in sides)
    ratio = f"{result['speed_ratio']:.2f}x"
    work = f"{settings['size']}, {settings['frames']} frames"
    yield work, " / ".join(times), ratio, " / ".join(peaks), " / ".join(errors), where(file, result)


def of_versions(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    settings, shared = result["settings"], result["environment"]["threads"] is not None
    for one in result["results"]:
        errors = [one[key] for key in one if key.startswith("relative_error")]
        yield (
            f"{settings['model']} {one['work']}"
            if "work" in one
            else f"decode of {settings['size']}x{settings['frames']}",
            precision(one, settings["dtype"]) if "formats" in one else "bfloat16",
            seconds(one["seconds"], ("new", "old"), shared),
            f"{one['ratio']:.3f}",
            "yes" if all(error["old"] == error["new"] for error in errors) else "no",
            where(file, result),
        )


def of_e2e(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    settings = result["settings"]
    for one in result["results"]:
        run = one["run"]
        before = [run["stages"][stage] for stage in ("read prompts", "steps")]
        yield (
            f"{settings['model']} {settings['work']}, {settings['steps']} step{'s' if settings['steps'] > 1 else ''}",
            precision(one, "bfloat16"),
            "all in memory" if settings["resident"] else "one after another",
            f"{run['seconds']:.1f}",
            " + ".join(f"{seconds:.1f}" for seconds in (*before, run["seconds"] - sum(before))),
            f"{run['allocated'] / GIB:.1f}, {run['reserved'] / GIB:.1f}",
            where(file, result),
        )


def of_scenarios(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    settings, shared = result["settings"], result["environment"]["threads"] is not None
    for found in result["results"]:
        how, device = precision(found, "bfloat16"), where(file, result)
        for name, timed in found.get("policy", {}).items():
            stages = ", ".join(f"{stage} {1e3 * spent:.0f}" for stage, spent in timed["stages"].items() if spent > 5e-4)
            took = "(shared CPU)" if shared else f"{1e3 * timed['median']:.0f}"
            yield name, how, took, "" if shared else stages, device
        if "sound" in found:
            work, ratio = f"{settings['size']}, {settings['frames']} frames, 35 steps", found["sound"]["ratio"]
            yield f"sound beside {work}", how, f"{ratio:.3f} of the time without", "", device


def of_attention(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    text = result["settings"]["text"]
    for queries, kernels in result["results"].items():
        for name, one in kernels.items():
            yield (
                f"{int(queries):,} + {text}",
                name,
                f"{1e3 * one['seconds']:#.3g}",
                f"{one['tflops']:.0f}",
                f"{one['speed_ratio']:.2f}x",
                f"{one['relative_error']:.1e}",
                where(file, result),
            )


def of_gemm(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    layers: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for one in result["results"]:
        layers.setdefault((one["rows"], one["kernel"], one["format"]), []).append(one)
    whole = len({one["projection"] for one in result["results"]})
    for (rows, kernel, format), products in layers.items():
        if len(products) < whole:  # there was no time for the others
            continue
        took = sum(product["median_s"] for product in products)
        peer = sum(product["median_s"] * product["times_peer"] for product in products)
        error = max(product["relative_error"] for product in products)
        yield (
            f"{rows:,}",
            kernel,
            format,
            f"{1e3 * took:.3f}",
            f"{peer / took:.2f}x",
            f"{error:.1e}",
            where(file, result),
        )


def of_accuracy(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    settings = result["settings"]
    weights = f"{settings['model']}{' with outliers' if settings['outliers'] else ''}, {settings['work']}"
    for one in result["results"]:
        errors = one["error"]
        latents = f"{errors['latents']:.3f} (step {settings['steps']})" if "latents" in errors else "–"
        yield one["run"], weights, f"{errors['velocity']:.3f}", latents, where(file, result)


def of_formats(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    """By the velocity's error with all groups in the format, ascending."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in result["results"]:
        found.setdefault(one["format"], {})[one["group"]] = one
    settings = result["settings"]
    for name, groups in sorted(found.items(), key=lambda item: item[1]["all"]["velocity"]):
        parts = [one for group, one in groups.items() if group.startswith("generation ")]
        yield (
            f"`{name}`",
            f"{settings['model']}'s widths, {settings['layers']} layers",
            f"{groups['all']['velocity']:.4f}",
            " / ".join(f"{one['velocity']:.4f}" for one in parts if "velocity" in one) or "–",
            " / ".join(f"{one['weight_db']:.1f}" for one in parts),
            " / ".join(f"{one['product_db']:.1f}" for one in parts),
            where(file, result),
        )


def of_quantized(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    """By the velocity's error, ascending."""
    done = sorted((one for one in result["results"] if "works" in one), key=lambda one: one["error"])
    for one in done:
        kernels = one["kernels"]
        times = (f"{1e3 * timed['median_s']:.1f}" for timed in one["works"].values())
        yield (
            f"`{one['format']}`",
            kernels.get("pack_linear") if kernels["project"] == "composed" else kernels["project"],
            f"{one['error']:.3f}",
            " / ".join(times),
            f"{one['peak']['reserved'] / GIB:.1f}",
            " + ".join(f"{took:.1f}" for took in one["load_s"].values()),
            where(file, result),
        )


def of_memory(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    for work, job in result["jobs"].items():
        for name, part, time in (("a guided step", "steps", "step"), ("the decode", "decode", "decode")):
            peak, reserved, allocated = (job[part][key] for key in ("estimated_peak", "reserved", "allocated"))
            yield (
                f"{result['settings']['model']} {work}, {name}",
                f"{peak / 1e9:.1f} / {reserved / 1e9:.1f}, {allocated / 1e9:.1f}",
                f"{job['estimated_seconds'][time]:.2f} / {job[part]['seconds']:.2f}",
                where(file, result),
            )


def of_residency(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    for found in result["jobs"].values():
        job, stages = found["job"], found["stages"]
        limit = f", {job['limit_gib']:g} GiB" if job["limit_gib"] else ""
        tile = f", decode in tiles of {job['tile']}" if job["tile"] else ""
        peaks = (max(stage[kind] for stage in stages.values()) for kind in ("allocated", "reserved"))
        ratio = f"{found['streamed_over_resident']:.4f}" if "streamed_over_resident" in found else "–"
        yield (
            f"{job['model']} {job['work']}, {precision(job, 'bfloat16')}{tile}{limit}",
            job["generation"],
            f"{stages['steps']['seconds']:.2f}",
            ratio,
            ", ".join(f"{peak / GIB:.2f}" for peak in peaks),
            f"{1e3 * found['prompts_again_s']:.0f}",
            where(file, result),
        )


def of_rocm_rows(file: str, result: dict[str, Any]) -> Iterable[Sequence[str]]:
    for one in result["results"]:
        yield (
            one["work"],
            f"{one['rows']:,}",
            one["best_of_cuda"].removeprefix("cuda "),
            f"{one['ratio']:.2f}",
            f"{one['asked']:g}",
            f"{one['ratio_as_gfx942']:.2f}",
            where(file, result),
        )


TABLES = {
    "step": (
        ("Work", "Precision", "Attention, linear", "Ours / diffusers, ms", "Ratio", "Difference", "Device, raw"),
        of_step,
    ),
    "vae": (("Work", "Ours / diffusers, s", "Ratio", "Allocated, GB", "Error to fp32", "Device, raw"), of_vae),
    "versions": (("Work", "Precision", "New / old, ms", "Ratio", "Equal errors", "Device, raw"), of_versions),
    "e2e": (
        (
            "Work",
            "Precision",
            "Components",
            "Seconds",
            "Prompts + steps + decode and file",
            "Peak GiB: allocated, reserved",
            "Device, raw",
        ),
        of_e2e,
    ),
    "scenarios": (("Work", "Precision", "ms", "Stages, ms", "Device, raw"), of_scenarios),
    "attention": (
        ("Media + text tokens", "Kernel", "ms", "TFLOP/s", "Ratio to torch's", "Error to fp32", "Device, raw"),
        of_attention,
    ),
    "gemm": (("Rows", "Kernel", "Format", "ms a layer", "Ratio to bf16", "Largest error", "Device, raw"), of_gemm),
    "accuracy": (("Run", "Weights, work", "Velocity", "Latents", "Device, raw"), of_accuracy),
    "formats": (
        (
            "Format",
            "Weights",
            "Velocity",
            "qkv / out / up / down of the media tower alone",
            "Their weights, dB",
            "Their products, dB",
            "Device, raw",
        ),
        of_formats,
    ),
    "quantized": (
        (
            "Format",
            "Linear",
            "Velocity",
            "ms: a 1024 x 1024 picture's guided step / a pass of 832 x 480, 93 frames / of 1280 x 720, 189 frames",
            "Reserved GiB",
            "Seconds to load: text + media tower",
            "Device, raw",
        ),
        of_quantized,
    ),
    "memory": (
        ("Work", "GB: counted / reserved, allocated", "Seconds: counted / measured", "Device, raw"),
        of_memory,
    ),
    "residency": (
        (
            "Work",
            "Media tower",
            "A step, s",
            "Ratio to a resident tower",
            "Peak GiB: allocated, reserved",
            "Same prompts again, ms",
            "Device, raw",
        ),
        of_residency,
    ),
    "rocm_rows": (
        ("Work", "Rows", "CUDA's best row", "Of its speed", "Asked", "As on gfx942", "Device, raw"),
        of_rocm_rows,
    ),
}


def main() -> None:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{render()}\n{END}{rest.split(END)[1]}")
    chart.PICTURE.write_text(chart.render(), "utf-8")


if __name__ == "__main__":
    main()
