"""Calling the command line in this process, as a user would type it."""

from __future__ import annotations

import sys

from cosmos3_core import cli


def cosmos3(capsys, monkeypatch, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `cosmos3 ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["cosmos3", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as exit:
        code = exit.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err
