"""From the columns of a named public screen to canonical ones."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._constants import (
    CONTROL,
    DOSE_COLUMN,
    KIND_COLUMN,
    PERTURBATION_COLUMN,
    SEPARATOR,
    TIME_COLUMN,
    UNS_KEY,
)
from scvi_perturb._errors import SchemaError
from scvi_perturb.data._condition import Condition

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb.data._dataset_registry import DatasetEntry

__all__ = ["harmonise"]

logger = logging.getLogger(__name__)

_ESSENTIAL = (PERTURBATION_COLUMN, DOSE_COLUMN, TIME_COLUMN)

#: Text that stands for a missing value.
_MISSING = ("nan", "None", "NA", "")


def harmonise(adata: AnnData, entry: DatasetEntry) -> AnnData:
    """Return the complete cells with canonical columns in front of the file's own.

    Raises
    ------
    SchemaError
        If there is no column for the perturbation, or for doses or times that there should be.
    """
    found = _find(adata.obs, entry)
    canonical = _canonical(adata.obs, found, entry)
    essential = [c for c in (*_ESSENTIAL, "cell_type") if c in canonical]
    keep = canonical[essential].notna().all(axis=1).to_numpy()
    if not keep.all():
        logger.warning(
            "%s: dropped %d of %d cells that miss a value of %s.",
            *(entry.name, int((~keep).sum()), len(keep), ", ".join(essential)),
        )
        adata, canonical = adata[keep].copy(), canonical[keep]
    for column in canonical.columns.difference([TIME_COLUMN]):
        canonical[column] = canonical[column].astype("category").cat.remove_unused_categories()
    canonical["library_size"] = np.asarray(adata.X.sum(axis=1), dtype=np.float32).ravel()
    rest = adata.obs.drop(columns=[c for c in canonical if c in adata.obs])
    adata.obs = pd.concat([canonical, rest], axis=1)
    adata.uns[UNS_KEY] = {"dataset": _provenance(entry)}
    return adata


def _find(obs: pd.DataFrame, entry: DatasetEntry) -> dict[str, str]:
    """Return the file's column for each canonical one that it has."""
    found = {
        column: next(name for name in names if name in obs)
        for column, names in entry.columns.items()
        if any(name in obs for name in names)
    }
    for column in _ESSENTIAL:
        if column in entry.columns and column not in found:
            msg = (
                f"{entry.name!r}: no column for {column}; expected one of "
                f"{entry.columns[column]}, found {sorted(map(str, obs))}."
            )
            raise SchemaError(msg)
    return found


def _canonical(obs: pd.DataFrame, found: dict[str, str], entry: DatasetEntry) -> pd.DataFrame:
    """Return the canonical columns, with NaN where the file has no value."""
    original = _text(obs[found[PERTURBATION_COLUMN]])
    labels = _labels(original, entry)
    columns: dict[str, pd.Series] = {PERTURBATION_COLUMN: labels}
    if DOSE_COLUMN in found:
        dose = _numbers(obs[found[DOSE_COLUMN]]).where(labels != CONTROL, 0.0)
        columns[DOSE_COLUMN] = dose.map("{:g}".format, na_action="ignore")
    if TIME_COLUMN in found:
        columns[TIME_COLUMN] = _numbers(obs[found[TIME_COLUMN]])
    columns[KIND_COLUMN] = pd.Series(entry.kind, index=obs.index)
    if "cell_type" not in found:
        columns["cell_type"] = pd.Series(entry.context, index=obs.index)
    for column in ("cell_type", "batch", "donor"):
        if column in found:
            columns[column] = _text(obs[found[column]])
    if entry.guide_suffix is not None and "guide" not in obs:
        columns["guide"] = original
    return pd.DataFrame(columns, index=obs.index)


def _text(values: pd.Series) -> pd.Series:
    """Return values as text, missing ones as NaN."""
    text = values.astype(str).str.strip()
    return text.mask(values.isna() | text.isin(_MISSING))


def _numbers(values: pd.Series) -> pd.Series:
    """Return values as numbers, what is missing or is none as NaN."""
    return pd.to_numeric(_text(values), errors="coerce").astype(float)


def _provenance(entry: DatasetEntry) -> dict[str, str]:
    return {
        "name": entry.name,
        "paper": entry.paper,
        "url": entry.urls[0],
        "checksum": entry.checksum or "",
        "licence": entry.licence,
        "dose_unit": entry.dose_unit,
        "time_unit": entry.time_unit,
    }


def _labels(original: pd.Series, entry: DatasetEntry) -> pd.Series:
    """Return canonical labels: renamed, without guides, "+" only between components, sorted."""

    def canonical(label: str) -> str:
        target = label if entry.guide_suffix is None else re.sub(entry.guide_suffix, "", label)
        target = entry.labels.get(target, target)
        if entry.separator is None:
            return target.replace(SEPARATOR, "plus")  # "(+)-JQ1" is one drug
        return Condition.parse(target.replace(entry.separator, SEPARATOR)).perturbation

    return original.map({label: canonical(label) for label in original.dropna().unique()})
