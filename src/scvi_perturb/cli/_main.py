"""The entry point: run a command, say what went wrong in one line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console

from scvi_perturb._errors import LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark.runner import quiet
from scvi_perturb.cli._benchmark import benchmark
from scvi_perturb.cli._check import check
from scvi_perturb.cli._demo import demo
from scvi_perturb.cli._options import BenchmarkOptions, DemoOptions, UsageError, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

#: What a user can mend; anything else is a fault of ours and is shown in full.
_FORESEEN: Final = (UsageError, SchemaError, LeakError, UnknownPerturbationError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0 done, 1 problems found, 2 cannot be done."""
    _, options = parse(arguments)
    console = Console()
    try:
        with quiet():
            if isinstance(options, BenchmarkOptions):
                return benchmark(options, console)
            if isinstance(options, DemoOptions):
                demo(options, console)
                return 0
            return check(options, console)
    except _FORESEEN as error:
        message = " ".join(str(error).split())
        print(f"scvi-perturb: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "nothing was written."
        if isinstance(options, BenchmarkOptions):
            kept = "what was finished is kept; the same command goes on."
        print(f"scvi-perturb: interrupted; {kept}", file=sys.stderr)
        return 130
