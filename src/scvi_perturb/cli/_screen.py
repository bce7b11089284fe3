"""From a file, or the simulator, to a screen that is ready: raw counts in X, canonical columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._compat import layer_names
from scvi_perturb._core import CONTROL, UNS_KEY, Column, SchemaError
from scvi_perturb.cli._app import OFF, ScreenOptions, UsageError
from scvi_perturb.data.condition import ScreenKeys, default_keys
from scvi_perturb.data.reader import check_raw_counts, holds_counts, other_matrices
from scvi_perturb.metrics import gene_moments, log_normalize
from scvi_perturb.pp import harmonize, validate
from scvi_perturb.pp.layouts import source_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from rich.console import Console

_MOST_BATCHES: Final = 100
#: Labels of contexts that say nothing.
_UNKNOWN: Final = frozenset(("", "unknown", "na", "nan", "none", "unassigned"))


@dataclass(frozen=True, slots=True)
class PreparedScreen:
    """A screen and what was found out about it.

    `adata`: Raw counts in `X`; `obs` as `pp.harmonize` writes it. `contexts`, `batch`, `library`:
    Columns in use. `notes`: What was taken for what, a line each.
    """

    adata: AnnData
    contexts: tuple[str, ...]
    batch: str | None
    library: str | None
    notes: tuple[str, ...]

    @property
    def keys(self) -> ScreenKeys:
        """Where conditions and contexts are."""
        return replace(default_keys(self.adata), context=self.contexts)


def open_screen(
    adata: AnnData, options: ScreenOptions, columns: Mapping[str, str] | None = None
) -> PreparedScreen:
    """Find out what is where, and bring it into the form that is trained on.

    `columns`: Those of the canonical fields, where they are known from an earlier run. Raises
    `UsageError`: When something that is needed cannot be found; it names the option to give.
    """
    notes: list[str] = []
    made = _with_counts(_canonical(adata, options, notes, columns), options.layer, notes)
    contexts = _context_columns(made.obs, options, notes)
    made = _usable_cells(made, contexts, notes)
    batch = _batch_column(made, options, notes)
    return PreparedScreen(made, contexts, batch, _library_column(made, options, notes), (*notes,))


def tell(screen: PreparedScreen, source: str, console: Console) -> None:
    """Print what was found in a screen, and what is wrong with it."""
    say(console, f"Screen: {source}")
    report = validate(screen.adata, keys=screen.keys)
    for line in (*screen.notes, *str(report).splitlines()):
        say(console, f"  {line}")


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def open_controls(
    adata: AnnData,
    columns: Mapping[str, str],
    *,
    control: Sequence[str] | None,
    layer: str | None,
    notes: list[str],
) -> AnnData:
    """Return the control cells of other data, in the form that a model was trained on.

    `columns`: Those of the canonical fields of training. Raises `UsageError`: If there is none.
    """
    fields = {k: v for k, v in columns.items() if k not in ("dose", "dose_unit", "time")}
    label = fields["perturbation"]
    if label not in adata.obs:
        notes.append(f"no column {label!r}: all cells are taken for controls")
        adata.obs[label] = CONTROL if control is None else control[0]
    there = {field: column for field, column in fields.items() if column in adata.obs}
    made = harmonize(adata, there, control=control, copy=False)
    made = _with_counts(made, layer, notes)
    is_control = (made.obs[Column.PERTURBATION] == CONTROL).to_numpy()
    if not is_control.any():
        msg = f"--reference: column {label!r} has no controls; expected control cells."
        raise UsageError(msg)
    if "library_size" not in fields:
        made.obs["library_size"] = np.asarray(made.X.sum(axis=1), dtype=float).ravel()
    notes.append(f"{is_control.sum():,} of {made.n_obs:,} cells are controls and used")
    return _usable_cells(made[is_control].copy(), (), notes)


def _canonical(
    adata: AnnData,
    options: ScreenOptions,
    notes: list[str],
    columns: Mapping[str, str] | None,
) -> AnnData:
    """Return the screen with the columns of `pp.harmonize`; some cells are control, not all."""
    if columns is None:
        columns = _sources(adata.obs, options)
    for field, column in columns.items():
        _check_column(adata.obs, column, f"{field} in column")
    source = columns["perturbation"]
    labels = adata.obs[source].astype(str)
    names = labels.value_counts().index.tolist()
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    for label in options.control or ():
        if label not in names:
            msg = f"--control {label}: no cell has this label; there are {some}."
            raise UsageError(msg)
    made = harmonize(adata, columns, control=options.control, copy=False)
    control = (made.obs[Column.PERTURBATION] == CONTROL).to_numpy()
    if not control.any():
        msg = f"No label of {source!r} is recognised as control ({some}); name it: --control LABEL."
        raise UsageError(msg)
    if control.all():
        msg = (
            f"All cells are control in {source!r}; name the column of perturbations: "
            "--perturbation-key COLUMN."
        )
        raise UsageError(msg)
    met = ", ".join(sorted(set(labels[control])))
    notes.append(f"perturbations: column {source!r}; control: {met}")
    units = made.uns[UNS_KEY]["units"]
    for field in ("dose", "time", "perturbation_type"):
        if field in columns and field in made.obs:
            unit = f", {units[field]}" if units.get(field) else ""
            notes.append(f"{field.replace('_', ' ')}: column {columns[field]!r}{unit}")
    return made


def _sources(obs: pd.DataFrame, options: ScreenOptions) -> dict[str, str]:
    """Return the column of each canonical field."""
    named = {
        "perturbation": options.perturbation_key,
        "dose": options.dose_key,
        "batch": options.batch_key,
        "library_size": options.library_key,
    }
    given = {field: column for field, column in named.items() if column is not None}
    for field, column in given.items():
        flag = f"--{field.removesuffix('_size')}-key"
        if column != OFF or field == "perturbation":
            _check_column(obs, column, flag)
            if field == "library_size" and not (pd.to_numeric(obs[column], "coerce") > 0).all():
                msg = f"{flag} {column}: expected a number above 0 for every cell."
                raise UsageError(msg)
    try:
        found = (
            source_columns("canonical", [*map(str, obs.columns), Column.PERTURBATION])[1]
            if "perturbation" in given
            else source_columns("auto", map(str, obs.columns))[1]
        )
    except SchemaError:
        msg = (
            f"No column of perturbations is recognised; obs has {_list(obs)}. Name it: "
            "--perturbation-key COLUMN."
        )
        raise UsageError(msg) from None
    if "dose" in given:
        found.pop("dose_unit", None)
    return {field: column for field, column in (found | given).items() if column != OFF}


def _check_column(obs: pd.DataFrame, column: str, flag: str) -> None:
    if column not in obs:
        msg = f"{flag} {column}: obs has no such column; it has {_list(obs)}."
        raise UsageError(msg)


def _list(obs: pd.DataFrame) -> str:
    return ", ".join(map(str, obs.columns)) or "none"


def _with_counts(adata: AnnData, layer: str | None, notes: list[str]) -> AnnData:
    """Return the screen with raw counts in X and nothing else beside annotation."""
    if layer is not None and layer not in adata.layers:
        msg = f"--layer {layer}: found layers {', '.join(layer_names(adata)) or 'none'}."
        raise UsageError(msg)
    held = {"X": adata.X, **adata.layers} if layer is None else {layer: adata.layers[layer]}
    name = next((name for name, matrix in held.items() if holds_counts(matrix)), layer or "X")
    try:
        where = "X" if name == "X" else f"layer {name!r}"
        check_raw_counts(held[name], where=where, layers=other_matrices(adata))
    except SchemaError as error:
        msg = f"{error} Name the layer that holds them: --layer NAME."
        raise UsageError(msg) from error
    if name != "X":
        notes.append(f"counts: layer {name!r}")
    made = AnnData(
        X=sparse.csr_matrix(held[name]),
        obs=adata.obs,
        var=pd.DataFrame(index=adata.var_names.astype(str)),
    )
    record = dict(adata.uns[UNS_KEY])
    # Which columns are context and batch is decided here, not by `harmonize`.
    record["keys"] = {k: v for k, v in record["keys"].items() if k not in ("batch", "context")}
    made.uns[UNS_KEY] = record
    for what in ("obs_names", "var_names"):
        if not getattr(made, what).is_unique:
            getattr(made, f"{what}_make_unique")()
            notes.append(f"{what} come more than once and were numbered")
    return made


def _context_columns(
    obs: pd.DataFrame, options: ScreenOptions, notes: list[str]
) -> tuple[str, ...]:
    """Return the columns of the context: those named, or `cell_type` where it varies."""
    if options.context_keys is not None:
        named = tuple(key for key in options.context_keys if key != OFF)
        for key in named:
            _check_column(obs, key, "--context-keys")
    else:
        named = ("cell_type",) if "cell_type" in obs else ()
    n_labels = {key: obs[key].nunique() for key in named}
    for key, n in n_labels.items():
        says = f"{n} labels" if n > 1 else "one label only, not used"
        notes.append(f"context: column {key!r}, {says}")
    if not named:
        notes.append("context: none")
    return tuple(key for key, n in n_labels.items() if n > 1)


def _usable_cells(adata: AnnData, contexts: tuple[str, ...], notes: list[str]) -> AnnData:
    """Return the cells that have counts and a context."""
    keep = np.asarray(adata.X.sum(axis=1)).ravel() > 0
    if not keep.all():
        notes.append(f"{int((~keep).sum())} cells without counts were left out")
    for key in contexts:
        label = adata.obs[key].astype(object)
        known = (label.notna() & ~label.astype(str).str.lower().isin(_UNKNOWN)).to_numpy()
        if not known.all():
            notes.append(f"{int((~known).sum())} cells of unknown {key} were left out")
        keep &= known
    return adata[keep].copy()


def _batch_column(adata: AnnData, options: ScreenOptions, notes: list[str]) -> str | None:
    """Return `batch` where it can be told apart from what was done to the cells."""
    if "batch" not in adata.obs or options.batch_key == OFF:
        return None
    batch = adata.obs["batch"]
    column = f"batch: column {_source(adata, 'batch')!r}"
    if options.batch_key is None:
        groups = pd.crosstab(batch.astype(str), adata.obs[Column.PERTURBATION] == CONTROL)
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
            notes.append(f"{column} {problem} and is not used")
            return None
    if batch.nunique() < 2:
        return None
    notes.append(f"{column}, {batch.nunique()} labels")
    return "batch"


def _library_column(adata: AnnData, options: ScreenOptions, notes: list[str]) -> str | None:
    """Return `library_size` where it counts genes that the file does not hold."""
    if "library_size" not in adata.obs or options.library_key == OFF:
        return None
    total = np.asarray(adata.X.sum(axis=1), dtype=float).ravel()
    size = adata.obs["library_size"].to_numpy(float)
    share = float(np.median(total / size))
    if (size < 0.99 * total).any():
        if options.library_key is None:
            return None
        msg = f"--library-key {options.library_key}: some values are less than the cell's counts."
        raise UsageError(msg)
    if options.library_key is None and share > 0.98:
        return None
    column = _source(adata, "library_size")
    notes.append(f"library size: column {column!r}; the genes of the file hold {share:.0%} of it")
    return "library_size"


def _source(adata: AnnData, field: str) -> str:
    source: dict[str, Any] = adata.uns[UNS_KEY]["source"]
    return str(source.get(field, field))


def smaller(screen: PreparedScreen, max_cells: int, seed: int) -> PreparedScreen:
    """Return at most `max_cells` cells, chosen at random."""
    n_cells = screen.adata.n_obs
    if n_cells <= max_cells:
        return screen
    chosen = np.random.default_rng(seed).choice(n_cells, max_cells, replace=False)
    note = f"{max_cells:,} of {n_cells:,} cells are used, chosen at random (--max-cells)"
    adata = screen.adata[np.sort(chosen)].copy()
    return replace(screen, adata=adata, notes=(*screen.notes, note))


def with_genes(screen: PreparedScreen, max_genes: int, cells: NDArray[np.int64]) -> PreparedScreen:
    """Return the genes that vary most over `cells`; library sizes stay those of all genes."""
    adata = screen.adata
    if adata.n_vars <= max_genes:
        return screen
    variance = gene_moments(log_normalize(adata.X[cells]))[1]
    chosen = np.sort(np.argsort(-variance, kind="stable")[:max_genes])
    note = f"{max_genes:,} of {adata.n_vars:,} genes are used, the most variable (--max-genes)"
    library = np.asarray(adata.X.sum(axis=1), dtype=float).ravel()
    adata = adata[:, chosen].copy()
    if screen.library is None:
        adata.obs["library_size"] = library
    notes = (*screen.notes, note)
    return replace(screen, adata=adata, library="library_size", notes=notes)
