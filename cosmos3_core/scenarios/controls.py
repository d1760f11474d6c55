"""Controls that are made of a clip, edges and blur, and clips that are too short; docs/model.md, section 4.9.

Both go frame by frame over uint8 pixels at the size of the output. The numbers are those of NVIDIA's framework
(5eee9ed5) and vllm-omni 0.32.0rc1.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..contract import InputError
from .transfer import BLURS, EDGES

if TYPE_CHECKING:
    import numpy as np

DIAMETER, COLOUR, SPACE, AT = 30, 150, 100, 720
"""The bilateral filter's diameter and sigmas for a frame whose longer side has this many pixels."""


def opencv(hint: str) -> ModuleType:
    """OpenCV. Raises InputError where it is not installed."""
    try:
        import cv2
    except ImportError:
        found = "OpenCV makes it of the input clip, and it is not installed"
        next_step = f"pip install opencv-python-headless, or give `{hint}` a clip of its own"
        raise InputError(f"`{hint}` auto", found, next_step, hint) from None
    return cv2


def derived(hint: str, pixels: Tensor, preset: str) -> Tensor:
    """The control clip of a clip: both fp32 [3, F, H, W] in [-1, 1], of whole pixel values. Raises InputError without
    OpenCV."""
    cv2, make = opencv(hint), {"edge": _edges, "blur": _blurred}[hint]
    frames = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    made = torch.stack([torch.from_numpy(make(cv2, frame.numpy(), preset)) for frame in frames])
    return (made.float() / 127.5 - 1).permute(3, 0, 1, 2).contiguous()


def _edges(cv2: ModuleType, frame: np.ndarray, preset: str) -> np.ndarray:
    """Canny's edges, white on black, uint8 [H, W, 3]."""
    edges: np.ndarray = cv2.Canny(frame, *EDGES[preset])
    return edges[..., None].repeat(3, axis=2)


def _blurred(cv2: ModuleType, frame: np.ndarray, preset: str) -> np.ndarray:
    """uint8 [H, W, 3]. The preset "none" leaves the frame as it is."""
    if preset == "none":
        return frame
    size, (before, after) = frame.shape[1::-1], BLURS[preset]
    blurred = _shrunk(cv2, frame, before, cv2.INTER_AREA)
    scale = max(blurred.shape[:2]) / AT
    diameter = max(1, round(DIAMETER * scale))
    diameter += 1 - diameter % 2
    blurred = cv2.bilateralFilter(blurred, diameter, max(1.0, COLOUR * scale), max(1.0, SPACE * scale))
    if before > 1:
        blurred = cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR)
    if after > 1:
        small = _shrunk(cv2, blurred, after, cv2.INTER_CUBIC)
        blurred = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
    return blurred


def _shrunk(cv2: ModuleType, frame: np.ndarray, factor: int, interpolation: int) -> np.ndarray:
    if factor == 1:
        return frame
    height, width = frame.shape[:2]
    return cv2.resize(frame, (max(1, width // factor), max(1, height // factor)), interpolation=interpolation)


def bounced(frames: list[int], wanted: int) -> list[int]:
    """The frames of a clip, and the same backwards and forwards again until there are so many; a single one stays. The
    frame at which it turns comes twice, as in all engines."""
    while len(frames) < wanted:
        more = min(len(frames) - 1, wanted - len(frames)) or 1
        frames = frames + frames[::-1][:more]
    return frames
