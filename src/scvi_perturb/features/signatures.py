"""Features from other screens: how cells there responded to the same perturbations."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.utils.extmath import svd_flip

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._compat import layer_names, setup_arguments
from scvi_perturb._core import TARGET_SUM, SchemaError, add_by_group
from scvi_perturb.data.condition import default_keys
from scvi_perturb.data.fields import read_annotation
from scvi_perturb.data.reader import check_raw_counts
from scvi_perturb.data.screen import screen_keys
from scvi_perturb.features.genes import PROVENANCE, listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.fields import Annotation

    Floats = NDArray[np.float64]

#: Cells of each perturbation that are kept to recognise them: those with the smallest hashes.
_KEPT_CELLS: Final = 32
#: Share of cells in common from which a response counts as one to these very cells.
_SAME: Final = 0.1
_CHUNK: Final = 8192


def keys_of(adata: AnnData, keys: ScreenKeys | None) -> ScreenKeys:
    """Return where a screen says what was done: as given, registered, or harmonised."""
    if keys is not None:
        return keys
    registered = setup_arguments(adata)
    return default_keys(adata) if registered is None else screen_keys(registered)


@checked
def from_signatures(
    adata: AnnData,
    *,
    keys: ScreenKeys | None = None,
    values: Literal["counts", "effects"] = "counts",
    n_components: int = 20,
) -> pd.DataFrame:
    """Return the mean response to each perturbation in another screen, on its leading components.

    The response is the change of the `log1p` pseudobulk from the control of the same context, its
    mean over contexts, doses and times weighted by cells. The mean over perturbations is taken off
    and the leading components of what differs are kept: other screens need not have the same genes.
    Combinations are left out.

    A response that was measured in the very cells that a model is to predict gives the answer away.
    :meth:`PerturbationFeatures.report` tells such perturbations ("transductive"): the table keeps
    the hashes of some cell names of each perturbation, by which it knows its cells again. A copy of
    a screen whose cells have other names is not recognised.

    Parameters
    ----------
    adata
        The other screen.
    keys
        Its columns; None takes those registered, or harmonised.
    values
        "counts": raw counts of cells, with controls. "effects": each row is a change from control,
        such as a fold change or a z-score.
    n_components
        Length of the vectors; at most one less than there are perturbations.

    Returns
    -------
    A table `(n_perturbations, n_components)`, float64, index = name: a modality of
    :class:`PerturbationFeatures`, on the scale of the responses.

    Raises
    ------
    SchemaError
        If counts are not raw, a control is missing, a change is not finite, or fewer than three
        perturbations were measured alone.
    """
    check_choice("values", values, ("counts", "effects"))
    keys = keys_of(adata, keys)
    annotation = read_annotation(adata, keys)
    profiles = _profiles(adata, annotation, keys.layer, values)
    names, changes = _responses(annotation, profiles, values)
    if len(names) < 3:
        msg = (
            f"{len(names)} perturbations have a response of their own ({listed(names)}); expected "
            "three or more single perturbations in contexts with control."
        )
        raise SchemaError(msg)
    centred = changes - changes.mean(axis=0)
    left, spread, right = np.linalg.svd(centred, full_matrices=False)
    n = min(n_components, len(names) - 1, int((spread > 1e-9 * spread[0]).sum()))
    if not n:
        msg = "All perturbations have the same response; they cannot be told apart by it."
        raise SchemaError(msg)
    left, _ = svd_flip(left, right, u_based_decision=False)
    columns = [f"response_{i}" for i in range(n)]
    table = pd.DataFrame(left[:, :n] * spread[:n], index=pd.Index(names), columns=columns)
    table.attrs[PROVENANCE] = {
        "made_by": "from_signatures",
        "values": values,
        "n_cells": int(adata.n_obs),
        "n_genes": int(adata.n_vars),
        "explained": float((spread[:n] ** 2).sum() / (spread**2).sum()),
        "cells": _sketches(_hashes(adata, annotation)),
    }
    return table


def _profiles(adata: AnnData, annotation: Annotation, layer: str | None, values: str) -> Floats:
    """Return the profile of each group, `(n_groups, n_genes)`."""
    if layer is not None and layer not in layer_names(adata):
        msg = f"Layer {layer!r} was not found; the layers are {list(layer_names(adata))}."
        raise SchemaError(msg)
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = (
            "adata.X is empty (None); name the layer of the values with keys=ScreenKeys(layer=...)."
        )
        raise SchemaError(msg)
    sums = np.zeros((len(annotation.groups), adata.n_vars))
    for start in range(0, adata.n_obs, _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = matrix[part]
        if values == "counts":
            _check_counts(rows)
        elif not np.isfinite(rows.data if sparse.issparse(rows) else np.asarray(rows)).all():
            msg = 'Changes are not finite; drop or fill them, or pass values="counts".'
            raise SchemaError(msg)
        add_by_group(sums, annotation.group[part], rows)
    if values == "effects":
        return sums / np.bincount(annotation.group)[:, None]
    return np.log1p(TARGET_SUM * sums / np.maximum(sums.sum(axis=1, keepdims=True), 1.0))


def _check_counts(rows: Any) -> None:  # noqa: ANN401
    try:
        check_raw_counts(rows, where="adata")
    except SchemaError as error:
        msg = f'{error} If each row is a change from control, pass values="effects".'
        raise SchemaError(msg) from None


def _responses(annotation: Annotation, profiles: Floats, values: str) -> tuple[list[str], Floats]:
    """Return the names measured alone, sorted, and the mean change of each."""
    groups, n_cells = annotation.groups, np.bincount(annotation.group)
    places = groups.index[groups["control"]]
    controls = dict(zip(groups.loc[places, "context"], places, strict=True))
    if values == "counts" and not controls:
        msg = "The screen has no control cells; responses are changes from control."
        raise SchemaError(msg)
    found: dict[str, list[int]] = defaultdict(list)
    changes = profiles.copy()
    for i, condition in enumerate(annotation.conditions):
        context = groups.loc[i, "context"]
        if values == "counts" and context in controls:
            changes[i] -= profiles[controls[context]]
        if len(condition.components) == 1 and (values == "effects" or context in controls):
            found[condition.components[0].name].append(i)
    names = sorted(found)
    made = [np.average(changes[found[n]], axis=0, weights=n_cells[found[n]]) for n in names]
    return names, np.array(made).reshape(len(names), profiles.shape[1])


# Cells that are known again --------------------------------------------------------------------


def _hashes(adata: AnnData, annotation: Annotation) -> dict[str, NDArray[np.int64]]:
    """Return the sorted hashes of the names of the cells of each single perturbation."""
    texts = pd.Index(adata.obs_names).astype(str).to_numpy(object)
    hashed = (pd.util.hash_array(texts) >> np.uint64(1)).astype(np.int64)
    of_name: dict[str, list[int]] = defaultdict(list)
    for i, condition in enumerate(annotation.conditions):
        for part in {*condition.names}:
            of_name[part].append(i)
    return {name: np.sort(hashed[np.isin(annotation.group, own)]) for name, own in of_name.items()}


def _sketches(hashes: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Return the smallest hashes of each perturbation, -1 where it has fewer cells."""
    table = np.full((len(hashes), _KEPT_CELLS), -1, np.int64)
    for i, own in enumerate(hashes.values()):
        table[i, : min(len(own), _KEPT_CELLS)] = own[:_KEPT_CELLS]
    return {"names": list(hashes), "hashes": table.tolist()}  # lists, so that tables concatenate


def measured_in(provenance: Mapping[str, Any], adata: AnnData, annotation: Annotation) -> set[str]:
    """Return the perturbations of a screen whose cells a modality's responses are of.

    Of the cells of a perturbation whose hash is below the largest that was kept, those in the other
    screen are all among the kept; their share says how many cells both have in common.
    """
    cells = provenance.get("cells")
    if cells is None:
        found = [measured_in(one, adata, annotation) for one in provenance.get("of", ())]
        return set[str]().union(*found)
    known = dict(zip(cells["names"], cells["hashes"], strict=True))
    same = set()
    for name, own in _hashes(adata, annotation).items():
        kept = known.get(name)
        if kept is None:
            continue
        kept = np.array([one for one in kept if one >= 0], np.int64)
        told = own if len(kept) < _KEPT_CELLS else own[own <= kept[-1]]
        if len(told) and np.isin(told, kept).mean() >= _SAME:
            same.add(name)
    return same
