"""`scvi-perturb train`: from a screen to a saved model."""

from __future__ import annotations

import inspect
import io
import json
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pandas as pd
import torch

from scvi_perturb._core import CONTROL, SEPARATOR, UNS_KEY, Column, SchemaError
from scvi_perturb._files import read_json, write_text, writing_folder
from scvi_perturb._version import versions
from scvi_perturb.benchmark.runner import quiet
from scvi_perturb.cli._app import UsageError
from scvi_perturb.cli._held_out import hold_out
from scvi_perturb.cli._screen import open_screen, say, smaller, tell, with_genes
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.reader import read_screen
from scvi_perturb.data.split.kinds import split as make_split
from scvi_perturb.data.split.record import Split, SplitOptions, held_out_names
from scvi_perturb.features.genes import gene_set_membership, read_gmt
from scvi_perturb.features.store import PerturbationFeatures
from scvi_perturb.model.base.saving import MODEL_FILES
from scvi_perturb.registry import UnknownNameError, registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

    from scvi_perturb.cli._app import TrainOptions
    from scvi_perturb.cli._screen import PreparedScreen
    from scvi_perturb.model.base.model import PerturbationModel

ModelT = TypeVar("ModelT", bound="PerturbationModel")

SPLIT: Final = "split.json"
#: How the model came to be, and how its screen was read.
RUN: Final = "run.json"
_CONTEXT_KINDS: Final = ("context_transfer", "unseen_context")


@quiet()
def run_train(file: Path, options: TrainOptions, console: Console) -> None:
    """Train a model and save it; its folder appears when it is complete.

    Raises `UsageError`: When the screen, or what was asked, does not allow for it.
    """
    model_class = named_model(options.model)
    _check_lengths(model_class, options)
    with ExitStack() as stack:
        try:
            own = {*MODEL_FILES, SPLIT, RUN}
            folder = stack.enter_context(
                writing_folder(options.out, overwrite=options.overwrite, own=own)
            )
        except ValueError as error:  # a folder that is there
            msg = f"--out {error}"
            raise UsageError(msg) from error
        screen, split, features = _prepare(file, options, console)
        say(console, f"Training {options.model}")
        with _told_of_interruption(options.checkpoints), one_thread():
            model = fit(
                model_class,
                screen,
                split,
                seed=options.seed,
                progress=console.is_terminal,
                features=features,
                given={
                    "max_epochs": options.max_epochs,
                    "n_steps": options.n_steps,
                    "batch_size": options.batch_size,
                    "checkpoint_dir": options.checkpoints,
                },
            )
        model.save(folder, overwrite=True)
        if split is not None:
            split.to_json(folder / SPLIT)
        record = _record(file, screen, split, model, options)
        write_text(folder / RUN, json.dumps(record, indent=2) + "\n")
    say(console, f"The model is in {options.out}. Ask it:")
    asked = _example(screen, split, features)
    say(console, f"  scvi-perturb predict {options.out} --conditions {asked}")
    if split is not None:
        say(console, "See how good its predictions are:")
        say(console, f"  scvi-perturb report {options.out} {file}")


def named_model(name: str) -> type[PerturbationModel]:
    """Return the class of a model; raise `UsageError` with near names if there is none."""
    models = registry("models")
    try:
        found: type[PerturbationModel] = models[name]
    except UnknownNameError as error:
        msg = f"--model {name}: {error}"
        raise UsageError(msg) from error
    return found


def _check_lengths(model_class: type[PerturbationModel], options: TrainOptions) -> None:
    takes = inspect.signature(model_class.train).parameters
    if options.n_steps is not None and "n_steps" not in takes:
        msg = f"--n-steps: {options.model} has one stage; its length is --max-epochs."
        raise UsageError(msg)


def fit(
    model_class: type[ModelT],
    screen: PreparedScreen,
    split: Split | None,
    *,
    seed: int,
    progress: bool,
    given: Mapping[str, Any],
    features: PerturbationFeatures | None = None,
) -> ModelT:
    """Set a model up for a screen and train it; of `given` arguments None is the model's choice."""
    model_class.setup_anndata(
        screen.adata,
        context_keys=list(screen.contexts),
        batch_key=screen.batch,
        library_key=screen.library,
    )
    extra: dict[str, Any] = {} if features is None else {"features": features}
    model: ModelT = model_class(screen.adata, seed=seed, **extra)  # type: ignore[call-arg]
    chosen = {name: value for name, value in given.items() if value is not None}
    # What scvi-tools prints when it is interrupted says nothing to a user.
    with nullcontext() if progress else redirect_stdout(io.StringIO()):
        model.train(split=split, seed=seed, enable_progress_bar=progress, **chosen)
    return model


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: for networks this small others hardly help.

    On a machine with other work, threads that wait for each other take many times longer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _told_of_interruption(checkpoints: Path | None) -> Iterator[None]:
    """Say what is left when the training is interrupted."""
    try:
        yield
    except KeyboardInterrupt as error:
        msg = (
            "nothing was written."
            if checkpoints is None
            else f"the same command goes on from {checkpoints}."
        )
        raise KeyboardInterrupt(msg) from error
    except torch.OutOfMemoryError as error:
        msg = f"{error} On the command line: --batch-size, --max-genes."
        raise UsageError(msg) from error


def _prepare(
    file: Path, options: TrainOptions, console: Console
) -> tuple[PreparedScreen, Split | None, PerturbationFeatures | None]:
    """Return the screen, what of it is held out, and what is known of its perturbations."""
    screen = open_screen(read_screen(file), options.screen)
    if options.max_cells is not None:
        screen = smaller(screen, options.max_cells, options.seed)
    split, story = _split(screen, options)
    if options.max_genes is not None:
        train = range(screen.adata.n_obs) if split is None else split.train
        screen = with_genes(screen, options.max_genes, np.asarray(train))
        # A split belongs to the genes of its screen.
        split, story = _split(screen, options)
    tell(screen, file.name, console)
    say(console, story)
    features = None
    if options.features is not None:
        features = _features(options.features, screen)
        names = _perturbations(screen)
        without = [name for name in names if name not in features]
        told = f"; none of {', '.join(without[:8])}" if without else ""
        told += ", ..." if len(without) > 8 else ""
        n_known = f"{len(names) - len(without)} of {len(names)}"
        say(console, f"Features of {n_known} perturbations: {', '.join(features.modalities)}{told}")
    if split is not None:
        split.check(screen.adata)
        _check_answerable(screen, split, features, console)
    return screen, split, features


def _perturbations(screen: PreparedScreen) -> list[str]:
    """Return the names of single perturbations."""
    table = encode_obs(screen.adata.obs, screen.keys)[1]
    return list(dict.fromkeys(name for name, _ in table.components))


def _split(screen: PreparedScreen, options: TrainOptions) -> tuple[Split | None, str]:
    """Return what is asked to be held out, and that in words."""
    adata, asked, named = screen.adata, options.split, options.held_out
    if asked is None and named is None:
        return None, "Held out: nothing; a tenth of the cells tells when to stop"
    if asked is not None and asked.endswith(".json"):
        if named is not None:
            msg = "--held-out: the file of --split says what is held out; give one of them."
            raise UsageError(msg)
        made = Split.from_json(asked)
        return made, f"Held out by {asked}: {_counted(made)}"
    if asked is None:
        if not set(named or ()) <= set(_perturbations(screen)):
            return hold_out(adata, screen.contexts, named=named, seed=options.seed)
        asked = "unseen_perturbation"
    chosen = SplitOptions(held_out=named)
    if asked in _CONTEXT_KINDS:
        chosen = SplitOptions(context=named)
    try:
        made = make_split(adata, asked, keys=screen.keys, seed=options.seed, options=chosen)  # type: ignore[arg-type]
    except ValueError as error:
        msg = f"--split {asked}: {error}"
        raise UsageError(msg) from error
    return made, f"Held out, {asked.replace('_', ' ')}: {_counted(made)}"


def _counted(split: Split) -> str:
    names = held_out_names(split)
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    cells = f"{len(split.test):,} of {split.n_cells:,} cells"
    return f"{some} ({cells})" if names else cells


def _check_answerable(
    screen: PreparedScreen,
    split: Split,
    features: PerturbationFeatures | None,
    console: Console,
) -> None:
    """Tell of perturbations that will be unknown; raise if all that is held out is such."""
    if not split.held_out or "perturbation" not in split.held_out[0]:
        return
    known = _known(screen, split, features)
    parts = {name: name.split(SEPARATOR) for name in _held_out(split)}
    unknown = sorted({part for own in parts.values() for part in own} - known)
    if not unknown:
        return
    some = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
    msg = (
        f"{some}: no training cell has this perturbation, so the model cannot answer for it "
        "unless --features cover it: gene sets (.gmt), or a table (.csv)."
    )
    if not any(known.issuperset(own) for own in parts.values()):
        raise UsageError(msg)
    say(console, f"  {msg}")


def _held_out(split: Split) -> list[str]:
    """Return the labels of what is held out; where it is a perturbation, its combinations too."""
    return list(dict.fromkeys(row["perturbation"] for row in split.held_out))


def _known(screen: PreparedScreen, split: Split, features: PerturbationFeatures | None) -> set[str]:
    """Return the names that the model will know."""
    trained = screen.adata.obs[Column.PERTURBATION].iloc[split.train].unique()
    names = {part for label in trained for part in str(label).split(SEPARATOR)}
    return names if features is None else names.union(features.names)


def _features(files: tuple[Path, ...], screen: PreparedScreen) -> PerturbationFeatures:
    """Read gene sets and tables; gene sets tell of the screen's perturbations and its genes."""
    tables: dict[str, pd.DataFrame] = {}
    sets = [path for path in files if ".gmt" in path.suffixes]
    if sets:
        members = set().union(*(genes for path in sets for genes in read_gmt(path).values()))
        asked = dict.fromkeys((*_perturbations(screen), *screen.adata.var_names))
        names = [name for name in asked if name in members]
        if not names:
            msg = "--features: no perturbation and no gene of the screen is in the gene sets."
            raise UsageError(msg)
        tables["gene_sets"] = gene_set_membership(sets, names)
    for path in files:
        if path not in sets:
            table = read_table(path, "--features")
            tables[path.stem] = table.set_index(table.columns[0])
    return PerturbationFeatures(tables)


def read_table(path: Path, flag: str) -> pd.DataFrame:
    """Read a table of text, .csv or .tsv; raise `UsageError` if it is none."""
    if not path.is_file():
        msg = f"{flag} {path}: there is no such file."
        raise UsageError(msg)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    marks = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
    if suffix not in marks:
        msg = f"{flag} {path}: expected a table, .csv or .tsv."
        raise UsageError(msg)
    try:
        table = pd.read_csv(path, sep=marks[suffix])
    except (ValueError, OSError) as error:  # pandas' errors are of ValueError
        msg = f"{flag} {path} could not be read as a table: {error}"
        raise UsageError(msg) from error
    if table.empty:
        msg = f"{flag} {path}: the table has no rows."
        raise UsageError(msg)
    return table


def read_run(folder: Path) -> dict[str, Any]:
    """Return how the model of a folder came to be, as `train` wrote it.

    Raises `SchemaError`: If the file is not of this kind.
    """
    run = read_json(folder / RUN, kind="a record that `train` wrote")
    needed = {"columns", "control", "layer", "context_keys", "options", "data", "versions"}
    if not isinstance(run, dict) or run.get("format") != 1 or not needed <= run.keys():
        msg = (
            f"{folder / RUN} is not a record that this version of `train` wrote. Get the folder "
            "again, or train anew."
        )
        raise SchemaError(msg)
    return run


def _record(
    file: Path,
    screen: PreparedScreen,
    split: Split | None,
    model: PerturbationModel,
    options: TrainOptions,
) -> dict[str, Any]:
    """Return how the model came to be, in plain types."""
    adata = screen.adata
    uns = adata.uns[UNS_KEY]
    given = {k: v for k, v in asdict(options).items() if k not in ("screen", "config", "overwrite")}
    held_out = None
    if split is not None:
        held_out = {
            "kind": split.kind,
            "seed": split.seed,
            "conditions": [dict(row) for row in split.held_out],
        }
    return {
        "format": 1,
        "model": type(model).__name__,
        "data": {
            "file": file.name,
            "n_cells": adata.n_obs,
            "n_genes": adata.n_vars,
            "fingerprint": model.trained_on_["fingerprint"],
        },
        "columns": dict(uns["source"]),
        "control": options.screen.control,
        "layer": options.screen.layer,
        "context_keys": list(screen.contexts),
        "batch_key": screen.batch,
        "library_key": screen.library,
        "units": {"X": "counts", **uns["units"]},
        "split": held_out,
        "seed": options.seed,
        "options": json.loads(json.dumps(given, default=str)),
        "notes": list(screen.notes),
        "versions": versions(),
    }


def _example(
    screen: PreparedScreen, split: Split | None, features: PerturbationFeatures | None
) -> str:
    """Return what to ask for: some of what was held out and can be answered, or a condition."""
    names: list[str] = []
    if split is not None and split.held_out and "perturbation" in split.held_out[0]:
        known = _known(screen, split, features)
        names = [name for name in _held_out(split) if known.issuperset(name.split(SEPARATOR))]
    if not names:
        labels = screen.adata.obs[Column.PERTURBATION].astype(str)
        names = [name for name in labels.value_counts().index if name != CONTROL]
    return " ".join(f'"{name}"' for name in names[:2])
