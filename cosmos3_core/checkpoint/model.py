"""A checkpoint as its JSON files describe it, and its weights, checked name by name before any of them is read."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import InputError
from ..model.config import TransformerConfig, VaeConfig
from ..model.sound_config import SoundConfig
from ..model.text import ChatTokenizer
from ..scenarios.facts import ACTION_STATS, NEGATIVE_PROMPT, OWN, ModelFacts, lacking_heads
from ..scenarios.own import read_own
from ..scenarios.variants import checkpoints
from .gguf import open_gguf
from .identity import identity
from .mapping import TensorInfo
from .quantized import Quantization, Quantized, described, gguf_file, quantized
from .repository import EMBEDDED, Repository, full_name, open_repository
from .tensors import Tensors, Told, open_tensors

if TYPE_CHECKING:
    import torch

    from ..model.sound import SoundCodec
    from ..model.transformer import GenerationTower, UnderstandingTower
    from ..model.vae import VideoVAE
    from ..model.weights import ReadMatrices, Target

PIPELINES = ("Cosmos3OmniPipeline", "Cosmos3OmniDiffusersPipeline")
DTYPE = "bfloat16"
WEIGHTS = (".safetensors", ".gguf", ".safetensors.index.json")
"""Ends of the names of the files that `_open_transformer` reads."""
MOST_SIGMAS = 1000
"""Steps of a distilled model's schedule: as many as a request may have. Published ones have 4."""
LONG_NEGATIVE = 190
"""How often the embedded model's negative prompt is as many tokens as the published one, about 3500."""


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
    quantization: Quantization | None = None
    """How the transformer's weights are quantized; None where they are not."""

    @property
    def name(self) -> str:
        return self.facts.name

    def tokenizer(self) -> ChatTokenizer:
        """The checkpoint's tokenizer and chat template."""
        folder, repo = "text_tokenizer", self.repository
        tokenizer = repo.read_text(f"{folder}/tokenizer.json")
        if tokenizer is None:
            raise _incomplete(self.name, f"{folder}/tokenizer.json")
        config = _object(repo, f"{folder}/tokenizer_config.json")
        return ChatTokenizer(
            tokenizer, config, repo.read_text(f"{folder}/chat_template.jinja"), f"{self.name}/{folder}"
        )


def open_model(name: str, revision: str | None = None) -> Model:
    """Read and check the JSON files of a checkpoint: "embedded", a folder in the hub's layout, a hub id or its short
    form. No weight is downloaded or read. Raises InputError."""
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
    config, lacks = _with_codecs(repo, TransformerConfig.from_json(raw, f"{name}/transformer/config.json"))
    scheduler = _object(repo, "scheduler/scheduler_config.json")
    sigmas = _distilled_sigmas(repo, scheduler)
    variant = "distilled" if sigmas else "base" if config.gated else "edge"
    negative, own = repo.read_json(NEGATIVE_PROMPT), read_own(repo.read_json(OWN), name)
    known = checkpoints().get(name)
    facts = ModelFacts(
        name=name,
        variant=variant,
        system_prompt=bool(index.get("default_use_system_prompt", config.gated)),
        negative_prompt=None if negative is None else json.dumps(negative),
        steps=len(sigmas) if sigmas else None,
        made_for=made_for(name),
        lacks=lacks,
        preset=known.preset if known else None,
        domain=known.domain if known else None,
        action_space=known.action_space if known else None,
        action_stats=ACTION_STATS if repo.read_json(ACTION_STATS) is not None else None,
        own=own.defaults,
        note=own.note,
        random=own.random,
        **_schedule(index, scheduler),
    )
    dtype = raw.get("dtype") or raw.get("torch_dtype") or DTYPE
    vae = _object(repo, "vae/config.json")
    if (latents := VaeConfig.from_json(vae, f"{name}/vae").z_dim) != config.latent_channel:
        found = f"its VAE has {latents} latent channels, and its transformer {config.latent_channel}"
        raise InputError(f"`model` {name}", found, "transformer and vae belong to different models; get both again")
    return Model(repo, config, scheduler, vae, dtype, sigmas, facts, _quantization(repo, raw, config))


def describe(name: str) -> Model:
    """A published model's configs from the table here, so that nothing is downloaded: its tokenizer is the embedded
    model's, and so is the scheduler of one that is not distilled; its negative prompt is as long as the checkpoint's.
    Any other model from its own JSON files. Raises InputError."""
    name, table = full_name(name), _table()
    if name not in checkpoints() or Path(name).is_dir():
        return open_model(name)
    known = checkpoints()[name]
    embedded, config = open_model(EMBEDDED), TransformerConfig.from_json(table["transformer"][known.config], name)
    config = replace(config, sound=SoundConfig() if config.sound_gen else None)
    steps = known.steps
    negative = (embedded.facts.negative_prompt or "") * LONG_NEGATIVE
    return replace(
        embedded,
        config=config,
        scheduler={"stochastic_sampling": True} if steps else embedded.scheduler,
        vae=embedded.vae | table["vae"],
        dtype=DTYPE,
        distilled_sigmas=tuple(1 - i / steps for i in range(steps)) if steps else None,
        facts=ModelFacts(
            name,
            known.variant,
            config.gated,
            negative,
            steps,
            known.made_for,
            lacks=known.lacks,
            preset=known.preset,
            domain=known.domain,
            action_space=known.action_space,
        ),
    )


def _with_codecs(repo: Repository, config: TransformerConfig) -> tuple[TransformerConfig, dict[str, str]]:
    """The config with that of the sound codec, and what the model lacks, as `ModelFacts` has it. What is wrong with the
    codec is nothing to who wants no sound."""
    heads = [name for name, has in (("sound", config.sound_gen), ("action", config.action_gen)) if has]
    lacks = lacking_heads(heads)
    sound, reason = _sound_codec(repo, config) if config.sound_gen else (None, None)
    return replace(config, sound=sound), lacks | ({"sound": reason} if reason else {})


def _sound_codec(repo: Repository, config: TransformerConfig) -> tuple[SoundConfig | None, str | None]:
    """The sound codec's config, or why there is none that could be used."""
    folder = f"{repo.name}/sound_tokenizer"
    try:
        if (raw := repo.read_json("sound_tokenizer/config.json")) is None:
            return None, "has no sound_tokenizer/config.json"
        sound = SoundConfig.from_json(raw, folder)
    except InputError as error:
        return None, f"has a sound codec that cannot be used: {error.asked}: {error.found}"
    ours = sound.vocoder_input_dim, sound.sampling_rate / sound.hop
    theirs = config.sound_dim, config.sound_latent_fps
    if ours != theirs:
        said = "has a sound codec of {} channels at {:g} latent frames a second and a transformer of {} at {:g}"
        return None, said.format(*ours, *theirs)
    return sound, None


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
    known = checkpoints().get(full_name(name))
    return known.made_for if known else None


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


def _bytes(files: Tensors, names: Iterable[str]) -> int:
    return sum(getattr(files.tensors[name], "nbytes", 0) for name in names)


def _kind(info: TensorInfo) -> tuple[tuple[int, ...], torch.dtype]:
    return info.shape, info.dtype


def _quantization(repo: Repository, raw: dict[str, Any], config: TransformerConfig) -> Quantization | None:
    """How the transformer is quantized; each of its modules, where the files are on this machine."""
    source = f"{repo.name}/transformer"
    if (found := described(repo, raw, source)) is None:
        return None
    files = [f"transformer/{file}" for file in repo.names("transformer") or () if file.endswith(WEIGHTS)]
    if not repo.here(files):
        return found
    opened = _open_transformer(repo)
    weights = quantized(found, opened, _canonical(opened, source), config, source)
    return replace(found, modules=weights.formats() if weights else None)


def _open_transformer(repo: Repository) -> Tensors:
    """Its safetensors, or its GGUF file."""
    if (name := gguf_file(repo)) is None:
        return open_tensors(repo, "transformer")
    return open_gguf(repo, "transformer", name)


def _canonical(files: Tensors, source: str) -> dict[str, str]:
    """The tensors' names in the file by those in diffusers' naming. Raises InputError for two of one tensor."""
    from ..model.weights import canonical_name

    found: dict[str, str] = {}
    for raw in files.tensors:
        name = canonical_name(raw)
        if name in found:
            raise InputError(
                f"loading {source}", f"{raw} and {found[name]} are two names of one tensor", "Keep one of them"
            )
        found[name] = raw
    return found


class Weights:
    """The tensor files that a run needs, found and checked; `understanding`, `generation` and `vae` then read them."""

    transformer: Tensors
    vae_files: Tensors
    quantized: Quantized | None = None
    sound_files: Tensors | None = None
    """Opened by `open_sound`, as most runs have no use for them."""

    def __init__(self, model: Model):
        from ..model.vae import VideoVAE
        from ..model.weights import check_names, check_tensors

        self.model, source = model, f"{model.name}/transformer"
        self.transformer = _open_transformer(model.repository)
        self.raw_names = _canonical(self.transformer, source)
        self.quantized = quantized(model.quantization, self.transformer, self.raw_names, model.config, source)
        kinds = {name: _kind(self.transformer.tensors[raw]) for name, raw in self.raw_names.items()}
        check_names(model.config, self._as_plain(kinds), source)
        self.vae_files = open_tensors(model.repository, "vae")
        expected, source = VideoVAE.names(model.vae, f"{model.name}/vae"), f"{model.name}/vae"
        check_tensors(expected, {n: _kind(info) for n, info in self.vae_files.tensors.items()}, source)
        if self.quantized:
            self.quantized.check()

    def _as_plain(self, kinds: dict[str, Any]) -> dict[str, Any]:
        """Names, shapes and dtypes as they would be without quantization."""
        from ..model.weights import RUNNABLE, shapes

        if self.quantized is None:
            return kinds
        expected, parts, plain = shapes(self.model.config), self.quantized.parts, RUNNABLE[0]
        weights = {f"{module}.weight" for module in self.quantized.layouts}
        return {n: k for n, k in kinds.items() if n not in parts} | {n: (expected[n], plain) for n in weights}

    def open_sound(self, *, encoder: bool = False) -> Tensors:
        """Find and check the sound codec's files. A codec without an encoder only decodes. Raises InputError, also for
        such a one where its `encoder` is needed."""
        from ..model.sound import HALVES, SoundCodec
        from ..model.weights import check_tensors

        if self.sound_files is None:
            files, config = open_tensors(self.model.repository, "sound_tokenizer"), self.model.config.sound
            assert config is not None, "a request of a model without a codec has no sound"
            halves = [half for half in HALVES if any(name.startswith(half) for name in files.tensors)]
            expected = SoundCodec.names(config, {*halves, "decoder"})
            kinds = {name: _kind(info) for name, info in files.tensors.items()}
            check_tensors(expected, kinds, f"{self.model.name}/sound_tokenizer")
            self.sound_files = files
        if encoder and not any(name.startswith("encoder.") for name in self.sound_files.tensors):
            found = "its sound codec has no encoder, so no sound can be given"
            raise InputError(f"`audio` with {self.model.name}", found, "Drop audio, or get the whole sound_tokenizer")
        return self.sound_files

    @cached_property
    def identity(self) -> str | None:
        """What tells these weights from others of the same names (`identity`); None of weights that are no files."""
        return self._identity({"transformer": self.transformer, "vae": self.vae_files})

    @cached_property
    def identity_with_sound(self) -> str | None:
        """The same of these and the sound codec's."""
        files = {"transformer": self.transformer, "vae": self.vae_files, "sound_tokenizer": self.open_sound()}
        return self._identity(files)

    def _identity(self, files: Mapping[str, Tensors]) -> str | None:
        return identity(self.model.repository, {folder: one.tensors.values() for folder, one in files.items()})

    def telling(self, tell: Callable[[int], object]) -> Weights:
        """The same; `tell` is called with the bytes of each tensor that is read."""
        told = copy.copy(self)
        told.transformer, told.vae_files = Told(self.transformer, tell), Told(self.vae_files, tell)
        told.sound_files = self.sound_files and Told(self.sound_files, tell)
        told.quantized = self.quantized and replace(self.quantized, files=told.transformer)
        return told

    def bytes_of(self, component: str, *, layers: bool) -> int:
        """Of the tensors that are read to load a component, a tower with its `layers` or without; 0 of weights that are
        no files."""
        from ..model.vae import HALVES
        from ..model.weights import tower_slots

        tower = component in ("understanding", "generation")
        if tower:
            slots = tower_slots(self.model.config, media=component == "generation", layers=layers)
            names = {name for slot in slots for name in slot.tensors()}
            modules = {name.removesuffix(".weight") for name in names}
            parts = self.quantized.parts if self.quantized else {}
            held = [raw for name, raw in self.raw_names.items() if name in names or parts.get(name) in modules]
            return _bytes(self.transformer, held)
        codec, _, half = component.partition(" ")
        files, begins = (self.vae_files, HALVES[half]) if codec == "vae" else (self.open_sound(), (f"{half}.",))
        return _bytes(files, [name for name in files.tensors if name.startswith(begins)])

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Quantized ones as what they stand for."""
        from ..quant.numerics import unpack

        modules = self.quantized.layouts if self.quantized else {}
        names = list(names)
        coded = {name for name in names if name.removesuffix(".weight") in modules}
        canonical = {self.raw_names[name]: name for name in names if name not in coded}
        for raw, tensor in self.transformer.read(canonical):
            yield canonical[raw], tensor
        if coded and self.quantized:
            for module, weight in self.quantized.weights(name.removesuffix(".weight") for name in coded):
                yield f"{module}.weight", unpack(weight)

    @property
    def _matrices(self) -> ReadMatrices | None:
        return self.quantized.matrices if self.quantized else None

    def understanding(self, target: Target) -> UnderstandingTower:
        """Load the text tower."""
        from ..model.weights import load_understanding

        return load_understanding(self.model.config, self._read, target, self._matrices)

    def generation(self, target: Target) -> GenerationTower:
        """Load the media tower."""
        from ..model.weights import load_generation

        return load_generation(self.model.config, self._read, target, self._matrices)

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
            dtype=target.codec_dtype,
            channels_last=target.channels_last,
            halves=halves,
        )

    def sound(self, target: Target, half: str) -> SoundCodec:
        """Load the sound codec's "encoder" or "decoder"."""
        from ..model.sound import SoundCodec

        config, files = self.model.config.sound, self.open_sound()
        assert config is not None, "a request of a model without a codec has no sound"
        names = [name for name in files.tensors if name.startswith(f"{half}.")]
        device, dtype = target.device, target.codec_dtype
        return SoundCodec.load(config, files.read(names), device=device, dtype=dtype, halves=(half,))
