"""`scvi-perturb check`: what is in a screen, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_perturb.cli._options import UsageError
from scvi_perturb.cli._screen import open_screen, read
from scvi_perturb.pp import validate

if TYPE_CHECKING:
    from rich.console import Console

    from scvi_perturb.cli._options import ScreenOptions

__all__ = ["check"]


def check(options: ScreenOptions, console: Console) -> int:
    """Print what was found; return 1 when there are problems, else 0.

    Raises
    ------
    UsageError
        When something that is needed cannot be found.
    """
    if options.data is None:
        msg = "Name a file to check."
        raise UsageError(msg)
    screen = open_screen(read(options.data), options)
    report = validate(screen.adata, context_keys=screen.contexts)
    for line in (*screen.notes, *str(report).splitlines()):
        console.print(line, highlight=False, markup=False)
    return 0 if report.ok else 1
