"""Features of perturbations in several modalities, with missing entries marked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from pandas.api.types import is_complex_dtype, is_numeric_dtype

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import SchemaError, UnknownPerturbationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


@checked
class PerturbationFeatures:
    """Features of perturbations: one table per modality, with one row per name.

    A name may lack a modality: its row is absent or all NaN. That is marked, never filled in. The
    store does not change after it is made.

    Parameters
    ----------
    modalities
        For each modality, such as "fingerprint" or "gene_sets", a table of numbers with one row a
        perturbation (index = its name) and one column a feature.

    Raises
    ------
    SchemaError
        If a table has no columns, a column is not numeric, a name comes twice or is empty, a value
        is infinite in float32, or a row is only partly NaN.

    Examples
    --------
    >>> import pandas as pd
    >>> sets = pd.DataFrame({"cycle": [1.0, 0.0], "stress": [0.0, 1.0]}, index=["MYC", "TP53"])
    >>> PerturbationFeatures({"gene_sets": sets})
    PerturbationFeatures(2 names; gene_sets: 2 columns, 2 names)
    """

    __slots__ = ("_columns", "_names", "_present", "_row", "_values")

    def __init__(self, modalities: Mapping[str, pd.DataFrame]) -> None:
        if not modalities:
            msg = "No features were given; expected at least one modality, {name: DataFrame}."
            raise SchemaError(msg)
        tables = {str(key): _checked(str(key), table) for key, table in modalities.items()}
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
        return type(self)({key: f.loc[[n in wanted for n in f.index]] for key, f in frames.items()})

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
        return type(self)(frames)

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


def _checked(modality: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a modality that are present, checked, with text names."""
    where = f"Modality {modality!r}"
    if table.shape[1] == 0:
        msg = f"{where} has no columns; expected one a feature."
        raise SchemaError(msg)
    textual = [
        str(column)
        for column, kind in table.dtypes.items()
        if not is_numeric_dtype(kind) or is_complex_dtype(kind)
    ]
    if textual:
        msg = f"{where}: columns {textual[:3]} are not numeric; encode or drop them."
        raise SchemaError(msg)
    if table.index.hasnans:
        msg = f"{where} has a missing name; expected the perturbation's name as index."
        raise SchemaError(msg)
    names = pd.Index([str(name).strip() for name in table.index])
    repeated = sorted(set(names[names.duplicated()]))
    if repeated or "" in names:
        msg = f"{where}: names {repeated[:3] or ['']} come twice or are empty; keep one row each."
        raise SchemaError(msg)
    with np.errstate(over="ignore"):
        values = table.to_numpy(np.float64, na_value=np.nan).astype(np.float32)
    gaps = np.isnan(values)
    empty = np.asarray(gaps.all(axis=1))
    fill = "Fill the gaps, drop the columns, or make the whole row NaN (the name lacks it)"
    for what, bad, advice in (
        ("infinite", np.asarray(np.isinf(values).any(axis=1)), "Clip or rescale them"),
        ("partly missing", gaps.any(axis=1) & ~empty, fill),
    ):
        if bad.any():
            msg = f"{where}: values are {what} for {list(names[bad][:3])} ({bad.sum()}). {advice}."
            raise SchemaError(msg)
    frame = pd.DataFrame(values, index=names, columns=table.columns)
    return frame.loc[~empty]


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
