"""A split: saved, tied to the data it was made for, checked for leaks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from scvi_perturb._errors import LeakError, SchemaError
from scvi_perturb.data._annotation import data_hash, read_annotation
from scvi_perturb.data._keys import ConditionKeys
from scvi_perturb.data._split_leaks import find_leaks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._annotation import Annotation

__all__ = ["Split"]

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Cells to train on, to stop by and to test on, and the conditions that are held out.

    Parameters
    ----------
    kind
        What is held out; see `split`.
    seed
        Seed it was drawn with.
    train, validation, test
        Indices of cells, sorted; together they are all cells, each once.
    held_out
        One dict a held-out condition: `perturbation`, `n_cells`, and where the kind asks for it
        `dose`, `context`, `targets`, `singles_seen` (components also measured alone),
        `contexts_seen`, `stratum` ("inner", "top"; with `singles_seen`,
        "single", "combination"), `n_shown`. Empty for "cells".
    parameters
        How the split was made: `keys`, `context_keys`, `fraction`, `fold`, `options`.
    data_hash
        Fingerprint of the data: names, shape, conditions, contexts.

    Raises
    ------
    LeakError
        If a cell is in two parts.
    SchemaError
        If a cell is in none.
    """

    kind: str
    seed: int
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    held_out: tuple[dict[str, Any], ...]
    parameters: dict[str, Any]
    data_hash: str

    def __post_init__(self) -> None:
        for part in _PARTS:
            cells = np.sort(np.asarray(getattr(self, part), dtype=np.int64))
            cells.setflags(write=False)
            object.__setattr__(self, part, cells)
        object.__setattr__(self, "held_out", tuple(self.held_out))
        cells = np.concatenate([self.train, self.validation, self.test])
        distinct = np.unique(cells)
        if len(distinct) < len(cells):
            msg = (
                f"{len(cells) - len(distinct)} cells are in two parts of the split; each belongs "
                "in exactly one of train, validation and test."
            )
            raise LeakError(msg)
        if len(distinct) and (distinct[0] != 0 or distinct[-1] != len(distinct) - 1):
            msg = (
                "Some cells are in no part of the split; expected every index from 0 to "
                f"{distinct[-1]} in train, validation or test."
            )
            raise SchemaError(msg)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.train) + len(self.validation) + len(self.test)

    def labels(self) -> pd.Categorical[str]:
        """Return "train", "validation" or "test" for each cell, to be put into `adata.obs`."""
        labels = np.empty(self.n_cells, object)
        for part in _PARTS:
            labels[getattr(self, part)] = part
        return pd.Categorical(labels, categories=list(_PARTS))

    def check(self, adata: AnnData) -> None:
        """Raise unless the split was made for these data.

        Raises
        ------
        SchemaError
            If cells, genes, their order, conditions or contexts are not the same.
        """
        if adata.n_obs != self.n_cells:
            msg = f"The split is of {self.n_cells} cells, but these data have {adata.n_obs}."
            raise SchemaError(msg + " Make a new split, or use the data it was made for.")
        if data_hash(adata, self._annotation(adata)) != self.data_hash:
            msg = (
                "The split was made for other data: the names or order of cells or genes, or the "
                f"columns {self._columns()} differ. Make a new split, or restore the data."
            )
            raise SchemaError(msg)

    def leaks(self, adata: AnnData) -> None:
        """Raise if training or validation cells have a held-out condition.

        Conditions are read anew from `adata`, so a relabelled cell or an edited split is found,
        also where what is held out hides in a condition that is new. The kind "cells" holds out no
        condition, so that nothing of it can leak but a cell that is in two parts.

        Raises
        ------
        LeakError
            Naming the held-out conditions and the number of cells.
        """
        if not self.held_out:
            return
        annotation = self._annotation(adata)
        seen = np.concatenate([self.train, self.validation])
        n_seen = np.bincount(annotation.group[seen], minlength=len(annotation.groups))
        found = find_leaks(annotation, n_seen, kind=self.kind, held_out=self.held_out)
        if found:
            some = ", ".join(f"{name} ({n} cells)" for name, n in list(found.items())[:5])
            msg = (
                f"Held-out conditions are in the training or validation cells: {some}. Move these "
                "cells to `test`, or make the split anew."
            )
            raise LeakError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the split as plain types."""
        parts = {part: getattr(self, part).tolist() for part in _PARTS}
        return {
            "format": 1,
            "kind": self.kind,
            "seed": self.seed,
            "data_hash": self.data_hash,
            "parameters": self.parameters,
            "held_out": list(self.held_out),
            **parts,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a split from `to_dict`."""
        if state.get("format") != 1:
            msg = f"This is not a split of format 1: found format {state.get('format')!r}."
            raise SchemaError(msg)
        return cls(**{key: value for key, value in state.items() if key != "format"})

    def to_json(self, path: str | Path) -> None:
        """Write the split to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), separators=(",", ":")), encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a split from a file."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def __eq__(self, other: object) -> bool:
        """Whether all parts are the same."""
        return isinstance(other, Split) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Say how many cells are where."""
        sizes = ", ".join(f"{len(getattr(self, part))} {part}" for part in _PARTS)
        held = f"{len(self.held_out)} conditions held out"
        return f"Split({self.kind!r}, seed={self.seed}; cells: {sizes}; {held})"

    def _annotation(self, adata: AnnData) -> Annotation:
        keys = ConditionKeys(**self.parameters["keys"])
        return read_annotation(adata, keys, self.parameters["context_keys"])

    def _columns(self) -> list[str]:
        keys = ConditionKeys(**self.parameters["keys"])
        return [*keys.columns.values(), *self.parameters["context_keys"]]
