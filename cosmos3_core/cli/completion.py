"""What a shell proposes for the value of an option. Each word list is asked for only when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the path of a file."""
    return [CompletionItem(incomplete, type="file")]


def one_of(words: Callable[[], Iterable[str]], otherwise: Complete | None = None) -> Complete:
    """Completes one of some words, or `otherwise` where none begins so."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in words() if word.startswith(incomplete)]
        return found if found or not otherwise else otherwise(context, parameter, incomplete)

    return complete


def folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def models() -> Iterator[str]:
    from ..checkpoint.repository import EMBEDDED, PUBLISHED, SHORT

    yield from (EMBEDDED, *SHORT, *PUBLISHED)


def profiles() -> tuple[str, ...]:
    """Whose defaults there are."""
    from ..scenarios.defaults import PROFILES

    return PROFILES


def backends() -> Iterable[str]:
    """The names of the installed backends."""
    from ..plan.discovery import installed

    return installed()


def known_devices() -> list[str]:
    """The devices that installed packages know."""
    from ..plan.known import ALL
    from ..plan.known import known_devices as known

    return [*(device.name for _, device in known(None, ())), ALL]


def dtypes() -> tuple[str, ...]:
    from ..plan.resolve import DTYPES

    return DTYPES


def ops() -> list[str]:
    from ..contract import OPS

    return [f"{op}=" for op in OPS]


def format_names() -> list[str]:
    from ..settle.questions import formats

    return [f"{op}{name}" for op in ("", "attention=") for name in formats()["names"]]


def written(what: str) -> list[str]:
    """The formats, or the dialects, that `cosmos3 quantize` writes."""
    from ..quant.dialects.written import WRITTEN

    return list(dict.fromkeys(row.format.name if what == "format" else row.dialect for row in WRITTEN))


def sizes() -> Iterator[str]:
    from ..scenarios.sizes import TIERS

    yield from (f"{tier}p" for tier in TIERS)


def settings() -> Iterator[str]:
    from ..scenarios.fields import FIELDS

    for name, field in FIELDS.items():
        yield from (f"{name}={choice}" for choice in field.kind.schema.get("enum", ("",)))
