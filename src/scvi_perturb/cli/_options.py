"""What can be asked on the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias

from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "OFF",
    "BenchmarkOptions",
    "DemoOptions",
    "Options",
    "ScreenOptions",
    "UsageError",
    "parse",
]

#: Instead of a column: do not use what would be found.
OFF: Final = "none"

_COLUMNS: Final = f"Left out, the column is looked for; '{OFF}' uses no such column."


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenOptions:
    """Where a file keeps what; None is to be found out.

    Attributes
    ----------
    data
        File; None is the simulator.
    perturbation_key, dose_key, batch_key, library_key
        Columns of `obs`.
    control
        Labels of control cells.
    context_keys
        Columns of `obs` that say in what the perturbation acts.
    layer
        Layer of the counts.
    """

    data: Path | None = None
    perturbation_key: str | None = None
    control: tuple[str, ...] | None = None
    context_keys: tuple[str, ...] | None = None
    layer: str | None = None
    dose_key: str | None = None
    batch_key: str | None = None
    library_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo is asked to do.

    Attributes
    ----------
    screen
        Where the file keeps what.
    out
        Folder of results.
    seed
        Seed of every random choice.
    held_out
        Combinations or contexts to hold out; None chooses.
    max_epochs, n_steps
        Length of both stages of training; None is the model's choice.
    max_cells, max_genes
        Larger screens are cut down to this size.
    """

    screen: ScreenOptions
    out: Path
    seed: int = 0
    held_out: tuple[str, ...] | None = None
    max_epochs: int | None = None
    n_steps: int | None = None
    max_cells: int = 20_000
    max_genes: int = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """Which study is to be run, and what of its file is overruled; None is what the file says.

    Attributes
    ----------
    study
        File of the study.
    out
        Folder of results.
    workers
        Number of processes.
    seeds
        Seeds of splits and methods.
    max_folds
        At most this many folds of each task.
    fresh
        Make everything anew.
    backend
        Where trials run.
    """

    study: Path
    out: Path | None = None
    workers: int | None = None
    seeds: tuple[int, ...] | None = None
    max_folds: int | None = None
    fresh: bool = False
    backend: Literal["processes", "ray"] = "processes"


Options: TypeAlias = ScreenOptions | DemoOptions | BenchmarkOptions


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parse(arguments: Sequence[str] | None) -> tuple[str, Options]:
    """Return the command and its options; a wrong argument exits with code 2 and one line."""
    given = _parser().parse_args(arguments)
    values: dict[str, Any] = vars(given)
    command = values.pop("command")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if command == "benchmark":
        return command, BenchmarkOptions(**values)
    names = ScreenOptions.__dataclass_fields__
    screen = ScreenOptions(**{k: v for k, v in values.items() if k in names})
    if command == "check":
        return command, screen
    rest = {k: v for k, v in values.items() if k not in names}
    return command, DemoOptions(screen=screen, **rest)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scvi-perturb", description="Perturbation-response models for single-cell screens."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    check = commands.add_parser(
        "check",
        help="look a screen over: what was found in it, what is wrong with it",
        description="Look a screen over. Exit code 0: no problem; 1: problems; 2: not readable.",
        allow_abbrev=False,
    )
    check.add_argument("data", type=Path, metavar="FILE", help="screen, .h5ad")
    _add_screen(check)
    _add_benchmark(commands)
    return parser


def _add_benchmark(commands: argparse._SubParsersAction[_Parser]) -> None:
    benchmark = commands.add_parser(
        "benchmark",
        help="compare models with trivial predictions and with a replicate, as a file says",
        description=(
            "Compare methods on tasks as a study file says; see the page on benchmarking. What is "
            "done already is not done again. Exit code 0: done; 1: some method failed; 2: cannot "
            "be done; 130: interrupted."
        ),
        allow_abbrev=False,
    )
    benchmark.add_argument("study", type=Path, metavar="FILE", help="study, .toml")
    benchmark.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where results are written, else as in FILE"
    )
    benchmark.add_argument("--workers", type=_positive, help="processes, else as in FILE")
    benchmark.add_argument(
        "--seeds", type=_count, nargs="+", metavar="SEED", help="seeds, else as in FILE"
    )
    benchmark.add_argument(
        "--max-folds", type=_positive, help="at most so many folds a task, for a quick look"
    )
    benchmark.add_argument("--fresh", action="store_true", help="do everything anew")
    benchmark.add_argument(
        "--backend",
        choices=("processes", "ray"),
        default="processes",
        help="processes of this machine, or a cluster by ray (default: %(default)s)",
    )


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train on a screen, predict what was held out, compare with simple predictors",
        description=(
            "Train on a screen, predict conditions that were held out, and compare the prediction "
            "with what was measured and with simple predictors."
        ),
        allow_abbrev=False,
    )
    demo.add_argument("--data", type=Path, metavar="FILE", help="screen, .h5ad; else simulated")
    demo.add_argument(
        "--out",
        "--output",
        type=Path,
        default=Path("demo_out"),
        metavar="FOLDER",
        help="where results are written (default: %(default)s)",
    )
    demo.add_argument("--seed", type=_count, default=0, help="default: %(default)s")
    _add_screen(demo)
    demo.add_argument(
        "--held-out",
        nargs="+",
        metavar="NAME",
        help="combinations ('A+B') or contexts (such as a cell type) to hold out",
    )
    demo.add_argument("--max-epochs", type=_positive, help="epochs of stage one at most")
    demo.add_argument("--n-steps", type=_positive, help="steps of stage two at most")
    for name, most in (("cells", 20_000), ("genes", 5_000)):
        demo.add_argument(
            f"--max-{name}",
            type=_positive,
            default=most,
            help=f"a larger screen is cut down to so many {name} (default: %(default)s)",
        )


def _add_screen(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns of the screen", _COLUMNS)
    group.add_argument("--perturbation-key", metavar="COLUMN", help="'A', 'A+B', the control")
    group.add_argument("--control", nargs="+", metavar="LABEL", help="label of control cells")
    group.add_argument(
        "--context-keys", nargs="+", metavar="COLUMN", help="such as cell type, donor"
    )
    group.add_argument("--layer", help="layer of the raw counts")
    group.add_argument("--dose-key", metavar="COLUMN")
    group.add_argument("--batch-key", metavar="COLUMN")
    group.add_argument(
        "--library-key",
        metavar="COLUMN",
        help="total counts over all genes, where the file holds only some of them",
    )


def _count(text: str) -> int:
    return _whole(text, least=0)


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _whole(text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        msg = f"{text!r} is not a whole number of at least {least}"
        raise argparse.ArgumentTypeError(msg)
    return value
