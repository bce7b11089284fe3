"""Convert predicted cells for cell-eval2, the scorer of the Virtual Cell Challenge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._checks import checked
from scvi_perturb._core import CONTROL, Column, SchemaError
from scvi_perturb.data.reader import align_genes

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

#: Column of `obs` and name of control that the preset expects.
_TARGET: Final = "target"
_NON_TARGETING: Final = "non-targeting"


@checked
def to_cell_eval(
    predicted: AnnData,
    *,
    control: AnnData | None = None,
    perturbation_key: str = Column.PERTURBATION,
    control_label: str = CONTROL,
    max_counts_per_cell: int = 1_000_000,
) -> AnnData:
    """Convert cells to the format that the preset `vcc2026` of cell-eval2 accepts.

    Use it for the prediction and, with the same arguments, for the real cells. The preset knows
    one context at a time: convert cell types apart. It leaves each perturbation's own gene out of
    its score and finds it by name, so where names of perturbations are not names of genes, give
    its configuration a `target_gene_map` (`{"*": None}` if they have no gene).

    Parameters
    ----------
    predicted
        Cells with raw counts in `X`, such as `model.sample` returns, with or without control.
    control
        The *real* control cells with raw counts in `X` and the same genes in any order; of a whole
        screen, its control cells are taken. None if `predicted` holds control cells.
    perturbation_key
        Column of `obs` that names the perturbation of each cell.
    control_label
        Name of control in that column.
    max_counts_per_cell
        The preset refuses cells with more counts.

    Returns
    -------
    New AnnData: counts in `X` (CSR, float32), `obs["target"]` with "non-targeting" for control,
    gene names in the order of `predicted`.

    Raises
    ------
    SchemaError
        If the column is missing or has empty names, control cells are missing or given twice,
        there are no conditions or one has no counts, genes differ, or values are not counts up to
        the limit.
    """
    labels = _labels(predicted, perturbation_key, "predicted")
    given = labels == control_label
    _check_conditions(labels, given, control_label, has_control=control is not None)
    parts, names = [_counts(predicted, "predicted", max_counts_per_cell)], [labels]
    cells = [predicted.obs_names.astype(str)]
    if control is not None:
        chosen = _control_cells(control, perturbation_key, control_label)
        chosen = align_genes(chosen, predicted.var_names.astype(str).tolist())
        parts.append(_counts(chosen, "control", max_counts_per_cell))
        names.append(np.full(chosen.n_obs, control_label, dtype=object))
        cells.append(pd.Index([f"control_{name}" for name in chosen.obs_names]))
    matrix, target = sparse.vstack(parts, format="csr"), np.concatenate(names)
    _check_not_empty(matrix, target)
    target = np.where(target == control_label, _NON_TARGETING, target)
    obs = pd.DataFrame({_TARGET: pd.Categorical(target)}, index=cells[0].append(cells[1:]))
    made = AnnData(matrix, obs=obs, var=pd.DataFrame(index=predicted.var_names.astype(str)))
    made.obs_names_make_unique()
    return made


def _labels(adata: AnnData, key: str, where: str) -> NDArray[np.object_]:
    if key not in adata.obs:
        msg = (
            f"`{where}.obs` has no column {key!r}; found {sorted(map(str, adata.obs))}. Name the "
            "column of perturbations with `perturbation_key`."
        )
        raise SchemaError(msg)
    column = adata.obs[key]
    empty = column.isna() | (column.astype(str).str.strip() == "")
    if empty.any():
        msg = (
            f"Found {int(empty.sum())} cells without a name in `{where}.obs[{key!r}]`; every cell "
            "needs the name of its perturbation, or that of control."
        )
        raise SchemaError(msg)
    return column.astype(str).to_numpy(dtype=object)


def _check_conditions(
    labels: NDArray[np.object_],
    given: NDArray[np.bool_],
    control_label: str,
    *,
    has_control: bool,
) -> None:
    if given.all():
        msg = (
            f"Found {len(labels)} cells in `predicted`, none of them of a perturbation; there is "
            "nothing to score. Predict at least one condition."
        )
        raise SchemaError(msg)
    if given.any() == has_control:
        found = f"{int(given.sum())} cells of {control_label!r} in `predicted`"
        advice = (
            "and `control` besides: give control cells once."
            if has_control
            else "and no `control`: the scores compare with real control cells, so give them as "
            "`control=`, or name them with `control_label`."
        )
        msg = f"Found {found}, {advice}"
        raise SchemaError(msg)
    if control_label != _NON_TARGETING and (labels == _NON_TARGETING).any():
        msg = (
            f"Found a perturbation named {_NON_TARGETING!r}, which is the preset's name for "
            f"control, besides control_label={control_label!r}. Rename one of them."
        )
        raise SchemaError(msg)


def _control_cells(control: AnnData, key: str, control_label: str) -> AnnData:
    chosen = control
    if key in control.obs:
        chosen = control[_labels(control, key, "control") == control_label]
    if chosen.n_obs == 0:
        msg = (
            f"Found no cells of {control_label!r} among the {control.n_obs} cells of `control`; "
            "give real control cells, and their name as `control_label`."
        )
        raise SchemaError(msg)
    return chosen


def _counts(adata: AnnData, where: str, most: int) -> sparse.csr_matrix:
    """Return the counts of all cells, checked value by value.

    Raises `SchemaError`: If they are not finite, negative, fractional, or too many in a cell.
    """
    stored: Any = adata.to_memory().X if adata.isbacked else adata.X
    counts = sparse.csr_matrix(stored, dtype=np.float64)
    values = counts.data
    wrong = None
    if not np.isfinite(values).all():
        wrong = "values that are NaN or infinite"
    elif values.size and values.min() < 0:
        wrong = f"negative values (lowest {values.min():g})"
    elif (fractional := values[values != np.rint(values)]).size:
        wrong = f"values that are not whole (such as {fractional[0]:g}: log-normalised?)"
    if wrong is not None:
        msg = (
            f"`{where}.X` has {wrong}; expected raw counts, whole numbers >= 0: give what "
            "`model.sample` returns, or put the layer of counts into `X`."
        )
        raise SchemaError(msg)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    if totals.size and totals.max() > most:
        msg = (
            f"`{where}.X` has {int((totals > most).sum())} cells with more than {most:,} counts "
            f"(up to {totals.max():,.0f}), which cell-eval2 refuses. Draw cells with a library "
            "size as measured, or leave these cells out."
        )
        raise SchemaError(msg)
    counts.eliminate_zeros()
    return counts.astype(np.float32)


def _check_not_empty(counts: sparse.csr_matrix, target: NDArray[np.object_]) -> None:
    totals = pd.Series(np.asarray(counts.sum(axis=1)).ravel()).groupby(target).sum()
    empty = totals.index[totals == 0].tolist()
    if empty:
        msg = (
            f"Conditions {empty[:5]} have no counts in any of their cells ({len(empty)} "
            "conditions), so that they have no profile. Leave them out, or predict them again."
        )
        raise SchemaError(msg)
