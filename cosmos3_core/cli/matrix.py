"""`cosmos3 matrix`: writes docs/SUPPORT.md from the recipes, their records and the backends of the checkout."""

from __future__ import annotations

import click

from .options import Command


@click.command(cls=Command)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if the page is out of date.")
def matrix(check: bool) -> None:
    """Write docs/SUPPORT.md: what runs where, by what evidence."""
    from ..contract import RunError
    from ..evidence.fingerprint import ROOT
    from ..evidence.matrix import PAGE, render
    from ..files.atomic import atomic

    page, text = ROOT / PAGE, render(ROOT)
    if check:
        if not page.is_file() or page.read_text("utf-8") != text:
            raise RunError(str(PAGE), "it is out of date", "Type cosmos3 matrix")
        return
    with atomic(page) as temporary:
        temporary.write_text(text, "utf-8")
    click.echo(PAGE)
