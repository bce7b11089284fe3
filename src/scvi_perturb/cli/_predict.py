"""`scvi-perturb predict`: effects and cells from a saved model."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from scvi_perturb._core import UnknownPerturbationError
from scvi_perturb._files import write_anndata, write_table
from scvi_perturb.benchmark.runner import quiet
from scvi_perturb.cli._app import UsageError
from scvi_perturb.cli._benchmark import WIDE
from scvi_perturb.cli._screen import open_controls, say
from scvi_perturb.cli._train import RUN, named_model, one_thread, read_run, read_table
from scvi_perturb.data.reader import read_screen
from scvi_perturb.model.base.saving import checked_manifest
from scvi_perturb.tl import effects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

    from scvi_perturb.cli._app import PredictOptions
    from scvi_perturb.model.base.model import PerturbationModel

_EFFECTS: Final = (".h5ad", ".zarr", ".csv", ".parquet")
_CELLS: Final = (".h5ad", ".zarr")
#: Genes named of each condition, and conditions printed.
_MOST_GENES, _MOST_ROWS = 4, 30


@quiet()
def run_predict(folder: Path, options: PredictOptions, console: Console) -> None:
    """Ask a model; each file appears when it is complete.

    Raises `UsageError`: When the model, or what was asked, does not allow for it.
    """
    asked = _asked(options)
    _check_outputs(folder, options)
    model = load_model(folder)
    reference = None
    if options.reference is not None:
        reference = _reference(folder, options.reference, console)
    common: dict[str, Any] = {
        "reference": reference,
        "n_samples": options.n_cells,
        "seed": options.seed,
    }
    with one_thread(), console.status("Predicting"):
        predicted = _predicted(model, asked, options.interval, common, console)
        if options.effects is not None:
            _write_effects(options.effects, predicted)
        if options.cells is not None:
            _write_cells(options.cells, model, asked, common)
    _show(predicted, options.interval, console)
    for path in (options.effects, options.cells):
        if path is not None:
            say(console, f"Written: {path}")
    if options.effects is None and options.cells is None:
        say(console, "Nothing was written; name --effects FILE or --cells FILE.")


def _asked(options: PredictOptions) -> list[str] | pd.DataFrame:
    """Return the request."""
    if (options.conditions is None) == (options.table is None):
        msg = "Say what to predict: either --conditions NAME ... or --table FILE."
        raise UsageError(msg)
    if options.table is not None:
        return read_table(options.table, "--table")
    return list(options.conditions or ())


def _check_outputs(folder: Path, options: PredictOptions) -> None:
    """Raise where a file cannot be written as asked, before anything takes time."""
    inputs = {
        path.resolve() for path in (folder, options.table, options.reference) if path is not None
    }
    taken: set[Path] = set()
    for flag, path, suffixes in (
        ("--effects", options.effects, _EFFECTS),
        ("--cells", options.cells, _CELLS),
    ):
        if path is None:
            continue
        if path.suffix not in suffixes:
            msg = f"{flag} {path}: expected a name that ends in {', '.join(suffixes)}."
            raise UsageError(msg)
        if path.resolve() in inputs | taken:
            msg = f"{flag} {path} is read, or written, by the same command; name another file."
            raise UsageError(msg)
        if not path.parent.is_dir():
            msg = f"{flag} {path}: there is no folder {path.parent}; make it first."
            raise UsageError(msg)
        taken.add(path.resolve())


def _reference(folder: Path, path: Path, console: Console) -> AnnData:
    """Return control cells, read as the screen of training was."""
    adata = read_screen(path)
    if not (folder / RUN).is_file():
        return adata
    run = read_run(folder)
    notes: list[str] = []
    control = None if run["control"] is None else tuple(run["control"])
    made = open_controls(adata, run["columns"], control=control, layer=run["layer"], notes=notes)
    for note in notes:
        say(console, f"Reference: {note}")
    return made


def _predicted(
    model: PerturbationModel,
    asked: list[str] | pd.DataFrame,
    interval: float,
    common: dict[str, Any],
    console: Console,
) -> AnnData:
    """Return effects, and print what the model warns of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        with unknown_names_told():
            predicted = model.predict(asked, interval=interval, **common)
    for message in dict.fromkeys(str(one.message) for one in told):
        say(console, f"Note: {message}")
    return predicted


@contextmanager
def unknown_names_told() -> Iterator[None]:
    """Say of an unknown perturbation what an option does about it."""
    try:
        yield
    except UnknownPerturbationError as error:
        line = str(error).partition(" Ask for a known perturbation")[0]
        msg = f"{line} Ask for a known one, or train with --features that cover this name."
        raise UsageError(msg) from error


def load_model(folder: Path) -> PerturbationModel:
    """Return a saved model, without data; raise `UsageError` if there is no folder."""
    if not folder.is_dir():
        found = f"{folder} is a file" if folder.is_file() else f"There is no folder {folder}"
        msg = f"{found}; expected the folder of a model that scvi-perturb train wrote."
        raise UsageError(msg)
    name = str(checked_manifest(folder)["model"])
    return named_model(name).load(folder, adata=False)


def _write_effects(path: Path, predicted: AnnData) -> None:
    if path.suffix in _CELLS:
        _write(path, predicted)
        return
    try:
        write_table(path, effects(predicted, n_genes=None))
    except ImportError as error:
        msg = f"--effects {path}: parquet needs pyarrow (pip install pyarrow), or name a .csv."
        raise UsageError(msg) from error


def _write_cells(
    path: Path,
    model: PerturbationModel,
    asked: list[str] | pd.DataFrame,
    common: dict[str, Any],
) -> None:
    if path.suffix == ".h5ad":
        model.sample(asked, path=path, **common).file.close()
    else:
        _write(path, model.sample(asked, **common))


def _write(path: Path, adata: AnnData) -> None:
    try:
        write_anndata(path, adata)
    except ValueError as error:  # a folder of something else
        raise UsageError(str(error)) from error


def _show(predicted: AnnData, interval: float, console: Console) -> None:
    """Print how sure the model is of each condition, and the genes that change most."""
    changed = (predicted.layers["lower"] > 0) | (predicted.layers["upper"] < 0)
    lfc = np.asarray(predicted.layers["lfc"])
    made = Table(title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("condition")
    made.add_column("support\n(1: as trained)", justify="right")
    made.add_column(f"genes changed\n({interval:.0%} interval)", justify="right")
    made.add_column("largest changes (natural log)")
    described = predicted.obs.loc[:, :"n_cells"].drop(columns="n_cells")
    for i in range(min(predicted.n_obs, _MOST_ROWS)):
        name, *rest = described.iloc[i].items()
        told = [f"{column} {value}" for column, value in rest if not pd.isna(value) and value != ""]
        title = ", ".join((str(name[1]), *told))
        order = np.argsort(-np.abs(lfc[i]), kind="stable")[:_MOST_GENES]
        genes = ", ".join(f"{predicted.var_names[g]} {lfc[i, g]:+.2f}" for g in order)
        support = f"{predicted.obs['support'].iloc[i]:.2f}"
        made.add_row(title, support, str(int(changed[i].sum())), genes)
    # A file is not bound to the width of a screen.
    wide = console if console.is_terminal else Console(file=console.file, width=WIDE)
    wide.print(made)
    if predicted.n_obs > _MOST_ROWS:
        say(console, f"and {predicted.n_obs - _MOST_ROWS} more conditions")
