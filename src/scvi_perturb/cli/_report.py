"""`scvi-perturb report`: a saved model on its screen, as one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark import study_report
from scvi_perturb.benchmark.runner import quiet
from scvi_perturb.cli._app import OFF, ScreenOptions, UsageError
from scvi_perturb.cli._predict import load_model, unknown_names_told
from scvi_perturb.cli._screen import PreparedScreen, open_screen, say, smaller, with_genes
from scvi_perturb.cli._train import RUN, SPLIT, one_thread, read_run
from scvi_perturb.data.reader import read_screen
from scvi_perturb.data.split.record import Split, held_out_names

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from scvi_perturb.cli._app import ReportOptions


@quiet()
def run_report(folder: Path, file: Path, options: ReportOptions, console: Console) -> None:
    """Write the report of a model; the file appears when it is complete.

    Raises `UsageError`: When the model, the screen, or what was asked, does not allow for it.
    """
    _check_output(folder, file, options.out)
    model = load_model(folder)
    if not (folder / RUN).is_file():
        msg = (
            f"{folder} has no {RUN}, which says how the screen was read; expected a folder that "
            "scvi-perturb train wrote. In Python: scvi_perturb.benchmark.study_report."
        )
        raise UsageError(msg)
    run = read_run(folder)
    split = Split.from_json(folder / SPLIT) if (folder / SPLIT).is_file() else None
    if split is None and not options.conditions:
        msg = "Nothing was held out when this model was trained; name --conditions to show."
        raise UsageError(msg)
    screen = _screen_of_training(file, run, split)
    say(console, f"Screen: {file.name}, {screen.adata.n_obs:,} cells, {screen.adata.n_vars} genes")
    if split is not None:
        say(console, f"Held out: {', '.join(held_out_names(split)[:8])}; comparing predictions")
    with one_thread(), unknown_names_told(), console.status("Predicting and comparing"):
        study_report(
            model,
            screen.adata,
            path=options.out,
            split=split,
            conditions=options.conditions,
            interval=options.interval,
            seed=options.seed,
            details=_details(folder, file, run),
        )
    say(console, f"Written: {options.out}; open it in a browser.")


def _check_output(folder: Path, file: Path, out: Path) -> None:
    """Raise where the report cannot be written as asked, before anything takes time."""
    if out.suffix != ".html":
        msg = f"--out {out}: expected a name that ends in .html."
        raise UsageError(msg)
    if out.resolve() in (folder.resolve(), file.resolve()) or out.is_dir():
        msg = f"--out {out} is a folder, or read by the same command; name another file."
        raise UsageError(msg)
    if not out.parent.is_dir():
        msg = f"--out {out}: there is no folder {out.parent}; make it first."
        raise UsageError(msg)


def _screen_of_training(file: Path, run: dict[str, Any], split: Split | None) -> PreparedScreen:
    """Return the screen as `train` read it.

    Raises `SchemaError`: If it is another.
    """
    given = run["options"]
    options = ScreenOptions(
        control=None if run["control"] is None else tuple(run["control"]),
        context_keys=tuple(run["context_keys"]) or (OFF,),
        layer=run["layer"],
        batch_key=run["batch_key"] or OFF,
        # Where genes were chosen, library sizes are those of all genes, or of the column.
        library_key=None if given["max_genes"] else run["library_key"] or OFF,
    )
    screen = open_screen(read_screen(file), options, run["columns"])
    if given["max_cells"] is not None:
        screen = smaller(screen, given["max_cells"], run["seed"])
    if given["max_genes"] is not None:
        train = np.arange(screen.adata.n_obs) if split is None else split.train
        screen = with_genes(screen, given["max_genes"], train)
    found = screen.adata.n_obs, screen.adata.n_vars
    expected = run["data"]["n_cells"], run["data"]["n_genes"]
    if found != expected:
        msg = (
            f"{file.name} gives {found[0]:,} cells and {found[1]:,} genes; the model was trained "
            f"on {expected[0]:,} and {expected[1]:,}, of {run['data']['file']}. Name that file."
        )
        raise SchemaError(msg)
    return screen


def _details(folder: Path, file: Path, run: dict[str, Any]) -> dict[str, str]:
    """Return what the report says of where model and screen came from."""
    told = {key: value for key, value in run["options"].items() if value not in (None, False)}
    options = ", ".join(f"{key} {_words(value)}" for key, value in told.items())
    columns = ", ".join(f"{field}: {column}" for field, column in run["columns"].items())
    return {
        "screen": file.name,
        "folder of the model": folder.name,
        "columns": columns,
        "options of training": options,
        "notes of training": "; ".join(run["notes"]),
        "version that trained": run["versions"]["scvi-perturb"],
    }


def _words(value: Any) -> str:  # noqa: ANN401
    """Return an option; of files, their names."""
    many = value if isinstance(value, list) else [value]
    return " ".join(str(one).rpartition("/")[2] for one in many)
