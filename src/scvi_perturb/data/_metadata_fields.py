"""Fields of metadata: labels or numbers of cells, of which some may be missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.data.fields import MuDataWrapper

from scvi_perturb._constants import METADATA_PREFIX
from scvi_perturb._errors import SchemaError
from scvi_perturb.data._condition import as_label
from scvi_perturb.data._fields import CodesField

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MetadataField", "MuDataMetadataField", "encode_metadata", "is_numeric"]

State = dict[str, Any]

logger = logging.getLogger(__name__)


class MetadataField(CodesField):
    """One column of labels or numbers; missing values are marked, never filled in.

    Labels become the place of the label, -1 where missing; numbers stay, NaN where missing.
    """

    def __init__(self, column: str) -> None:
        super().__init__(METADATA_PREFIX + column)
        self.column = column

    def validate_field(self, adata: AnnData) -> None:
        """Raise `SchemaError` when the column is absent."""
        if self.column not in adata.obs:
            msg = f"Column {self.column!r} is not in adata.obs, which has {sorted(adata.obs)}."
            raise SchemaError(msg)

    def register_field(self, adata: AnnData) -> State:
        """Encode a new screen; labels are sorted."""
        self.validate_field(adata)
        column = adata.obs[self.column]
        state: State = {"column": self.column, "levels": None}
        if not is_numeric(column):
            state["levels"] = sorted({as_label(value) for value in pd.factorize(column)[1]})
            if not state["levels"]:
                msg = f"obs[{self.column!r}] has no label at all; leave it out of the metadata."
                raise SchemaError(msg)
        self._write_values(adata, state)
        return state

    def transfer_field(self, state_registry: State, adata_target: AnnData, **_: object) -> State:
        """Encode new data; a column that is absent, or a label never registered, is missing."""
        if self.column not in adata_target.obs:
            logger.warning("obs has no column %r: it counts as missing.", self.column)
            adata_target.obs[self.attr_key] = _missing(adata_target.n_obs, state_registry)
            return state_registry
        self._write_values(adata_target, state_registry)
        return state_registry

    def get_summary_stats(self, state_registry: State) -> dict[str, int]:
        """Return nothing: metadata have no size that scvi-tools asks for."""
        del state_registry
        return {}

    def _write_values(self, adata: AnnData, state: State) -> None:
        values = encode_metadata(adata.obs[self.column], state["levels"])
        adata.obs[self.attr_key] = values


def is_numeric(column: pd.Series[Any]) -> bool:
    """Whether a column holds numbers by its type; truth values are labels."""
    kind = column.dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def encode_metadata(column: pd.Series[Any], levels: list[str] | None) -> np.ndarray:
    """Return numbers, or the place of each label among `levels`.

    Parameters
    ----------
    column
        Values of cells.
    levels
        Labels; None for numbers.

    Returns
    -------
    `(n_cells,)`: float64 with NaN, or int64 with -1, where missing or not among the levels.

    Raises
    ------
    SchemaError
        When numbers are expected and text is found.
    """
    if levels is None:
        try:
            return np.asarray(pd.to_numeric(column), dtype=np.float64)
        except (ValueError, TypeError) as error:
            msg = f"obs[{column.name!r}] held numbers in training, but now: {error}."
            raise SchemaError(msg) from error
    codes, distinct = pd.factorize(column)
    labels = [as_label(value) for value in distinct]
    place = {level: i for i, level in enumerate(levels)}
    new = sorted(set(labels) - set(place))
    if new:
        logger.warning(
            "obs[%r] has labels that were not registered, which count as missing: %s.",
            column.name,
            ", ".join(new[:10]),
        )
    places = np.array([*(place.get(label, -1) for label in labels), -1], dtype=np.int64)
    return places[codes]


def _missing(n_cells: int, state: State) -> np.ndarray:
    if state["levels"] is None:
        return np.full(n_cells, np.nan)
    return np.full(n_cells, -1, dtype=np.int64)


MuDataMetadataField = MuDataWrapper(MetadataField)
