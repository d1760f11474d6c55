"""`cosmos3 matrix`: what runs where, from the recipes, their records and the backends: of the checkout as the page
docs/SUPPORT.md, or of the installed packages."""

from __future__ import annotations

import click

from .options import Command
from .terminal import printable


@click.command(cls=Command)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if the page is out of date.")
@click.option("--installed", is_flag=True, help="Print the page of the packages installed here, in-tree or not.")
@click.pass_context
def matrix(context: click.Context, check: bool, installed: bool) -> None:
    """Write docs/SUPPORT.md: what runs where, by what evidence."""
    from ..contract import RunError
    from ..evidence.fingerprint import ROOT
    from ..evidence.matrix import PAGE, render, render_installed
    from ..files.atomic import atomic

    if installed and check:
        raise click.UsageError("--check is of the page of the checkout, and --installed of no file", context)
    if installed:
        return click.echo("\n".join(map(printable, render_installed(context.obj).splitlines())))
    page, text = ROOT / PAGE, render(ROOT)
    if check:
        if not page.is_file() or page.read_text("utf-8") != text:
            raise RunError(str(PAGE), "it is out of date", "Type cosmos3 matrix")
        return
    with atomic(page) as temporary:
        temporary.write_text(text, "utf-8")
    click.echo(PAGE)
