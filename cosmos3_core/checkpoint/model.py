"""A checkpoint as its JSON files describe it, and its weights, checked name by name before any of them is read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..contract import InputError
from ..model.config import TransformerConfig, VaeConfig
from ..scenarios.facts import ACTION_STATS, NEGATIVE_PROMPT, ModelFacts
from .repository import Repository, full_name, open_repository

if TYPE_CHECKING:
    import torch

    from ..model.text import ChatTokenizer
    from ..model.transformer import GenerationTower, UnderstandingTower
    from ..model.vae import VideoVAE
    from ..model.weights import Target
    from .tensors import TensorInfo

PIPELINES = ("Cosmos3OmniPipeline", "Cosmos3OmniDiffusersPipeline")
DTYPE = "bfloat16"
MOST_SIGMAS = 1000
"""Steps of a distilled model's schedule: as many as a request may have. Published ones have 4."""
LONG_NEGATIVE = 11
"""How often the tiny model's negative prompt is as many tokens as the published one, about 3500."""


@dataclass(frozen=True)
class Model:
    """What the JSON files say. `dtype` is the one the weights were published in, `distilled_sigmas` the fixed schedule
    of a distilled model (else None)."""

    repository: Repository
    config: TransformerConfig
    scheduler: dict[str, Any]
    vae: dict[str, Any]
    dtype: str
    distilled_sigmas: tuple[float, ...] | None
    facts: ModelFacts

    @property
    def name(self) -> str:
        return self.facts.name

    def tokenizer(self) -> ChatTokenizer:
        """The checkpoint's tokenizer and chat template."""
        from ..model.text import ChatTokenizer

        folder, repo = "text_tokenizer", self.repository
        tokenizer = repo.read_text(f"{folder}/tokenizer.json")
        if tokenizer is None:
            raise _incomplete(self.name, f"{folder}/tokenizer.json")
        config = _object(repo, f"{folder}/tokenizer_config.json")
        return ChatTokenizer(
            tokenizer, config, repo.read_text(f"{folder}/chat_template.jinja"), f"{self.name}/{folder}"
        )


def open_model(name: str, revision: str | None = None) -> Model:
    """Read and check the JSON files of a checkpoint: "tiny", a folder in the hub's layout, a hub id or its short form.
    No weight is downloaded or read. Raises InputError."""
    name = full_name(name)
    repo = open_repository(name, revision)
    index = _object(repo, "model_index.json")
    if index.get("_class_name") not in PIPELINES:
        raise InputError(
            f"`model` {name}",
            f"model_index.json describes a {index.get('_class_name')!r}",
            f"Cosmos3 checkpoints say {PIPELINES[0]}",
        )
    raw = _object(repo, "transformer/config.json")
    config = TransformerConfig.from_json(raw, f"{name}/transformer/config.json")
    scheduler = _object(repo, "scheduler/scheduler_config.json")
    sigmas = _distilled_sigmas(repo, scheduler)
    variant = "distilled" if sigmas else "base" if config.gated else "edge"
    negative = repo.read_json(NEGATIVE_PROMPT)
    facts = ModelFacts(
        name=name,
        variant=variant,
        system_prompt=bool(index.get("default_use_system_prompt", config.gated)),
        negative_prompt=None if negative is None else json.dumps(negative),
        steps=len(sigmas) if sigmas else None,
        made_for=made_for(name),
        action_stats=ACTION_STATS if repo.read_json(ACTION_STATS) is not None else None,
        **_schedule(index, scheduler),
    )
    dtype = raw.get("dtype") or raw.get("torch_dtype") or DTYPE
    vae = _object(repo, "vae/config.json")
    if (latents := VaeConfig.from_json(vae, f"{name}/vae").z_dim) != config.latent_channel:
        found = f"its VAE has {latents} latent channels, and its transformer {config.latent_channel}"
        raise InputError(f"`model` {name}", found, "transformer and vae belong to different models; get both again")
    return Model(repo, config, scheduler, vae, dtype, sigmas, facts)


def describe(name: str) -> Model:
    """A published model's configs from the table here, so that nothing is downloaded: its tokenizer is the tiny
    model's, and so is the scheduler of one that is not distilled; its negative prompt is as long as the checkpoint's.
    Any other model from its own JSON files. Raises InputError."""
    name, table = full_name(name), _table()
    if name not in table["repositories"] or Path(name).is_dir():
        return open_model(name)
    row = table["models"][table["repositories"][name]]
    tiny, config = open_model("tiny"), TransformerConfig.from_json(row["transformer"], name)
    steps: int | None = row.get("steps")
    negative = (tiny.facts.negative_prompt or "") * LONG_NEGATIVE
    return replace(
        tiny,
        config=config,
        scheduler={"stochastic_sampling": True} if steps else tiny.scheduler,
        vae=tiny.vae | table["vae"],
        dtype=DTYPE,
        distilled_sigmas=tuple(1 - i / steps for i in range(steps)) if steps else None,
        facts=ModelFacts(name, row["variant"], config.gated, negative, steps, made_for(name)),
    )


def _schedule(index: dict[str, Any], scheduler: dict[str, Any]) -> dict[str, Any]:
    """What diffusers' pipeline makes of a checkpoint's files: `schedule` and `shift` of `ModelFacts`. While Karras'
    sigmas are on, diffusers drops the native grid that `use_native_flow_schedule` asks for, and the shift."""
    shift = scheduler.get("flow_shift", 1.0)
    if scheduler.get("use_karras_sigmas", False) or type(shift) not in (int, float):  # who loads the scheduler refuses
        return {"schedule": "karras", "shift": 1.0}
    return {"schedule": "native" if index.get("use_native_flow_schedule") else "flow", "shift": float(shift)}


@cache
def _table() -> dict[str, Any]:
    """models.toml."""
    return tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


def made_for(name: str) -> str | None:
    """The task that a published model was trained for above others; None for any other model."""
    return _table()["made_for"].get(full_name(name))


def _distilled_sigmas(repo: Repository, scheduler: dict[str, Any]) -> tuple[float, ...] | None:
    """The fixed noise levels of a distilled checkpoint, without the final zero; None for any other."""
    modular = repo.read_json("modular_model_index.json") or {}
    fixed = scheduler.get("fixed_step_sampler_config") or {}
    if not (modular.get("is_distilled") or fixed):
        return None
    try:
        sigmas = tuple(float(s) for s in modular.get("distilled_sigmas") or fixed.get("t_list") or () if s > 0)
    except (AttributeError, TypeError, ValueError, OverflowError):
        sigmas = ()
    if len(sigmas) > MOST_SIGMAS:
        found = f"it has {len(sigmas):,} distilled sigmas, and {MOST_SIGMAS:,} are the most that are read"
        raise InputError(f"`model` {repo.name}", found, "Get the file again from the model's repository")
    if not sigmas:
        raise _incomplete(repo.name, "distilled sigmas (in modular_model_index.json or scheduler_config.json)")
    if list(sigmas) != sorted(set(sigmas), reverse=True) or sigmas[0] > 1:
        found = f"its distilled sigmas are {list(sigmas)}, and noise levels fall from at most 1"
        raise InputError(f"`model` {repo.name}", found, "Get the file again from the model's repository")
    return sigmas


def _object(repo: Repository, path: str) -> dict[str, Any]:
    value = repo.read_json(path)
    if value is None:
        raise _incomplete(repo.name, path)
    return value


def _incomplete(name: str, path: str) -> InputError:
    return InputError(
        f"`model` {name}",
        f"it has no {path}",
        "Point `model` at a folder in the layout of nvidia/Cosmos3-Nano, with model_index.json at its top",
    )


def _kind(info: TensorInfo) -> tuple[tuple[int, ...], torch.dtype]:
    return info.shape, info.dtype


class Tensors(Protocol):
    """Tensors by name, read when they are asked for: files, or what stands in for them."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]: ...


class Weights:
    """The tensor files that a run needs, found and checked; `understanding`, `generation` and `vae` then read them."""

    transformer: Tensors
    vae_files: Tensors

    def __init__(self, model: Model):
        from ..model.vae import VideoVAE
        from ..model.weights import canonical_name, check_names, check_tensors
        from .tensors import open_tensors

        self.model = model
        self.transformer = open_tensors(model.repository, "transformer")
        self.raw_names: dict[str, str] = {}
        for raw in self.transformer.tensors:
            name = canonical_name(raw)
            if name in self.raw_names:
                found = f"{raw} and {self.raw_names[name]} are two names of one tensor"
                raise InputError(f"loading {model.name}/transformer", found, "Keep one of them")
            self.raw_names[name] = raw
        kinds = {name: _kind(self.transformer.tensors[raw]) for name, raw in self.raw_names.items()}
        check_names(model.config, kinds, f"{model.name}/transformer")
        self.vae_files = open_tensors(model.repository, "vae")
        expected, source = VideoVAE.names(model.vae, f"{model.name}/vae"), f"{model.name}/vae"
        check_tensors(expected, {n: _kind(info) for n, info in self.vae_files.tensors.items()}, source)

    @cached_property
    def identity(self) -> str | None:
        """What tells these weights from others of the same names (`identity`); None of weights that are no files."""
        from .identity import identity

        files = {"transformer": self.transformer.tensors, "vae": self.vae_files.tensors}
        return identity(self.model.repository, {folder: tensors.values() for folder, tensors in files.items()})

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        canonical = {self.raw_names[name]: name for name in names}
        for raw, tensor in self.transformer.read(canonical):
            yield canonical[raw], tensor

    def understanding(self, target: Target) -> UnderstandingTower:
        """Load the text tower."""
        from ..model.weights import load_understanding

        return load_understanding(self.model.config, self._read, target)

    def generation(self, target: Target) -> GenerationTower:
        """Load the media tower."""
        from ..model.weights import load_generation

        return load_generation(self.model.config, self._read, target)

    def vae(self, target: Target, *halves: str) -> VideoVAE:
        """Load these halves of the VAE, "encoder" and "decoder"."""
        from ..model.vae import VideoVAE, prefixes

        names = [name for name in self.vae_files.tensors if name.startswith(prefixes(halves))]
        return VideoVAE.load(
            self.model.vae,
            self.vae_files.read(names),
            target.ops,
            source=f"{self.model.name}/vae",
            device=target.device,
            dtype=target.dtype,
            halves=halves,
        )
