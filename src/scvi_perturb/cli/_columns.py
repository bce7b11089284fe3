"""Find out which columns of a screen hold what, and say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from scvi_perturb._constants import CONTROL, PERTURBATION_COLUMN, UNS_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.cli._options import OFF, UsageError
from scvi_perturb.pp import harmonize
from scvi_perturb.pp._layouts import LAYOUTS, source_columns

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb.cli._options import ScreenOptions

__all__ = ["UNKNOWN", "batch_column", "canonical", "context_columns", "library_column"]

_MOST_BATCHES: Final = 100
#: Labels of contexts that say nothing.
UNKNOWN: Final = frozenset(("", "unknown", "na", "nan", "none", "unassigned"))


def canonical(adata: AnnData, options: ScreenOptions, notes: list[str]) -> AnnData:
    """Return the screen with the columns of `pp.harmonize`; at least one cell is control."""
    columns = _sources(adata.obs, options)
    labels = adata.obs[columns["perturbation"]].astype(str)
    _check_given(adata.obs, labels, options)
    made = harmonize(adata, columns, control=options.control, copy=False)
    control = made.obs[PERTURBATION_COLUMN] == CONTROL
    if not control.any():
        msg = (
            f"No label of {columns['perturbation']!r} is recognised as control ({_some(labels)}); "
            "name it: --control LABEL."
        )
        raise UsageError(msg)
    if control.all():
        msg = f"All cells are control in {columns['perturbation']!r}; name the column of "
        raise UsageError(msg + "perturbations: --perturbation-key COLUMN.")
    met = sorted(set(labels[control.to_numpy()]))
    notes.append(f"perturbations: column {columns['perturbation']!r}; control: {', '.join(met)}")
    units = made.uns[UNS_KEY]["units"]
    for field in ("dose", "time", "perturbation_type"):
        if field in columns and field in made.obs:
            unit = f", {units[field]}" if units.get(field) else ""
            notes.append(f"{field.replace('_', ' ')}: column {columns[field]!r}{unit}")
    return made


def _check_given(obs: pd.DataFrame, labels: pd.Series[str], options: ScreenOptions) -> None:
    for label in options.control or ():
        if label not in set(labels):
            msg = f"--control {label}: no cell has this label; there are {_some(labels)}."
            raise UsageError(msg)
    if options.library_key not in (None, OFF):
        size = pd.to_numeric(obs[options.library_key], errors="coerce")
        if not (size > 0).all():
            msg = f"--library-key {options.library_key}: expected a number above 0 for every cell."
            raise UsageError(msg)


def _some(labels: pd.Series[str]) -> str:
    names = labels.value_counts().index.tolist()
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _sources(obs: pd.DataFrame, options: ScreenOptions) -> dict[str, str]:
    """Return the column of each canonical field."""
    given: dict[str, str | None] = {
        "perturbation": options.perturbation_key,
        "dose": options.dose_key,
        "batch": options.batch_key,
        "library_size": options.library_key,
    }
    for field, column in given.items():
        if column is not None and column not in obs and (column != OFF or field == "perturbation"):
            flag = {"library_size": "library"}.get(field, field)
            msg = f"--{flag}-key {column}: obs has no such column; it has {_list(obs)}."
            raise UsageError(msg)
    if options.perturbation_key is None:
        try:
            found = source_columns("auto", obs.columns)[1]
        except SchemaError:
            msg = (
                f"No column of perturbations is recognised; obs has {_list(obs)}. Name it: "
                "--perturbation-key COLUMN."
            )
            raise UsageError(msg) from None
    else:
        fields = LAYOUTS["canonical"].items()
        firsts = {field: [c for c in columns if c in obs] for field, columns in fields}
        found = {field: columns[0] for field, columns in firsts.items() if columns}
    found |= {field: column for field, column in given.items() if column is not None}
    if options.dose_key is not None:
        found.pop("dose_unit", None)
    return {field: column for field, column in found.items() if column != OFF}


def context_columns(adata: AnnData, options: ScreenOptions, notes: list[str]) -> tuple[str, ...]:
    """Return the columns of the context: those named, or `cell_type` where it varies."""
    if options.context_keys is not None:
        named = tuple(key for key in options.context_keys if key != OFF)
        absent = sorted(set(named) - set(adata.obs))
        if absent:
            msg = f"--context-keys {absent[0]}: obs has no such column; it has {_list(adata.obs)}."
            raise UsageError(msg)
    else:
        named = ("cell_type",) if "cell_type" in adata.obs else ()
    kept = tuple(key for key in named if adata.obs[key].nunique() > 1)
    for key in named:
        n = adata.obs[key].nunique()
        says = f"{n} labels" if key in kept else "one label only, not used"
        notes.append(f"context: column {key!r}, {says}")
    if not named:
        notes.append("context: none")
    return kept


def batch_column(adata: AnnData, options: ScreenOptions, notes: list[str]) -> str | None:
    """Return `batch` where it can be told apart from what was done to the cells."""
    if "batch" not in adata.obs or options.batch_key == OFF:
        return None
    batch = adata.obs["batch"]
    if options.batch_key is None:
        control = (adata.obs[PERTURBATION_COLUMN] == CONTROL).to_numpy()
        groups = pd.crosstab(batch.astype(str), control)
        problem = (
            "misses for some cells"
            if batch.isna().any()
            else "has no controls, or nothing but controls, in some batch"
            if groups.shape[1] < 2 or (groups == 0).any(axis=None)
            else f"has more than {_MOST_BATCHES} labels"
            if len(groups) > _MOST_BATCHES
            else None
        )
        if problem is not None:
            notes.append(f"batch: column {_source(adata, 'batch')!r} {problem} and is not used")
            return None
    if batch.nunique() < 2:
        return None
    notes.append(f"batch: column {_source(adata, 'batch')!r}, {batch.nunique()} labels")
    return "batch"


def library_column(adata: AnnData, options: ScreenOptions, notes: list[str]) -> str | None:
    """Return `library_size` where it counts genes that the file does not hold."""
    if "library_size" not in adata.obs or options.library_key == OFF:
        return None
    total = np.asarray(adata.X.sum(axis=1), dtype=float).ravel()
    size = adata.obs["library_size"].to_numpy(float)
    if (size < 0.99 * total).any():
        if options.library_key is None:
            return None
        msg = f"--library-key {options.library_key}: some values are less than the cell's counts."
        raise UsageError(msg)
    share = float(np.median(total / size))
    if options.library_key is None and share > 0.98:
        return None
    column = _source(adata, "library_size")
    notes.append(f"library size: column {column!r}; the genes of the file hold {share:.0%} of it")
    return "library_size"


def _source(adata: AnnData, field: str) -> str:
    source: dict[str, Any] = adata.uns[UNS_KEY]["source"]
    return str(source.get(field, field))


def _list(obs: pd.DataFrame) -> str:
    return ", ".join(map(str, obs.columns)) or "none"
