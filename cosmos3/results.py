"""What a run made: a picture or a clip, on the host, with its manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cosmos3_core.files.images import write_image
from cosmos3_core.files.outputs import check_output
from cosmos3_core.runs import outputs
from cosmos3_core.runs.generation import Generation
from cosmos3_core.runs.outputs import Made, Paths
from cosmos3_core.runs.processes import Processes

from .questions import as_json, check_switch, path_of
from .words import Answering, bound

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from cosmos3_core.files.audio import Sound


class Preview(Answering):
    """Frames on the host."""

    def __init__(self, frames: Tensor, processes: Processes):
        self._frames, self._processes = plain(frames), processes

    @property
    def tensor(self) -> Tensor:
        """uint8 RGB [F, H, W, 3] on the host; a picture has one frame."""
        return self._frames

    @property
    def numpy(self) -> np.ndarray:
        """uint8 RGB [F, H, W, 3], on the memory of `tensor`."""
        return self._frames.numpy()

    @property
    def images(self) -> list[Image.Image]:
        """A PIL image for each frame."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.numpy]

    @bound
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the first frame as a .png, read it back, and return its path. Raises InputError for what cannot be
        written, and for a file that is there unless it may `overwrite` it."""
        check_switch("overwrite", overwrite)
        file = Path(path_of("path", path))

        def write() -> None:
            check_output(file, clip=False, overwrite=overwrite)
            write_image(file, self.numpy[0], {}, overwrite=overwrite)

        self._processes.by_first(write)
        return file

    def __getitem__(self, index: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__.lower()} is one picture or clip: its frames are in .images and .numpy")

    def __repr__(self) -> str:
        frames, height, width, _ = self._frames.shape
        return f"<cosmos3 {type(self).__name__.lower()}: {frames} frame{'s' * (frames > 1)} of {width}x{height}>"


class Result(Preview):
    """A finished picture or clip, and its sound if it was asked for."""

    def __init__(
        self,
        run: Generation,
        frames: Tensor,
        processes: Processes,
        embedded: dict[str, Any],
        sound: Sound | None = None,
    ):
        super().__init__(frames, processes)  # nothing of the run itself is kept: it holds memory of the device
        self._acted = run.actions() if run.inputs.actions else None
        self._actions = self._acted if run.request.predicts_actions else None
        self._request, self._embedded, self._sound = run.request, embedded, sound
        self._manifest = as_json(run.manifest())
        self._latents = {name: plain(tensor) for name, tensor in run.latents().items()}

    @property
    def manifest(self) -> dict[str, Any]:
        """What was done, as `cosmos3 run` writes it beside its output: every value of the request and where it is from,
        kernels, versions, seconds by stage, peak memory in bytes."""
        return deepcopy(self._manifest)

    @property
    def latents(self) -> Tensor:
        """A copy of the final latents of the picture or clip: fp32 [C, T, h, w] on the host, h and w in 16 pixels, T in
        4 frames after the first."""
        return plain(self._latents["final.vision"])

    @property
    def noise(self) -> Tensor | list[Tensor]:
        """A copy of the initial noise, in the shape of `latents`: another run takes it as `noise`. Of several latents a
        list: the video's, then the sound's [C, S] or the actions' [T, C]."""
        noise = [plain(tensor) for name, tensor in self._latents.items() if name.startswith("noise.")]
        return noise if len(noise) > 1 else noise[0]

    @property
    def sound(self) -> np.ndarray | None:
        """fp32 [2, N] in [-1, 1], left and right; None where `sound` was not asked for."""
        return None if self._sound is None else self._sound.samples

    @property
    def sound_rate(self) -> int | None:
        """Samples per second of `sound`."""
        return None if self._sound is None else self._sound.rate

    @property
    def actions(self) -> np.ndarray | None:
        """A copy of the actions that were predicted: fp64 [T, D], one row for each, in the units of `action_stats`,
        else in the model's. None where the task predicts none. `manifest["actions"]` says what a row is."""
        return None if self._actions is None else self._actions[0].copy()

    @property
    def seed(self) -> int | None:
        """Of the noise; None where all of it was given."""
        seed: int | None = self._manifest["request"]["seed"]
        return seed

    @property
    def request(self) -> dict[str, Any]:
        """Every field of the request, by name: `pipe(**result.request)` makes the same again, of given noise with
        `noise=result.noise`, without which it is refused."""
        return deepcopy(dict(self._manifest["request"]))

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._request.fps

    @bound
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        manifest: str | os.PathLike[str] | None = None,
        latents: str | os.PathLike[str] | None = None,
        sound: str | os.PathLike[str] | None = None,
        plot: str | os.PathLike[str] | None = None,
        sheet: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a picture as .png, a clip as .mp4 with its sound, or the sound alone as .wav or .flac, read it back,
        and return its path. The manifest goes into the file and beside it, to PATH.json or `manifest`; with `latents`
        the noise and the latents go to that file, for `noise=`, and with `sound` the sound to that one, too. `plot` and
        `sheet` are a .png each: the actions, predicted or given, drawn by matplotlib, and frames of the clip with their
        times. What is at these paths is refused, or with `overwrite` replaced if all went well. Raises InputError for
        what cannot be written, and RunError for a picture of one flat colour and for a file that does not read back."""
        check_switch("overwrite", overwrite)
        names = [None if one is None else path_of("path", one) for one in (manifest, latents, sound, plot, sheet)]
        return self._processes.by_first(lambda: self._saved(path_of("path", path), names, overwrite))

    def _saved(self, path: str, names: Sequence[str | None], overwrite: bool) -> Path:
        noise, model = self._manifest.get("latents", {}).get("file"), self._manifest["model"]["name"]
        paths = outputs.checked_paths(
            path,
            self._request,
            manifest=names[0],
            latents=names[1],
            sound=names[2],
            plot=names[3],
            sheet=names[4],
            read=(noise,),
            model=model,
            overwrite=overwrite,
        )
        with paths.alone():
            self._write(paths)
        return paths.output

    def _write(self, paths: Paths) -> None:
        """The files, whose names are this thread's own."""
        actions = self._acted
        made = Made(lambda: self.numpy, lambda: self._sound, actions and (lambda: actions))
        outputs.write(paths, made, self._request, self._embedded, lambda: self._manifest, lambda: self._latents)


def plain(tensor: Tensor) -> Tensor:
    """A copy that its owner may change, whatever mode of torch's made it or holds here."""
    import torch

    with torch.inference_mode(False):
        return tensor.clone()
