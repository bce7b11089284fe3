"""The commands and their options, each declared once, and the entry point that runs them."""

# Annotations here are read at run time: they declare the options.
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from scvi_perturb._core import LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb._version import versions
from scvi_perturb.registry import registry

#: Instead of a column: do not use what would be found.
OFF: Final = "none"
#: Commands of this package; others are entry points of the group `scvi_perturb.commands`.
OWN: Final = ("benchmark", "check", "demo", "shard")

_COLUMNS = Group(
    "Columns of the screen", help=f"Left out, a column is looked for; '{OFF}' uses no such column."
)


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line and says what to do."""


@Parameter(name="*", group=_COLUMNS)
@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenOptions:
    """Where a file keeps what; None is to be found out.

    Parameters
    ----------
    perturbation_key
        Column of perturbations: 'A', 'A+B', the control.
    control
        Labels of control cells, in that column.
    context_keys
        Columns of the context, such as cell type, donor.
    layer
        Layer of the raw counts.
    dose_key
        Column of doses.
    batch_key
        Column of technical batches.
    library_key
        Column of total counts over all genes, where the file holds only some of them.
    """

    perturbation_key: str | None = None
    control: tuple[str, ...] | None = None
    context_keys: tuple[str, ...] | None = None
    layer: str | None = None
    dose_key: str | None = None
    batch_key: str | None = None
    library_key: str | None = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo is asked to do.

    Parameters
    ----------
    data
        Screen, .h5ad; else one is simulated.
    out
        Folder where results are written.
    seed
        Seed of every random choice.
    held_out
        Combinations ('A+B') or contexts (such as a cell type) to hold out; else the hardest
        question that the screen can answer.
    max_epochs
        Epochs of stage one at most; else the model's choice.
    n_steps
        Steps of stage two at most; else the model's choice.
    max_cells
        A larger screen is cut down to so many cells.
    max_genes
        A larger screen is cut down to so many genes.
    """

    data: Path | None = None
    out: Annotated[Path, Parameter(name=["--out", "--output"])] = Path("demo_out")
    seed: NonNegativeInt = 0
    held_out: tuple[str, ...] | None = None
    max_epochs: PositiveInt | None = None
    n_steps: PositiveInt | None = None
    max_cells: PositiveInt = 20_000
    max_genes: PositiveInt = 5_000
    screen: ScreenOptions = ScreenOptions()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """What of a study's file is overruled; None is what the file says.

    Parameters
    ----------
    out
        Folder where results are written; else as in the study.
    workers
        Number of processes; else as in the study.
    seeds
        Seeds of splits and methods; else as in the study.
    max_folds
        At most so many folds a task, for a quick look.
    fresh
        Do everything anew.
    backend
        Processes of this machine, or a cluster by ray.
    """

    out: Path | None = None
    workers: PositiveInt | None = None
    seeds: tuple[NonNegativeInt, ...] | None = None
    max_folds: PositiveInt | None = None
    fresh: bool = False
    backend: Literal["processes", "ray"] = "processes"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """How shards are written.

    Parameters
    ----------
    layer
        Layer of the raw counts; else X.
    in_order
        Keep the order of the cells; else it is random, which is better for training.
    buffer
        Cells in memory at a time.
    seed
        Seed of the order.
    overwrite
        Replace shards that are there.
    """

    layer: str | None = None
    in_order: bool = False
    buffer: PositiveInt = 65_536
    seed: NonNegativeInt = 0
    overwrite: bool = False


def check(file: Path, /, *, screen: ScreenOptions = ScreenOptions()) -> int:
    """Look a screen over: what was found in it, what is wrong with it.

    Exit code 0: no problem; 1: problems; 2: not readable.

    Parameters
    ----------
    file
        Screen, .h5ad.
    """
    from rich.console import Console

    from scvi_perturb.benchmark.runner import quiet
    from scvi_perturb.cli._screen import open_screen
    from scvi_perturb.data.reader import read_screen
    from scvi_perturb.pp import validate

    console = Console()
    with quiet():
        found = open_screen(read_screen(file), screen)
        report = validate(found.adata, keys=found.keys)
    for line in (*found.notes, *str(report).splitlines()):
        console.print(line, highlight=False, markup=False)
    return 0 if report.ok else 1


def demo(*, options: DemoOptions = DemoOptions()) -> None:
    """Train on a screen, predict what was held out, compare with simple predictors.

    The prediction is compared with what was measured, too. Without --data the screen is simulated.
    """
    from rich.console import Console

    from scvi_perturb.cli._demo import run_demo

    run_demo(options, Console())


def benchmark(study: Path, /, *, options: BenchmarkOptions = BenchmarkOptions()) -> int:
    """Compare models with trivial predictions and with a replicate, as a file says.

    See the page on benchmarking. What is done already is not done again. Exit code 0: done; 1:
    some method failed; 2: cannot be done; 130: interrupted.

    Parameters
    ----------
    study
        Study, .toml.
    """
    from rich.console import Console

    from scvi_perturb.cli._benchmark import run_benchmark

    return run_benchmark(study, options, Console())


def shard(file: Path, out: Path, /, *, options: ShardOptions = ShardOptions()) -> None:
    """Write a screen as shards of zarr, for training on more cells than fit into memory.

    The folder holds obs, var, uns and the counts. It appears when it is complete.

    Parameters
    ----------
    file
        Screen, .h5ad.
    out
        Folder to write.
    """
    from rich.console import Console

    from scvi_perturb.cli._shard import run_shard

    run_shard(file, out, options, Console())


def _app(command: str) -> App:
    """Return the commands; of other packages, only the command that is asked for is loaded.

    Raises
    ------
    UsageError
        If that one cannot be loaded.
    """
    app = App(
        name="scvi-perturb",
        help="Perturbation-response models for single-cell screens.",
        version=lambda: "\n".join(f"{name} {number}" for name, number in versions().items()),
        version_format="plaintext",
        help_format="markdown",
        default_parameter=Parameter(negative=(), consume_multiple=(1, None), allow_repeating=True),
        suppress_keyboard_interrupt=False,
    )
    commands = registry("commands")
    for name in commands:
        if name in OWN or name == command:
            try:
                app.command(commands[name], name=name)
            except ImportError as error:
                msg = f"{error}. Update or remove that package."
                raise UsageError(msg) from error
        else:
            app.command(App(name=name, help="A command of another package."))
    return app


#: What a user can mend; anything else is a fault of ours and is shown in full.
_FORESEEN: Final = (UsageError, SchemaError, LeakError, UnknownPerturbationError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: done; 1: problems found; 2: it cannot be done, and one line says why; 130: interrupted.
    """
    given = sys.argv[1:] if arguments is None else [*arguments]
    try:
        if not given:
            msg = "Name a command; see scvi-perturb --help."
            raise UsageError(msg)
        app = _app(given[0])
        done = app(given, exit_on_error=False, print_error=False, result_action="return_value")
        return int(done or 0)
    except CycloptsError as error:
        command = " ".join(("scvi-perturb", *(error.command_chain or ())))
        return _failed(f"{error} See {command} --help.")
    except _FORESEEN as error:
        return _failed(str(error))
    except KeyboardInterrupt as error:
        return _failed(f"interrupted; {error}" if str(error) else "interrupted.", code=130)


def _failed(message: str, *, code: int = 2) -> int:
    sys.stderr.write(f"scvi-perturb: {' '.join(message.split())}\n")
    return code
