"""What a backend declares is what it serves here: nothing passes because nothing of it was run."""

from __future__ import annotations

import pytest

from ...contract import Device
from ..subject import row_id


def _served(subject, kernel, dtype: str, format: str) -> str | None:
    """Why layers like Nano's are not served in this dtype and format, or None: by them the kit judges numbers, and a
    row that takes others alone would be judged hardly at all."""
    reasons = [subject.why_not(kernel, dtype, format, activation) for activation in ("silu", "relu2")]
    return None if None in reasons else reasons[-1]


def test_rows_serve_where_they_say(subject, kernel, device):
    """On an architecture that the row names, every dtype and format that it declares serves layers like Nano's. What
    serves elsewhere alone is a row of its own."""
    here = subject.present.arch
    if "*" not in kernel.arch and here not in kernel.arch:
        pytest.skip(f"written for {', '.join(kernel.arch)}, and this device is {here}")
    formats = subject.formats(kernel)
    reasons = {
        (dtype, format): _served(subject, kernel, dtype, format) for dtype in kernel.dtypes for format in formats
    }
    refused = {key: reason for key, reason in reasons.items() if reason is not None}
    assert len(refused) < len(reasons), (
        f"{row_id(kernel)} says that it serves {here}, and serves no layers like Nano's here: "
        f"{next(iter(refused.values()))}"
    )
    for dtype in kernel.dtypes:
        left = [refused.get((dtype, format)) for format in formats]
        assert None in left, f"{row_id(kernel)} declares {dtype}, and serves nothing in it here: {left[0]}"
    for format in formats:
        left = [refused.get((dtype, format)) for dtype in kernel.dtypes]
        assert None in left, f"{row_id(kernel)} declares {format}, and serves nothing in it here: {left[0]}"


def _known(subject) -> set[str]:
    """Architectures that the probe or the backend's data name, and those that a row names beside one of these."""
    known = {*subject.backend.tuning, *subject.backend.ceilings}
    known |= {device.arch for device in subject.backend.known}
    known |= {subject.present.arch} if isinstance(subject.device, Device) else set()
    for _ in subject.backend.kernels:
        known.update(*(row.arch for row in subject.backend.kernels if known & {*row.arch}))
    return known


def test_architectures_are_known(subject, kernel):
    """A misspelt one would leave the row out everywhere, without a word."""
    known = _known(subject)
    strange = [arch for arch in kernel.arch if arch not in known and arch != "*"]
    assert not strange or not known, (
        f"{row_id(kernel)} is written for {', '.join(strange)}, which nothing else names: known are "
        f"{', '.join(sorted(known))}, from probe(), from the backend's devices, ceilings and tuning, and from rows"
    )


def test_some_row_serves(subject, device):
    rows = subject.backend.kernels
    if not rows:
        pytest.skip("the backend has no row: eager torch does it all")
    reasons = [subject.why_not(row, row.dtypes[0]) for row in rows]
    assert None in reasons, f"none of {len(rows)} rows serves {subject.present.arch}: {reasons[0]}"
