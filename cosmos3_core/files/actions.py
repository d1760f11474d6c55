"""Tables of actions in: one row for each action, one column for each of its channels, as fp64 [T, D].

.json          a list of rows, or an object with `actions` and, if they are named, `channels` and `units`
.npy           an array
.npz           an array, alone or called actions or action
.safetensors   a tensor, alone or called actions or action
.csv           numbers between commas, under a line of names or none
.parquet       the column action or actions, of lists: a LeRobot episode, for which pyarrow is needed

In files of a robot's state they are called state or observation.state.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bounds import parse_json
from ..contract import InputError
from .sources import check_source

NAMES = ("actions", "action")
"""What the one of several arrays or columns is called that holds the actions."""
STATES = ("state", "observation.state")
"""What the one is called that holds the states of a robot."""
Names = tuple[str, ...]
LARGEST = 64 << 20
"""Bytes of a file: 64 channels of an hour at 30 rows a second are 55 MB in fp64."""
WIDEST, MOST = 4096, 1_000_000
"""Channels and rows of a table."""
EPISODE = "episode_index"
LISTED = 6
"""Episodes that a message lists."""
WHOLE = "Give a table of numbers: .json, .npy, .npz, .safetensors, .csv or .parquet"


@dataclass(frozen=True)
class Rows:
    """A table of actions: `values` fp64 [T, D], all finite; the `channels`' names and `units` where the file has them;
    `episodes`, the number of each row's episode where the file says it; and `facts`, JSON: what was found."""

    values: np.ndarray
    channels: tuple[str, ...] | None = None
    episodes: np.ndarray | None = None
    facts: Mapping[str, Any] | None = None
    units: tuple[str, ...] | None = None

    def between(self, first: int, end: int, asked: str) -> Rows:
        """Rows from `first` to before `end`. Raises InputError where there are fewer, and for those of two episodes."""
        count = len(self.values)
        if not 0 <= first < end <= count:
            found = f"there are {count} rows"
            raise InputError(f"{asked}, rows {first} to {end}", found, f"Name rows from 0 to {count}")
        episodes = None if self.episodes is None else self.episodes[first:end]
        taken = replace(self, values=self.values[first:end], episodes=episodes)
        return replace(taken, facts={**(self.facts or {}), "rows": [first, end]})

    def check_one_episode(self, asked: str) -> None:
        """Raises InputError where the rows are of several episodes: between two, a robot is put back."""
        if self.episodes is None or len(np.unique(self.episodes)) == 1:
            return
        starts = [0, *(np.flatnonzero(np.diff(self.episodes)) + 1).tolist(), len(self.episodes)]
        first = (self.facts or {}).get("rows", [0])[0]  # rows are counted as in the file, also behind `between`
        spans = [f"{first + a} to {first + b}" for a, b in zip(starts[:LISTED], starts[1:], strict=False)]
        more = " ..." if len(starts) - 1 > LISTED else ""
        found = f"it holds {len(starts) - 1} episodes, in rows {', '.join(spans)}{more}"
        raise InputError(asked, found, "Name rows of one of them as `action_rows`, such as [0, 16]")


def read_rows(path: Path, asked: str, names: Names = NAMES) -> Rows:
    """The table in a file of one of the kinds above; of several in it the one that has one of the `names`. `asked` is
    the file in messages. Raises InputError for a file that cannot be read, is no table of numbers, is too large, or
    holds NaN or infinity."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        found = f"tables of actions end in {', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"
        raise InputError(asked, found, WHOLE)
    check_source(path, asked, WHOLE)
    if (size := path.stat().st_size) > LARGEST:
        found = f"it has {size:,} bytes, and at most {LARGEST:,} are read"
        raise InputError(asked, found, "Cut out the rows to use")
    try:
        rows = reader(path, asked, names)
    except MemoryError:  # a header that lies
        raise InputError(asked, "it cannot be read (it says that it holds more than fits in memory)", WHOLE) from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, EOFError, RecursionError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition("\n")[0] or type(error).__name__
        raise InputError(asked, f"it cannot be read ({reason})", WHOLE) from None
    checked = rows_of(rows.values, asked)
    for words, what in ((rows.channels, "channels"), (rows.units, "units")):
        if words is not None and len(words) != checked.values.shape[1]:
            found = f"it names {len(words)} {what}, and its rows have {checked.values.shape[1]} channels"
            raise InputError(asked, found, "Give one name for each channel")
    count, width = checked.values.shape
    return replace(rows, values=checked.values, facts={"file": str(path), "shape": [count, width]})


def rows_of(values: Any, asked: str) -> Rows:
    """A table that is at hand as lists or an array. Raises InputError as `read_rows`."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.zeros((), dtype=object)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        what = f"of shape {list(array.shape)}" if array.dtype.kind in "fiu" else "not of numbers alone"
        found = "its rows are of several lengths" if _ragged(values) else f"it is {what}"
        raise InputError(asked, found, "Give rows of equally many numbers, such as [[0.1, 0.2], [0.3, 0.4]]")
    if array.shape[0] > MOST or array.shape[1] > WIDEST:
        found = f"it is of shape {list(array.shape)}, and {MOST:,} rows of {WIDEST:,} are the most that are read"
        raise InputError(asked, found, "Cut out the rows to use")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        row, channel = np.argwhere(~np.isfinite(array))[0].tolist()
        found = f"row {row}, channel {channel} is {array[row, channel]}"
        raise InputError(asked, found, "Fill such gaps before: a robot would move by them")
    return Rows(array)


def _ragged(values: Any) -> bool:
    """Whether these are lists of several lengths."""
    lengths = {len(row) for row in values if isinstance(row, list | tuple)} if isinstance(values, list | tuple) else ()
    return len(lengths) > 1


def _json(path: Path, asked: str, names: Names) -> Rows:
    about = value = parse_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(value, dict):
        return Rows(rows_of(value, asked).values)
    if (name := next((name for name in names if name in value), None)) is None:
        raise ValueError(f"it is an object without {names[0]}")
    values = rows_of(value[name], asked).values
    if about.get("shape", list(values.shape)) != list(values.shape):
        raise ValueError(f"its rows are of shape {list(values.shape)}, and its shape says otherwise")
    return Rows(values, _words(about, "channels"), units=_words(about, "units"))


def _words(about: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """What a file says of each channel, if it does."""
    words = about.get(key)
    if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError(f"its {key} are no list of names")
    return None if words is None else tuple(words)


def _npy(path: Path, asked: str, names: Names) -> Rows:
    with path.open("rb") as file:
        return Rows(np.load(file, allow_pickle=False))


def _npz(path: Path, asked: str, names: Names) -> Rows:
    import zipfile

    try:
        if (size := sum(entry.file_size for entry in zipfile.ZipFile(path).infolist())) > LARGEST:
            raise ValueError(f"it unpacks to {size:,} bytes, and at most {LARGEST:,} are read")
        with np.load(path, allow_pickle=False) as archive:
            return Rows(archive[_one_of(archive.files, names)])
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None


def _safetensors(path: Path, asked: str, names: Names) -> Rows:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            values = file.get_tensor(_one_of(file.keys(), names)).double().numpy()
            about = parse_json((file.metadata() or {}).get("about", "{}"))
            about = about if isinstance(about, dict) else {}
            return Rows(values, _words(about, "channels"), units=_words(about, "units"))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _csv(path: Path, asked: str, names: Names) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if not lines:
        raise ValueError("it is empty")
    named = not any(_is_number(cell) for cell in lines[0])
    titles = tuple(cell.strip() for cell in lines.pop(0)) if named else None
    for at, line in enumerate(lines):
        if wrong := next((cell for cell in line if not _is_number(cell)), None):
            raise ValueError(f"row {at} has {wrong.strip()[:40]!r} where a number is wanted")
    return Rows(rows_of([[float(cell) for cell in line] for line in lines], asked).values, titles)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_0 is Python's way to write 10


def _parquet(path: Path, asked: str, names: Names) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        found, next_step = "reading .parquet takes pyarrow, which is not installed", "pip install pyarrow"
        raise InputError(asked, found, f"{next_step}, or save the table as .npy") from None
    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        name = next((name for name in names if name in columns), None)
        if name is None:
            raise ValueError(f"it has no column {names[-1]}, and has {', '.join(columns[:8])}")
        if (size := file.metadata.num_rows) > MOST:
            raise ValueError(f"it has {size:,} rows, and at most {MOST:,} are read")
        wanted = [name, *(column for column in (EPISODE,) if column in columns)]
        table = file.read(columns=wanted).to_pydict()
    except ArrowException as error:
        raise ValueError(str(error)) from None
    episodes = np.asarray(table[EPISODE]) if EPISODE in table else None
    return Rows(rows_of(table[name], asked).values, episodes=episodes)


READERS: dict[str, Callable[[Path, str, Names], Rows]] = {
    ".json": _json,
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _one_of(found: list[str], names: Names) -> str:
    """The array of one of the names among those of a file."""
    if len(found) == 1:
        return found[0]
    if (name := next((name for name in names if name in found), None)) is None:
        raise ValueError(f"it holds {len(found)} arrays, and none is called {names[0]}: {', '.join(sorted(found)[:8])}")
    return name
