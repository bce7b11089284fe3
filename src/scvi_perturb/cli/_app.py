"""The commands and their options, each declared once, and the entry point that runs them."""

# Annotations here are read at run time: they declare the options.
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Toml
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from scvi_perturb._core import LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb._version import versions
from scvi_perturb.registry import registry

#: Instead of a column: do not use what would be found.
OFF: Final = "none"
#: Commands of this package; others are entry points of the group `scvi_perturb.commands`.
OWN: Final = ("benchmark", "check", "demo", "predict", "report", "shard", "train")
#: Commands that read options from a file.
_CONFIGURED: Final = ("predict", "report", "train")

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
    context_keys: Annotated[
        tuple[str, ...] | None, Parameter(name=["--context-keys", "--context"])
    ] = None
    layer: str | None = None
    dose_key: str | None = None
    batch_key: Annotated[str | None, Parameter(name=["--batch-key", "--batch"])] = None
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


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What is trained, on which cells, and where it goes.

    Parameters
    ----------
    out
        Folder of the model to write.
    model
        HybridResidualModel, PerturbDiffusion, PerturbFlow or CausalPerturbVAE.
    split
        What is held out: a kind (unseen_combination, unseen_perturbation, unseen_context,
        context_transfer, dose, cells), or a split.json. Left out, a tenth of the cells validates.
    held_out
        Names to hold out: combinations ('A+B'), contexts, or perturbations that --features cover.
    features
        What is known of perturbations: gene sets (.gmt), or a table (.csv, .tsv) with one row a
        perturbation, its name first.
    max_epochs
        Epochs at most, where there are two stages of the first; else the model's choice.
    n_steps
        Steps of stage two at most; else the model's choice.
    batch_size
        Cells a batch; else the model's choice.
    seed
        Seed of every random choice.
    max_cells
        Cut a larger screen down to so many cells.
    max_genes
        Cut a larger screen down to so many genes, the most variable.
    checkpoints
        Folder for the state of the run: the same command goes on where it was interrupted.
    overwrite
        Replace the folder of a model.
    config
        Options, .toml: one key an option, as max_epochs = 20. The command line wins.
    """

    out: Annotated[Path, Parameter(name=["--out", "--output"])]
    model: str = "HybridResidualModel"
    split: str | None = None
    held_out: tuple[str, ...] | None = None
    features: tuple[Path, ...] | None = None
    max_epochs: PositiveInt | None = None
    n_steps: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    seed: NonNegativeInt = 0
    max_cells: PositiveInt | None = None
    max_genes: PositiveInt | None = None
    checkpoints: Path | None = None
    overwrite: bool = False
    config: Path | None = None
    screen: ScreenOptions = ScreenOptions()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """What is asked of a model, and where the answer goes.

    Parameters
    ----------
    conditions
        Perturbations and combinations: 'A' 'A+B'.
    table
        Conditions as a table (.csv, .tsv), one row each: perturbation, where the model knows
        them dose, time, contexts, batch, and n_cells to draw.
    reference
        Control cells to start from, such as those of a new donor (.h5ad, zarr); else the
        controls that the model was trained on.
    effects
        File for the effects with intervals: .h5ad, .zarr, or one row a gene as .csv, .parquet.
    cells
        File for drawn cells with integer counts: .h5ad, .zarr.
    n_cells
        Cells drawn of each condition.
    interval
        Coverage of the intervals, between 0 and 1.
    seed
        Seed of every random choice.
    config
        Options, .toml: one key an option, as n_cells = 200. The command line wins.
    """

    conditions: tuple[str, ...] | None = None
    table: Path | None = None
    reference: Path | None = None
    effects: Path | None = None
    cells: Path | None = None
    n_cells: PositiveInt = 500
    interval: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.9
    seed: NonNegativeInt = 0
    config: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What a report shows, and where it goes.

    Parameters
    ----------
    out
        File of the report to write, .html.
    conditions
        Perturbations and combinations to show: 'A' 'A+B'; else all that were held out.
    interval
        Coverage of the intervals, between 0 and 1.
    seed
        Seed of every random choice.
    config
        Options, .toml: one key an option, as interval = 0.8. The command line wins.
    """

    out: Annotated[Path, Parameter(name=["--out", "--output"])] = Path("report.html")
    conditions: tuple[str, ...] | None = None
    interval: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.9
    seed: NonNegativeInt = 0
    config: Path | None = None


def check(file: Path, /, *, screen: ScreenOptions = ScreenOptions()) -> int:
    """Look a screen over: what was found in it, what is wrong with it.

    Exit code 0: no problem; 1: problems; 2: not readable.

    ```
    scvi-perturb check screen.h5ad
    scvi-perturb check screen.h5ad --perturbation-key guide --control wt
    ```

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

    ```
    scvi-perturb demo
    scvi-perturb demo --data screen.h5ad --out results --held-out A+B
    ```
    """
    from rich.console import Console

    from scvi_perturb.cli._demo import run_demo

    run_demo(options, Console())


def benchmark(study: Path, /, *, options: BenchmarkOptions = BenchmarkOptions()) -> int:
    """Compare models with trivial predictions and with a replicate, as a file says.

    See the page on benchmarking. What is done already is not done again. Exit code 0: done; 1:
    some method failed; 2: cannot be done; 130: interrupted.

    ```
    scvi-perturb benchmark study.toml --workers 4
    scvi-perturb benchmark study.toml --max-folds 1 --out quick
    ```

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

    ```
    scvi-perturb shard screen.h5ad shards.zarr
    scvi-perturb shard screen.h5ad shards.zarr --layer counts --overwrite
    ```

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


def train(file: Path, /, *, options: TrainOptions) -> None:
    """Train a model on a screen and save it.

    The folder holds the model, the control cells it answers from, split.json and run.json. It
    appears when it is complete.

    ```
    scvi-perturb train screen.h5ad --out model_dir --split unseen_combination
    scvi-perturb train screen.h5ad --out model_dir --held-out IRF1 --features sets.gmt
    ```

    Parameters
    ----------
    file
        Screen, .h5ad or zarr.
    """
    from rich.console import Console

    from scvi_perturb.cli._train import run_train

    run_train(file, options, Console())


def predict(model: Path, /, *, options: PredictOptions = PredictOptions()) -> None:
    """Predict effects, and draw cells, of conditions that were measured or not.

    The model answers without the screen it was trained on.

    ```
    scvi-perturb predict model_dir --conditions "A+B" "C" --effects effects.h5ad
    scvi-perturb predict model_dir --table requests.csv --cells cells.h5ad --n-cells 200
    ```

    Parameters
    ----------
    model
        Folder of the model.
    """
    from rich.console import Console

    from scvi_perturb.cli._predict import run_predict

    run_predict(model, options, Console())


def report(model: Path, file: Path, /, *, options: ReportOptions = ReportOptions()) -> None:
    """Report what a saved model answers on its screen, and how sure that is, as one HTML file.

    What was held out is shown predicted against real, beside a replicate and trivial predictors.

    ```
    scvi-perturb report model_dir screen.h5ad
    scvi-perturb report model_dir screen.h5ad --conditions "A+B" "C" --out ab.html
    ```

    Parameters
    ----------
    model
        Folder of the model, from scvi-perturb train.
    file
        Screen that it was trained on, .h5ad or zarr.
    """
    from rich.console import Console

    from scvi_perturb.cli._report import run_report

    run_report(model, file, options, Console())


def _app(given: Sequence[str]) -> App:
    """Return the commands; of other packages, only the command that is asked for is loaded.

    Raises
    ------
    UsageError
        If that one cannot be loaded.
    """
    command = given[0]
    app = App(
        name="scvi-perturb",
        config=_config(given) if command in _CONFIGURED else None,
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


def _config(given: Sequence[str]) -> list[Toml]:
    """Return the last file of options that is named, if one is.

    Raises
    ------
    UsageError
        If there is no such file.
    """
    named = [after for one, after in pairwise((*given, "")) if one == "--config"]
    named += [one.removeprefix("--config=") for one in given if one.startswith("--config=")]
    if not named:
        return []
    if not Path(named[-1]).is_file():
        msg = f"--config {named[-1]}: there is no such file."
        raise UsageError(msg)
    return [Toml(named[-1], use_commands_as_keys=False, source=named[-1])]


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
        app = _app(given)
        done = app(given, exit_on_error=False, print_error=False, result_action="return_value")
        return int(done or 0)
    except CycloptsError as error:
        command = " ".join(("scvi-perturb", *(error.command_chain or ())))
        return _failed(f"{error} See {command} --help.")
    except _FORESEEN as error:
        return _failed(str(error))
    except KeyboardInterrupt as error:
        return _failed(f"interrupted; {error}" if str(error) else "interrupted.", code=130)


#: What messages of the library call what an option says here.
_IN_OPTIONS: Final = {
    "overwrite=True": "--overwrite",
    "`checkpoint_dir`": "--checkpoints",
    "`keys=ScreenKeys(...)`": "--dose-key",
    "SplitOptions.held_out: ": "",
    "Ask with a DataFrame that has": "Ask with --table, of a file that has",
}


def _failed(message: str, *, code: int = 2) -> int:
    for words, option in _IN_OPTIONS.items():
        message = message.replace(words, option)
    sys.stderr.write(f"scvi-perturb: {' '.join(message.split())}\n")
    return code
