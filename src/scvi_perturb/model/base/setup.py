"""Register a screen: which columns say what, and the names that may be asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scvi_perturb._core import CONTROL, SEPARATOR, Column, Key, SchemaError
from scvi_perturb._files import finished_files, write_text
from scvi_perturb._state import read_sealed, sealed
from scvi_perturb.data.condition import as_columns, as_label, harmonised_keys
from scvi_perturb.data.fields import (
    CountsField,
    LabelField,
    LibraryField,
    MuDataCountsField,
    MuDataLabelField,
    MuDataLibraryField,
    MuDataPerturbationField,
    PerturbationField,
)
from scvi_perturb.data.reader import read_rows
from scvi_perturb.data.screen import Screen, screen_keys

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from scvi.data.fields import BaseAnnDataField

    from scvi_perturb.data.reader import ScreenReader


def completed(adata: AnnData, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `setup_anndata`, those left out as `harmonize` wrote them down."""
    found = harmonised_keys(adata)
    control, contexts = given["control"], given["context_keys"]
    return {
        "layer": given["layer"],
        "perturbation_key": given["perturbation_key"]
        or found.get("perturbation", Column.PERTURBATION),
        "control": as_label(control) if control is not None else found.get("control", CONTROL),
        "dose_key": given["dose_key"] or found.get("dose"),
        "time_key": given["time_key"] or found.get("time"),
        "perturbation_type_key": given["perturbation_type_key"] or found.get("kind"),
        "context_keys": as_columns(contexts if contexts is not None else found.get("context")),
        "batch_key": given["batch_key"] or found.get("batch"),
        "library_key": given["library_key"] or found.get("library"),
        "separator": given["separator"] or found.get("separator", SEPARATOR),
    }


def screen_fields(arguments: dict[str, Any]) -> list[BaseAnnDataField]:
    """Return the fields of a screen of counts."""
    return [
        CountsField(arguments["layer"]),
        PerturbationField(screen_keys(arguments)),
        LabelField(Key.CONTEXT, arguments["context_keys"]),
        LabelField(Key.BATCH, as_columns(arguments["batch_key"])),
        LibraryField(Key.LIBRARY, arguments["library_key"]),
    ]


def mudata_screen_fields(arguments: dict[str, Any]) -> list[BaseAnnDataField]:
    """Return the fields of a screen of counts kept as a modality of MuData."""
    at = {"mod_key": arguments["rna_modality"], "mod_required": True}
    return [
        MuDataCountsField(arguments["layer"], **at),
        MuDataPerturbationField(screen_keys(arguments), **at),
        MuDataLabelField(Key.CONTEXT, arguments["context_keys"], **at),
        MuDataLabelField(Key.BATCH, as_columns(arguments["batch_key"]), **at),
        MuDataLibraryField(Key.LIBRARY, arguments["library_key"], **at),
    ]


#: Cells whose counts are compared with a registered library size.
N_COMPARED = 512


def check_training_cells(reader: ScreenReader, train: np.ndarray, screen: Screen) -> None:
    """Raise unless effects can be learned from the training cells.

    Raises `SchemaError`: When there is no control, in all or in one context; fewer than two treated
    cells; cells without counts; library sizes below the counts; or conditions the model was not
    made with.
    """
    condition, context = reader.codes[Key.CONDITION][train], reader.codes[Key.CONTEXT][train]
    is_control = condition == 0
    n_treated = int((~is_control).sum())
    if not is_control.any() or n_treated < 2:
        found = "no control cell" if not is_control.any() else f"{n_treated or 'no'} treated cell"
        msg = (
            f"The {len(train)} training cells hold {found}; at least one control and two treated "
            "cells are needed to learn effects."
        )
        raise SchemaError(msg)
    check_known_labels(reader, screen)
    alone = sorted(set(context[~is_control].tolist()) - set(context[is_control].tolist()))
    if alone:
        named = [" / ".join(screen.contexts[code]) for code in alone]
        msg = (
            f"No control cell among the training cells of {named}: what perturbations do there "
            "cannot be told from what the context is. Drop these cells, hold them out, or add "
            "controls."
        )
        raise SchemaError(msg)
    _check_library(reader, train)


def check_known_labels(reader: ScreenReader, screen: Screen) -> None:
    """Raise `SchemaError` if the data have labels that the model was not made with."""
    own, keys = Screen.from_registry(reader.registry), screen.keys
    conditions = [c.format(keys.control, keys.separator) for c in own.table.conditions]
    for key, column, n_known, labels in (
        (Key.CONDITION, keys.perturbation, len(screen.table), conditions),
        (Key.CONTEXT, " / ".join(keys.context), len(screen.contexts), own.contexts),
        (Key.BATCH, keys.batch, len(screen.batches), own.batches),
    ):
        codes = np.unique(reader.codes[key])
        new = [labels[code] for code in codes[codes >= n_known][:5]]
        if new:
            named = [x if isinstance(x, str) else " / ".join(x) for x in new]
            msg = (
                f"obs[{column!r}] holds {', '.join(map(repr, named))}, which the model was not "
                "made with, so it cannot be trained on these data. Make a new model of them."
            )
            raise SchemaError(msg)


def _check_library(reader: ScreenReader, train: np.ndarray) -> None:
    empty = int((reader.library_sizes() <= 0).sum())
    if empty:
        msg = f"{empty} cells have no counts; drop them (`scanpy.pp.filter_cells`) before setup."
        raise SchemaError(msg)
    if reader.library is None:
        return
    some = np.random.default_rng(0).permutation(train)[:N_COMPARED]
    counted = np.asarray(read_rows(reader.counts, np.sort(some)).sum(axis=1)).ravel()
    less = reader.library[np.sort(some)] < 0.99 * counted
    if less.any():
        msg = (
            f"The library size is below the sum of counts in {int(less.sum())} of {len(some)} "
            "cells. Register the total counts of each cell, not their logarithm or a size factor."
        )
        raise SchemaError(msg)


#: Ends of the names of files with the state of a run.
_STATES: Final = (".pt", ".ckpt", "n_steps.json")


def check_folder(folder: Path, run: dict[str, Any]) -> None:
    """Write down what a run is in its folder; raise when the folder is another run's.

    Raises `SchemaError`: When the folder holds a run with other data, split, seed or settings.
    """
    path = folder / "run.json"
    now = json.loads(json.dumps(run, default=str))
    names = [path.name for path in finished_files(folder, "*")]
    states = [name for name in names if name.endswith(_STATES)]
    if states and not path.exists():
        msg = (
            f"{folder} holds {', '.join(states)} and no run.json that says of which run. Name "
            "another `checkpoint_dir`, or empty this one to start anew."
        )
        raise SchemaError(msg)
    if path.exists():
        before = read_sealed(path.read_text(encoding="utf-8", errors="replace"), where=path)
        other = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if other:
            msg = (
                f"{folder} holds the state of another run, with other {', '.join(other)}. Name "
                "another `checkpoint_dir`, or empty this one to start anew."
            )
            raise SchemaError(msg)
        return
    write_text(path, sealed(now), make_folder=True)
