"""Features of perturbations in several modalities, with missing entries marked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pandas as pd

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import SchemaError, UnknownPerturbationError, warn
from scvi_perturb.data.fields import read_annotation
from scvi_perturb.features.genes import listed
from scvi_perturb.features.signatures import keys_of, measured_in
from scvi_perturb.features.sources import as_table, checked_table, origin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.features.sources import Source

logger = logging.getLogger(__name__)

#: Columns of the report beside the modalities.
_REPORT: Final = ("perturbation", "n_cells", "unknown", "near")


@checked
class PerturbationFeatures:
    """Features of perturbations: one table per modality, with one row per name.

    A name may lack a modality: its row is absent or all NaN. That is marked, never filled in. The
    store does not change after it is made.

    Parameters
    ----------
    modalities
        For each modality, such as "fingerprint" or "gene_sets", a table of numbers with one row a
        perturbation (index = its name) and one column a feature; or what such a table is made of:

        - a mapping of names to vectors;
        - a file of them: `.csv` or `.tsv`, plain or gzipped, whose first column is the name;
          `.parquet`; `.npz` with names and a matrix, or with a vector under each name;
        - an AnnData that has the modality in `obsm`, by the names of its rows, or in `varm`, by
          those of genes.

    Raises
    ------
    SchemaError
        If a table has no columns, a column is not numeric, a name comes twice or is empty, a value
        is infinite in float32, a row is only partly NaN, or a modality has no row or all of two or
        more are the same.

    Examples
    --------
    >>> import pandas as pd
    >>> sets = pd.DataFrame({"cycle": [1.0, 0.0], "stress": [0.0, 1.0]}, index=["MYC", "TP53"])
    >>> PerturbationFeatures({"gene_sets": sets})
    PerturbationFeatures(2 names; gene_sets: 2 columns, 2 names)
    """

    __slots__ = ("_columns", "_names", "_present", "_provenance", "_row", "_values")

    def __init__(self, modalities: Mapping[str, Source]) -> None:
        if not modalities:
            msg = "No features were given; expected at least one modality, {name: DataFrame}."
            raise SchemaError(msg)
        given = {str(key): as_table(str(key), source) for key, source in modalities.items()}
        tables = {
            key: checked_table(f"Modality {key!r}", table).astype(np.float32)
            for key, table in given.items()
        }
        for key, table in tables.items():
            _check_differ(key, table)
        self._set(tables, {key: origin_of(table) for key, table in given.items()})

    def _set(
        self, tables: Mapping[str, pd.DataFrame], provenance: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Set the attributes from checked tables."""
        self._provenance = {key: dict(provenance.get(key, {})) for key in tables}
        self._names = tuple(sorted(set().union(*(table.index for table in tables.values()))))
        self._row = {name: row for row, name in enumerate(self._names)}
        self._columns = {key: tuple(map(str, table.columns)) for key, table in tables.items()}
        self._values: dict[str, NDArray[np.float32]] = {}
        self._present: dict[str, NDArray[np.bool_]] = {}
        for key, table in tables.items():
            self._values[key] = table.reindex(self._names, fill_value=0).to_numpy(np.float32)
            self._present[key] = np.asarray(pd.Index(self._names).isin(table.index))

    @property
    def names(self) -> tuple[str, ...]:
        """Names with at least one modality, sorted."""
        return self._names

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order given."""
        return tuple(self._values)

    @property
    def dims(self) -> dict[str, int]:
        """Number of features of each modality."""
        return {key: len(columns) for key, columns in self._columns.items()}

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """How each modality was made: by which function, of what; empty in older saved models."""
        return {key: _told(made) for key, made in self._origins().items()}

    def _origins(self) -> dict[str, dict[str, Any]]:
        """Return the provenance with the hashes of the cells that responses are of."""
        made: dict[str, dict[str, Any]] = getattr(self, "_provenance", {})  # older files have none
        return {key: dict(made.get(key, {})) for key in self._values}

    def columns(self, modality: str) -> tuple[str, ...]:
        """Names of the features of a modality."""
        check_choice("modality", modality, self._columns)
        return self._columns[modality]

    def frame(self, modality: str) -> pd.DataFrame:
        """Return a modality as a table of the names that have it."""
        columns, present = self.columns(modality), self._present[modality]
        index = pd.Index(self._names)[present]
        return pd.DataFrame(self._values[modality][present], index=index, columns=list(columns))

    def table(
        self, names: Iterable[str]
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Return the features of `names`, in their order, with missing entries marked.

        Returns
        -------
        For each modality, values `(n, d)` and a mask `(n,)` that is True where the name has the
        modality. Values under False are 0 and mean nothing. A name that is not in the store is
        False throughout.
        """
        rows = np.array([self._row.get(name, -1) for name in names], np.int64)
        known = rows >= 0
        made = {}
        for key, values in self._values.items():
            mask = known & self._present[key][rows]
            made[key] = np.where(mask[:, None], values[rows], np.float32(0)), mask
        return made

    def place(self, name: str) -> int:
        """Return the place of a name that is there among `names`."""
        return self._row[name]

    def has(self, name: str, modality: str | None = None) -> bool:
        """Whether `name` has the modality, or any if None."""
        if modality is None:
            return name in self._row
        check_choice("modality", modality, self._columns)
        return name in self._row and bool(self._present[modality][self._row[name]])

    def check_covers(self, names: Iterable[str]) -> int:
        """Return how many perturbations of a screen have features; a warning names the others.

        Raises
        ------
        SchemaError
            If none has: the names are other identifiers, or are written differently.
        """
        wanted = sorted({*names})
        lacking = [name for name in wanted if name not in self._row]
        if lacking and len(lacking) == len(wanted):
            msg = (
                f"None of the {len(wanted)} perturbations of the screen has features: the screen "
                f"has {', '.join(map(repr, wanted[:3]))}, the features are of "
                f"{', '.join(map(repr, self._names[:3]))}. Name the features as the screen does; "
                "upper and lower case count."
            )
            raise SchemaError(msg)
        if lacking:
            logger.warning(
                "%d of %d perturbations of the screen have no features, such as %s.",
                *(len(lacking), len(wanted), ", ".join(map(repr, lacking[:3]))),
            )
        return len(wanted) - len(lacking)

    def subset(self, names: Iterable[str]) -> Self:
        """Return the store restricted to `names`.

        Raises
        ------
        UnknownPerturbationError
            If a name is not in the store.
        """
        wanted = set(names)
        for name in sorted(wanted - set(self._names)):
            raise UnknownPerturbationError(name, self._names)
        frames = {key: self.frame(key) for key in self._values}
        return self._made(
            {key: f.loc[[n in wanted for n in f.index]] for key, f in frames.items()},
            self._origins(),
        )

    def merge(self, other: PerturbationFeatures) -> Self:
        """Return the union of two stores: their modalities and their names.

        Raises
        ------
        SchemaError
            If they disagree on the columns of a modality or on the features of a name.
        """
        frames = {key: self.frame(key) for key in self._values}
        for key in other.modalities:
            added = other.frame(key)
            frames[key] = _joined(key, frames[key], added) if key in frames else added
        made, added_by = self._origins(), other._origins()
        both = {
            key: {"made_by": "merge", "of": [made[key], added_by[key]]}
            for key in made.keys() & added_by.keys()
            if frames[key].shape != (len(self.frame(key)), self.dims[key])
        }
        return self._made(frames, added_by | made | both)

    def _made(
        self, frames: Mapping[str, pd.DataFrame], provenance: Mapping[str, Mapping[str, Any]]
    ) -> Self:
        """Return a store of tables that were checked before."""
        made = object.__new__(type(self))
        made._set(frames, provenance)
        return made

    def report(self, adata: AnnData, *, keys: ScreenKeys | None = None) -> pd.DataFrame:
        """Return which perturbations of a screen have which modality.

        A combination has a modality where all its parts have it, as models need it.

        Parameters
        ----------
        adata
            The screen that will be learned from or asked about.
        keys
            Its columns; None takes those registered, or harmonised.

        Returns
        -------
        One row a perturbation or combination, without control: `perturbation`; `n_cells`; for each
        modality "present", "partly" (of a combination), "missing", or "transductive": it holds
        responses that were measured in cells of this screen, so that predicting the perturbation
        when it is held out is no test; `unknown`, the parts without any feature; `near`, names in
        the store that are spelt like these. A warning counts what is transductive.

        Raises
        ------
        SchemaError
            If none of the perturbations has any feature: the names are other identifiers; if a
            modality has the name of another column, or there are control cells only; or as
            :func:`scvi_perturb.pp.validate` if the columns cannot be read.
        """
        if taken := sorted({*_REPORT} & {*self.modalities}):
            msg = f"Modalities {taken} have names of columns of the report; name them otherwise."
            raise SchemaError(msg)
        annotation = read_annotation(adata, keys_of(adata, keys))
        n_cells = np.bincount(annotation.group, minlength=len(annotation.groups))
        treated = {
            c: tuple(dict.fromkeys(c.names)) for c in annotation.conditions if not c.is_control
        }
        if not treated:
            msg = "The screen has control cells only; expected perturbations to report on."
            raise SchemaError(msg)
        self.check_covers({name for names in treated.values() for name in names})
        seen = {key: measured_in(made, adata, annotation) for key, made in self._origins().items()}
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for condition, n in zip(annotation.conditions, n_cells, strict=True):
            names = treated.get(condition, ())
            if names and names not in rows:
                rows[names] = self._row_of(names, annotation.separator, seen)
            if names:
                rows[names]["n_cells"] += int(n)
        table = pd.DataFrame(list(rows.values())).sort_values("perturbation", ignore_index=True)
        for key in self.modalities:
            own = table.loc[table[key] == "transductive", "perturbation"].tolist()
            if own:
                warn(f"Modality {key!r} holds responses measured in cells of this screen for "
                     f"{len(own)} perturbations: {listed(own)}. Held out, these are no test of "
                     "what was not measured.")  # fmt: skip
        return table

    def _row_of(
        self, names: tuple[str, ...], separator: str, seen: Mapping[str, set[str]]
    ) -> dict[str, Any]:
        """Return the row of a perturbation, or of a combination of several, in the report."""
        row: dict[str, Any] = {"perturbation": separator.join(names), "n_cells": 0}
        for key in self.modalities:
            n_known = sum(self.has(name, key) for name in names)
            row[key] = "missing" if not n_known else "partly"
            if n_known == len(names):
                row[key] = "transductive" if seen[key] & {*names} else "present"
        unknown = [name for name in names if name not in self]
        near = [UnknownPerturbationError(name, self._names).nearest for name in unknown]
        row["unknown"] = ", ".join(unknown)
        row["near"] = ", ".join(dict.fromkeys(one for found in near for one in found))
        return row

    def nearest(self, name: str, among: Iterable[str], n: int = 3) -> list[tuple[str, float]]:
        """Return the `n` names of `among` whose features are nearest to those of `name`.

        The distance is Euclidean on features scaled to unit variance over the store, divided by
        the square root of their number, and averaged over the modalities that both names have.

        Parameters
        ----------
        name
            A name in the store.
        among
            Candidates; `name` itself and names that share no modality with it are left out.
        n
            How many to return at most.

        Returns
        -------
        Pairs of name and distance, nearest first.

        Raises
        ------
        UnknownPerturbationError
            If `name` is not in the store.
        """
        if name not in self._row:
            raise UnknownPerturbationError(name, self._names)
        candidates = sorted({other for other in among if other in self._row and other != name})
        rows = [self._row[other] for other in candidates]
        total, shared = np.zeros(len(rows)), np.zeros(len(rows))
        for key, values in self._values.items():
            present = self._present[key]
            if not present[self._row[name]]:
                continue
            scale = values[present].std(axis=0, dtype=np.float64)
            gap = (values[rows] - values[self._row[name]]) / np.where(scale > 0, scale, 1.0)
            total += np.where(present[rows], np.sqrt((gap**2).mean(axis=1)), 0.0)
            shared += present[rows]
        pairs = zip(total, shared, candidates, strict=True)
        ranked = sorted((float(sums / count), other) for sums, count, other in pairs if count)
        return [(other, distance) for distance, other in ranked[:n]]

    def __contains__(self, name: object) -> bool:
        """Whether the name has any modality."""
        return name in self._row

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._names)

    def __eq__(self, other: object) -> bool:
        """Whether two stores hold the same names, modalities and values."""
        if not isinstance(other, PerturbationFeatures):
            return NotImplemented
        return self._columns == other._columns and all(
            self.frame(key).equals(other.frame(key)) for key in self._values
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Say what the store covers."""
        parts = [
            f"{key}: {len(columns)} columns, {int(self._present[key].sum())} names"
            for key, columns in self._columns.items()
        ]
        return f"PerturbationFeatures({len(self)} names; {'; '.join(parts)})"

    def __setattr__(self, attribute: str, value: object) -> None:
        """Refuse to change what is set; `merge` and `subset` make new stores."""
        if hasattr(self, attribute):
            msg = f"PerturbationFeatures does not change; make a new one to set {attribute!r}."
            raise AttributeError(msg)
        object.__setattr__(self, attribute, value)


def _told(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance without hashes, which nobody reads."""
    told = {key: value for key, value in made.items() if key != "cells"}
    return told | ({"of": [_told(one) for one in made["of"]]} if "of" in made else {})


def _check_differ(modality: str, table: pd.DataFrame) -> None:
    """Raise `SchemaError` if a modality has no rows, or all are the same."""
    values = table.to_numpy()
    if not len(values):
        msg = f"Modality {modality!r} has no name with values; leave it out."
        raise SchemaError(msg)
    if len(values) > 1 and (values == values[0]).all():
        msg = (
            f"Modality {modality!r} is the same for all {len(values)} names, so it tells none from "
            "another. Leave it out, or look at how it was made."
        )
        raise SchemaError(msg)


def _joined(modality: str, left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both tables, which must agree where they overlap."""
    if set(left.columns) != set(right.columns):
        msg = f"Modality {modality!r} has other columns in the two stores; rename one of them."
        raise SchemaError(msg)
    right = right[list(left.columns)]
    shared = left.index.intersection(right.index)
    differ = (left.loc[shared] != right.loc[shared]).any(axis=1)
    if differ.any():
        names = list(shared[differ.to_numpy()][:3])
        msg = f"Modality {modality!r}: the two stores differ for {names}; keep one of them."
        raise SchemaError(msg)
    return pd.concat([left, right.drop(index=shared)])
