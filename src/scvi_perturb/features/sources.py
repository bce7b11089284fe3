"""Tables of vectors from what people have, and names put into those of a screen."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_complex_dtype, is_numeric_dtype

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, shown, warn
from scvi_perturb._files import read_bytes, read_text
from scvi_perturb.features.genes import PROVENANCE, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: What a modality can be given as.
Source: TypeAlias = "pd.DataFrame | Mapping[str, Any] | AnnData | str | Path"
#: Text that stands for a missing number; as a name it is kept, since NA and NAN are genes.
_MISSING: Final = ["", "NA", "N/A", "NaN", "nan", "NAN", "null", "None"]
_VERSION: Final = re.compile(r"^(ENS[A-Z]*\d{6,})\.\d+$")


def as_table(modality: str, source: Source) -> pd.DataFrame:
    """Return the vectors of a modality as a table, index = name, with its provenance in `attrs`.

    Raises `SchemaError`: If the source does not hold one vector a name.
    """
    if isinstance(source, pd.DataFrame):
        table, kind = source, "table"
    elif isinstance(source, AnnData):
        table, kind = _of_anndata(modality, source)
    elif isinstance(source, Mapping):
        table, kind = _of_vectors(f"Modality {modality!r}", source), "vectors by name"
    else:
        table, kind = _read_vectors(Path(source)), Path(source).name
    if not origin_of(table):
        table = table.copy(deep=False)
        table.attrs[PROVENANCE] = {"made_by": "table", "source": kind}
    return table


def origin_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return how a function of this package made a table; empty where none did."""
    made = table.attrs.get(PROVENANCE)  # a user may have something else there
    return dict(made) if isinstance(made, Mapping) and "made_by" in made else {}


def checked_table(where: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table of numbers that are present, float64, with text names.

    Raises `SchemaError`: If a column is not numeric, a name is missing or comes twice, or a value
    is infinite in float32, or only some of a row are missing.
    """
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
    if table.index.nlevels > 1:
        msg = f"{where} has an index of {table.index.nlevels} levels; expected one, the name."
        raise SchemaError(msg)
    if table.index.hasnans:
        msg = f"{where} has a missing name; expected the perturbation's name as index."
        raise SchemaError(msg)
    names = pd.Index([str(name).strip() for name in table.index])
    repeated = sorted(set(names[names.duplicated()]))
    if repeated or "" in names:
        msg = f"{where}: names {repeated[:3] or ['']} come twice or are empty; keep one row each."
        raise SchemaError(msg)
    values = table.to_numpy(np.float64, na_value=np.nan)
    gaps = np.isnan(values)
    empty = np.asarray(gaps.all(axis=1))
    fill = "Fill the gaps, drop the columns, or make the whole row NaN (the name lacks it)"
    for what, bad, advice in (
        ("infinite", (np.abs(values) > np.finfo(np.float32).max).any(axis=1), "Rescale them"),
        ("partly missing", gaps.any(axis=1) & ~empty, fill),
    ):
        if bad.any():
            msg = f"{where}: values are {what} for {list(names[bad][:3])} ({bad.sum()}). {advice}."
            raise SchemaError(msg)
    return pd.DataFrame(values, index=names, columns=table.columns).loc[~empty]


def _of_anndata(modality: str, adata: AnnData) -> tuple[pd.DataFrame, str]:
    """Return what `obsm` or `varm` holds under the name of the modality."""
    held = {
        where: (getattr(adata, where)[modality], names)
        for where, names in (("obsm", adata.obs_names), ("varm", adata.var_names))
        if modality in getattr(adata, where)
    }
    if len(held) != 1:
        found = "both hold it" if held else f"they hold {sorted({*adata.obsm, *adata.varm})}"
        msg = (
            f"Modality {modality!r} is read from `obsm` or `varm` of an AnnData under this name; "
            f"{found}. Name the modality as there, or pass a table such as `adata.to_df()`."
        )
        raise SchemaError(msg)
    ((where, (values, names)),) = held.items()
    if isinstance(values, pd.DataFrame):
        return values, where
    dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return _numbered(dense, names), where


def _numbered(values: np.ndarray, names: Iterable[Any]) -> pd.DataFrame:
    """Return a table whose columns are numbers, as text."""
    columns = [str(i) for i in range(values.shape[1])]
    return pd.DataFrame(values, index=pd.Index([str(name) for name in names]), columns=columns)


def _of_vectors(where: str, vectors: Mapping[str, Any]) -> pd.DataFrame:
    """Return vectors of one length by name as a table."""
    try:
        rows = {str(name): np.atleast_1d(np.asarray(v, float)) for name, v in vectors.items()}
    except (TypeError, ValueError) as error:
        msg = f"{where}: expected a vector of numbers for each name ({error})."
        raise SchemaError(msg) from None
    shapes = {row.shape for row in rows.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        few = ", ".join(map(str, sorted(shapes)[:5])) or "none"
        msg = f"{where}: expected vectors of one length, one for each name; found shapes {few}."
        raise SchemaError(msg)
    return _numbered(np.stack(list(rows.values())), rows)


def _read_vectors(path: Path) -> pd.DataFrame:
    """Read a table of vectors; the first column of text, or the index, names the rows."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "npz":
        return _read_npz(path)
    if kind == "parquet":
        table = _read_parquet(path)
        unnamed = isinstance(table.index, pd.RangeIndex) and table.shape[1] > 1
        return table.set_index(table.columns[0]) if unnamed else table
    if kind in ("csv", "tsv", "txt"):
        table = read_columns(path)
        return table.set_index(table.columns[0])
    msg = f"{path.name}: vectors are read from .csv, .tsv, .npz or .parquet, or pass a table."
    raise SchemaError(msg)


def _read_parquet(path: Path) -> pd.DataFrame:
    content = read_bytes(path, kind="a table in Parquet")
    try:
        return pd.read_parquet(io.BytesIO(content))
    except ImportError as error:
        msg = "Parquet is read with pyarrow, which is not installed: `pip install pyarrow`."
        raise ImportError(msg) from error
    except Exception as error:  # what a broken file leads to is up to the library
        msg = f"{path.name} is not a table in Parquet: {error}. Write it anew."
        raise SchemaError(msg) from error


def _read_npz(path: Path) -> pd.DataFrame:
    """Read names and a matrix, or a vector for each name."""
    try:
        with np.load(io.BytesIO(read_bytes(path, kind="an .npz file"))) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # as above; objects would need pickle, which is not loaded
        msg = f"{path.name} is not an .npz file of plain arrays: {error}. Write it anew."
        raise SchemaError(msg) from error
    texts = [one for one in arrays.values() if one.dtype.kind in "US" and one.ndim == 1]
    tables = [one for one in arrays.values() if one.dtype.kind in "iuf" and one.ndim == 2]
    if len(texts) == len(tables) == 1 and len(arrays) == 2 and len(texts[0]) == len(tables[0]):
        return _numbered(tables[0], texts[0].astype(str))
    if texts or tables:
        found = {name: f"{one.dtype}{list(one.shape)}" for name, one in arrays.items()}
        msg = (
            f"{path.name} holds {shown(found)}; expected an array of names `(n,)` and one of "
            "vectors `(n, d)`, or a vector `(d,)` under each name."
        )
        raise SchemaError(msg)
    return _of_vectors(path.name, arrays)


def read_columns(path: Path, n_names: int = 1) -> pd.DataFrame:
    """Read a text table with a header, plain or gzipped; its first columns are text as written.

    Tabs, commas or blanks stand between columns, whichever the header has, in this order.
    `n_names`: Columns that hold names.
    """
    text = read_text(path, kind="a text table")
    header = text.partition("\n")[0]
    between = next((mark for mark in "\t, " if mark in header), None)
    if between is None:
        msg = (
            f"{path.name}: the header {header[:80]!r} has one column; expected two or more, with "
            "tabs, commas or blanks between."
        )
        raise SchemaError(msg)
    read: Callable[..., Any] = pd.read_csv
    columns = [*read(io.StringIO(header), sep=between)]
    missing = {column: _MISSING for column in columns[n_names:]}
    try:
        with warnings.catch_warnings():
            # Rows that are longer than the header would lose their last fields.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.DataFrame(
                read(io.StringIO(text), sep=between, names=columns, header=0, index_col=False,
                     dtype=dict.fromkeys(columns[:n_names], str), keep_default_na=False,
                     na_values=missing)
            )  # fmt: skip
    except pd.errors.ParserWarning:
        msg = (
            f"{path.name}: rows have more fields than the header, {header[:80]!r}. Name every "
            "column, also that of the names."
        )
        raise SchemaError(msg) from None
    except (ValueError, pd.errors.ParserError) as error:
        msg = f"{path.name} is not a table: {error}. Look at its separators and quotes."
        raise SchemaError(msg) from error


@checked
def rename_genes(
    table: pd.DataFrame, names: pd.DataFrame | pd.Series[Any] | Mapping[str, str] | str | Path
) -> pd.DataFrame:
    """Return a table under other names: Ensembl ids as symbols, or symbols as Ensembl ids.

    Parameters
    ----------
    table
        Vectors, index = name.
    names
        Pairs of names: a mapping; a column of `var` such as `adata.var["symbol"]`, whose index is
        the other name; a table, or a file of one, whose first two columns are the pairs. The side
        that holds more of the table's names is that which is replaced. Versions of Ensembl ids
        (`.12`) do not count.

    Returns
    -------
    The table with the new names as index, sorted. A name without a partner has no row, and a name
    with several has its row under each; warnings count both.

    Raises
    ------
    SchemaError
        If no name has a partner, or rows that differ get the same name.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"length": [454.0]}, index=["ENSG00000136997.21"])
    >>> rename_genes(table, {"ENSG00000136997": "MYC"})
         length
    MYC   454.0
    """
    old = pd.Index([unversioned(str(name)) for name in table.index])
    pairs = pairs_of(names, old)
    place = pd.Series(np.arange(len(old)), index=old)
    found = pairs[pairs["old"].isin(old)]
    rows = [(new, i) for old_name, new in found.to_numpy() for i in np.atleast_1d(place[old_name])]
    rows.sort()
    made = table.iloc[[i for _, i in rows]].set_axis(pd.Index([new for new, _ in rows]), axis=0)
    again = made.index.duplicated()
    first = made[~again]
    left, right = first.loc[made.index].to_numpy(), made.to_numpy()
    differ = ~((left == right) | (pd.isna(left) & pd.isna(right))).all(axis=1)
    if differ.any():
        twice = sorted(set(made.index[differ]))
        msg = (
            f"{len(twice)} names get rows that differ: {listed(twice)}. Drop all but one of the "
            "rows of each before you rename, or take their mean."
        )
        raise SchemaError(msg)
    origin = origin_of(first)
    cells = origin.get("cells")
    if cells is not None:  # by which `from_signatures` knows its own cells again
        new = dict(found.to_numpy()[::-1].tolist())
        renamed = [new.get(unversioned(name), name) for name in cells["names"]]
        first.attrs[PROVENANCE] = origin | {"cells": cells | {"names": renamed}}
    return first


def unversioned(name: str) -> str:
    """Return an Ensembl id without its version; other names as they are."""
    return _VERSION.sub(r"\1", name.strip())


def pairs_of(names: object, own: pd.Index) -> pd.DataFrame:
    """Return pairs of names, "old" being the side that holds more of one's own; warn of losses.

    Raises `SchemaError`: If neither side holds any.
    """
    pairs = _two_columns(names)
    shared = [pairs[side].isin(own).sum() for side in ("old", "new")]
    if not max(shared):
        msg = (
            f"None of the {own.nunique()} names ({listed(sorted(set(own))[:3])}) is among those "
            f"to rename by ({listed([*pairs['old'][:2], *pairs['new'][:2]])}). Pass pairs of names "
            "of which the table has one side."
        )
        raise SchemaError(msg)
    if shared[1] > shared[0]:
        pairs = pairs.rename(columns={"old": "new", "new": "old"})[["old", "new"]]
    known = pairs[pairs["old"].isin(own)]
    several = sorted(set(known["old"][known["old"].duplicated()]))
    lost = own.nunique() - known["old"].nunique()
    if several:
        warn(f"{len(several)} names have several partners, and are kept under each: "
             f"{listed(several)}.")  # fmt: skip
    if lost:
        gone = sorted(set(own) - set(known["old"]))
        warn(f"{lost} of {own.nunique()} names have no partner and are left out: {listed(gone)}.")
    return known


def _two_columns(names: object) -> pd.DataFrame:
    """Return pairs of names as text, each once, those with a missing side left out."""
    if isinstance(names, str | Path):
        names = read_columns(Path(names), n_names=2)
    if isinstance(names, pd.DataFrame):
        if names.shape[1] < 2:
            msg = f"Expected two columns of names, found {list(map(str, names.columns))}."
            raise SchemaError(msg)
        sides = names.iloc[:, 0], names.iloc[:, 1]
    else:
        series = pd.Series(names, dtype=object)
        sides = series.index.to_series(), series
    pairs = pd.DataFrame(
        {key: side.to_numpy(object) for key, side in zip(("old", "new"), sides, strict=True)}
    )
    pairs = pairs[pairs.notna().all(axis=1)].astype(str)
    pairs = pairs.apply(lambda side: side.map(unversioned))
    return pairs[(pairs != "").all(axis=1)].drop_duplicates(ignore_index=True)
