"""Features from networks of genes, and from the targets of drugs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import svds

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import SchemaError, drawn_seed, warn
from scvi_perturb.features.genes import PROVENANCE, listed
from scvi_perturb.features.sources import (
    checked_table,
    origin_of,
    pairs_of,
    read_columns,
    unversioned,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Direction = Literal["both", "out", "in"]
NetworkKind = Literal["diffusion", "heat", "spectral"]

#: Chance that a random walk starts anew at each step.
_RESTART: Final = 0.5
#: Networks of fewer names are decomposed as dense matrices.
_FEW: Final = 500
#: Squared length below which the leading components say nothing of a name.
_NOTHING: Final = 1e-12


@checked
def network_embedding(
    edges: pd.DataFrame | str | Path,
    *,
    score: str | None = None,
    min_score: float | None = None,
    names: pd.DataFrame | pd.Series[Any] | Mapping[str, str] | str | Path | None = None,
    direction: Direction = "both",
    kind: NetworkKind = "diffusion",
    n_components: int = 64,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Return vectors of the names of a network, near each other where the network joins them.

    Weights are divided by the root of the (absolute) degrees of both ends, and the matrix is
    decomposed into its leading components. Only the largest connected piece has vectors. Where no
    weight is negative, the first component, which says only how many neighbours a name has, is left
    out. Vectors have length 1, so that names with many neighbours do not stand apart.

    Parameters
    ----------
    edges
        A table of edges, or a text file with a header, plain or gzipped: STRING's links, a list of
        regulators and targets. Its first two columns are the ends. An edge of a name with itself is
        left out; the weights of an edge that comes several times are averaged.
    score
        Column of numbers with the weight of each edge; below zero it is an inhibition. None takes
        the third column if `min_score` is given, and else the weight 1.
    min_score
        Edges of a smaller absolute score are left out, such as 700 in STRING's files.
    names
        Other names of the ends, as in :func:`rename_genes`: Ensembl ids of proteins to symbols.
    direction
        "both": edges have no direction. "out": a name is described by what it acts on (the second
        column), and names that act on nothing are missing. "in": by what acts on it.
    kind
        How components count. With `l` their eigenvalue (with a direction, their squared singular
        value): "spectral", all alike; "diffusion", by `r / (1 - (1 - r) l)` with `r = 0.5`, so that
        products of vectors are a random walk with restart; "heat", by `exp(l - 1)`.
    n_components
        Length of the vectors, less where the network has fewer.
    seed
        Seed of the solver's start. Signs are fixed: the largest entry of each component is positive
        before the rows are scaled.

    Returns
    -------
    A table `(n_names, n_components)`, float64, index = name, sorted: a modality of
    :class:`PerturbationFeatures`. A name without an edge has no row.

    Raises
    ------
    SchemaError
        If the table has no two columns of names, scores are not finite numbers, no edge is left, or
        no end is among `names`.
    ValueError
        If `kind` or `direction` is none of these.

    References
    ----------
    Ng, Jordan and Weiss, On spectral clustering, NeurIPS 2001; Kondor and Lafferty, Diffusion
    kernels on graphs, ICML 2002; Cowen et al., Network propagation, Nature Reviews Genetics 2017.

    Examples
    --------
    >>> edges = pd.DataFrame({"a": ["JAK2", "JAK2", "MYC"], "b": ["STAT1", "STAT3", "STAT3"]})
    >>> network_embedding(edges, n_components=2).index.tolist()
    ['JAK2', 'MYC', 'STAT1', 'STAT3']
    """
    check_choice("direction", direction, ("both", "out", "in"))
    check_choice("kind", kind, ("diffusion", "heat", "spectral"))
    frame = _read_edges(edges, score, min_score)
    n_read = len(frame)
    frame = _between(frame, names, directed=direction != "both")
    index, vectors, values = _decomposed(frame, direction, n_components, drawn_seed(seed))
    length = {
        "spectral": np.ones_like(values),
        "diffusion": np.sqrt(_RESTART / (1 - (1 - _RESTART) * values)),
        "heat": np.exp((values - 1) / 2),
    }[kind]
    made = vectors * length
    if not made.shape[1]:
        msg = (
            "In the largest piece of the network all names have the same neighbours, so that it "
            'tells none from another. Take direction="both", or more edges.'
        )
        raise SchemaError(msg)
    squared = (made**2).sum(axis=1)
    seen = squared > _NOTHING
    table = pd.DataFrame(
        made[seen] / np.sqrt(squared[seen])[:, None],
        index=pd.Index(index[seen]),
        columns=[f"{kind}_{i}" for i in range(made.shape[1])],
    ).sort_index()
    table.attrs[PROVENANCE] = {
        "made_by": "network_embedding", "kind": kind, "direction": direction,
        "min_score": min_score, "n_edges": len(frame), "n_edges_read": n_read,
        "source": Path(edges).name if isinstance(edges, str | Path) else "table",
    }  # fmt: skip
    return table


def _read_edges(
    edges: pd.DataFrame | str | Path, score: str | None, min_score: float | None
) -> pd.DataFrame:
    """Return the edges as columns "a", "b" and "weight", those of a lower score left out."""
    frame = edges if isinstance(edges, pd.DataFrame) else read_columns(Path(edges), n_names=2)
    columns = [str(column) for column in frame.columns]
    least = 2 + (min_score is not None and score is None)
    if len(columns) < least or (score is not None and score not in columns):
        wanted = f"a column {score!r}" if score is not None else f"{least} columns"
        msg = f"Edges have the columns {columns}; expected two ends and {wanted}."
        raise SchemaError(msg)
    ends = frame.iloc[:, :2].set_axis(["a", "b"], axis=1)
    made = ends.astype(object).where(ends.notna(), "").astype(str).reset_index(drop=True)
    made = made.apply(lambda side: side.str.strip())
    missing = int((made == "").any(axis=1).sum())
    if missing:
        msg = f"{missing} of {len(made)} edges lack an end; drop them."
        raise SchemaError(msg)
    column = 2 if score is None else columns.index(score)
    made["weight"] = 1.0
    if score is not None or min_score is not None:
        weights = pd.to_numeric(frame.iloc[:, column], errors="coerce").to_numpy(float)
        if not np.isfinite(weights).all():
            msg = (
                f"Column {columns[column]!r} holds {int((~np.isfinite(weights)).sum())} values "
                "that are not finite numbers; expected the score of each edge."
            )
            raise SchemaError(msg)
        made["weight"] = weights
    if min_score is not None:
        high = made["weight"].abs() >= min_score
        if not high.any():
            ends_at = f"{made['weight'].abs().min():g} to {made['weight'].abs().max():g}"
            msg = f"No edge has a score of {min_score:g} or more: they are {ends_at}."
            raise SchemaError(msg)
        made = made[high]
    return made[made["weight"] != 0]


def _between(frame: pd.DataFrame, names: object, *, directed: bool) -> pd.DataFrame:
    """Return each edge once, between other names if asked, none of a name with itself."""
    if names is not None:
        frame = frame.assign(a=frame["a"].map(unversioned), b=frame["b"].map(unversioned))
        pairs = pairs_of(names, pd.Index(pd.unique(frame[["a", "b"]].to_numpy().ravel())))
        for side in ("a", "b"):
            frame = frame.merge(pairs, left_on=side, right_on="old")
            frame = frame.assign(**{side: frame["new"]})[["a", "b", "weight"]]
    frame = frame[frame["a"] != frame["b"]]
    if not directed:
        swapped = (frame["a"] > frame["b"]).to_numpy()
        frame = frame.assign(
            a=np.where(swapped, frame["b"], frame["a"]), b=np.where(swapped, frame["a"], frame["b"])
        )
    frame = frame.groupby(["a", "b"])["weight"].mean().reset_index()
    frame = frame[frame["weight"] != 0]
    if frame.empty:
        msg = "The edge list has no edge between two different names; nothing can be embedded."
        raise SchemaError(msg)
    return frame


def _decomposed(
    frame: pd.DataFrame, direction: Direction, n_components: int, seed: int
) -> tuple[NDArray[Any], Floats, Floats]:
    """Return names, their components `(n, k)` and eigenvalues `(k,)`, the largest first."""
    left, right = frame["a"].to_numpy(str), frame["b"].to_numpy(str)
    if direction == "in":
        left, right = right, left
    rows, row = np.unique(left, return_inverse=True)
    columns, column = np.unique(right, return_inverse=True)
    weights = frame["weight"].to_numpy(float)
    if direction == "both":
        rows = columns = np.union1d(rows, columns)
        one, other = np.searchsorted(rows, left), np.searchsorted(rows, right)
        row, column = np.concatenate([one, other]), np.concatenate([other, one])
        weights = np.tile(weights, 2)
    matrix = sparse.csr_matrix((weights, (row, column)), (len(rows), len(columns)))
    matrix, kept = _largest_piece(matrix, symmetric=direction == "both")
    degrees = [np.asarray(abs(matrix).sum(axis=axis)).ravel() for axis in (1, 0)]
    scale = [sparse.diags(1 / np.sqrt(np.maximum(degree, 1e-300))) for degree in degrees]
    matrix = sparse.csr_matrix(scale[0] @ matrix @ scale[1])
    first = int(weights.min() > 0)  # that of the degrees alone
    vectors, values = _leading(
        matrix, n_components + first, symmetric=direction == "both", seed=seed
    )
    return rows[kept], vectors[:, first:], values[first:]


def _largest_piece(
    matrix: sparse.csr_matrix, *, symmetric: bool
) -> tuple[sparse.csr_matrix, NDArray[np.bool_]]:
    """Return the largest connected piece, and which rows are in it; warn of the others."""
    joined = matrix if symmetric else sparse.bmat([[None, matrix], [matrix.T, None]])
    _, piece = connected_components(joined, directed=False)
    of_rows = piece[: matrix.shape[0]]
    kept = of_rows == np.bincount(of_rows).argmax()
    if not kept.all():
        warn(f"{int((~kept).sum())} of {len(kept)} names are not joined to the largest piece of "
             "the network and have no vector.")  # fmt: skip
    columns = kept if symmetric else piece[matrix.shape[0] :] == of_rows[kept][0]
    return matrix[kept][:, columns], kept


def _leading(
    matrix: sparse.csr_matrix, n_components: int, *, symmetric: bool, seed: int
) -> tuple[Floats, Floats]:
    """Return the leading components and their eigenvalues; of rows where not symmetric."""
    n = min(n_components, *matrix.shape)
    start = np.random.default_rng(seed).normal(size=min(matrix.shape))
    if symmetric and (matrix.shape[0] <= _FEW or n >= matrix.shape[0] - 1):
        values, vectors = np.linalg.eigh(matrix.toarray())
    elif symmetric:
        values, vectors = sparse.linalg.eigsh(matrix, k=n, which="LA", v0=start)
    elif min(matrix.shape) <= _FEW or n >= min(matrix.shape) - 1:
        vectors, values, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
        values = values**2
    else:
        vectors, values, _ = svds(matrix, k=n, v0=start)
        values = values**2
    order = np.argsort(-values, kind="stable")[:n]
    vectors, values = vectors[:, order], np.clip(values[order], -1.0, 1.0)
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(len(order))])
    return vectors * np.where(signs == 0, 1.0, signs), values


@checked
def target_features(
    targets: Mapping[str, Collection[str]] | pd.DataFrame | str | Path,
    vectors: pd.DataFrame | None = None,
    *,
    drug: str | None = None,
    target: str | None = None,
    separator: str | None = None,
    min_drugs: int = 1,
) -> pd.DataFrame:
    """Return what drugs bind: a column for each target, or the mean vector of their targets.

    Parameters
    ----------
    targets
        Targets of each drug by its name; or a table, or a text file with a header, of drugs and
        targets, one row a pair or one row a drug.
    vectors
        Vectors of the targets, index = name, such as :func:`network_embedding` returns. None makes
        a column for each target.
    drug, target
        Columns of the table; None takes the first and the second of a table of two.
    separator
        What stands between the targets of a drug, such as "," in "EGFR,HER2"; None takes the text
        as one name.
    min_drugs
        Without vectors, targets of fewer drugs have no column.

    Returns
    -------
    A table, index = drug: `(n_drugs, n_targets)` of 0 and 1, or `(n_drugs, n_components)`. A drug
    without a target that is a column, or that has a vector, has no row; a warning names those.

    Raises
    ------
    SchemaError
        If a column is absent, or no drug has a target, or none of the targets has a vector.

    Examples
    --------
    >>> target_features({"gefitinib": ["EGFR"], "lapatinib": ["EGFR", "ERBB2"]})
               EGFR  ERBB2
    gefitinib     1      0
    lapatinib     1      1
    """
    held = _targets_of(targets, drug, target, separator)
    if not any(held.values()):
        msg = "No drug has a target; expected at least one pair of a drug and a target."
        raise SchemaError(msg)
    table = _membership(held, min_drugs) if vectors is None else _mean_vectors(held, vectors)
    lost = [name for name in held if name not in table.index]
    if lost:
        has = "in the table" if vectors is None else "with a vector"
        warn(f"{len(lost)} of {len(held)} drugs have no target {has} and get no row: "
             f"{listed(lost)}.")  # fmt: skip
    table.attrs[PROVENANCE] = {
        "made_by": "target_features",
        "of_targets": None if vectors is None else origin_of(vectors),
        "source": Path(targets).name if isinstance(targets, str | Path) else "table",
    }
    return table


def _targets_of(
    targets: Mapping[str, Collection[str]] | pd.DataFrame | str | Path,
    drug: str | None,
    target: str | None,
    separator: str | None,
) -> dict[str, frozenset[str]]:
    """Return the targets of each drug."""
    if isinstance(targets, Mapping):
        pairs = [
            (name, one)
            for name, own in targets.items()
            for one in ([own] if isinstance(own, str) else own)
        ]
    else:
        frame = targets if isinstance(targets, pd.DataFrame) else read_columns(Path(targets))
        columns = [str(column) for column in frame.columns]
        asked = [drug or columns[0], target or columns[-1]]
        absent = [column for column in asked if column not in columns]
        if absent:
            msg = f"Columns {absent} were not found; the table has {columns}."
            raise SchemaError(msg)
        if len(columns) != 2 and (drug is None or target is None):
            msg = (
                f"The table has the columns {columns}; expected one of drugs and one of targets. "
                "Name both with `drug` and `target`."
            )
            raise SchemaError(msg)
        frame = frame.set_axis(columns, axis=1)
        pairs = list(zip(frame[asked[0]], frame[asked[1]], strict=True))
    found: dict[str, set[str]] = {}
    for name, own in pairs:
        if pd.isna(name) or pd.isna(own):
            continue
        parts = [str(own)] if separator is None else str(own).split(separator)
        found.setdefault(str(name).strip(), set()).update(p.strip() for p in parts if p.strip())
    return {name: frozenset(own) for name, own in sorted(found.items())}


def _membership(held: Mapping[str, frozenset[str]], min_drugs: int) -> pd.DataFrame:
    """Return 1 where a drug has a target, of the targets that enough drugs have."""
    n_drugs = Counter(one for own in held.values() for one in own)
    kept = sorted(one for one, n in n_drugs.items() if n >= min_drugs)
    if not kept:
        most = max(n_drugs.values())
        msg = f"No target is shared by {min_drugs} drugs (the most is {most}). Lower `min_drugs`."
        raise SchemaError(msg)
    values = np.array([[one in own for one in kept] for own in held.values()], np.uint8)
    table = pd.DataFrame(values, index=pd.Index(list(held)), columns=kept)
    return table.loc[table.any(axis=1)]


def _mean_vectors(held: Mapping[str, frozenset[str]], vectors: pd.DataFrame) -> pd.DataFrame:
    """Return the mean vector of the targets of each drug, over those that have one."""
    vectors = checked_table("Vectors of targets", vectors)
    has = {*vectors.index}
    known = {name: sorted(own & has) for name, own in held.items() if own & has}
    if not known:
        some = sorted(frozenset[str]().union(*held.values()))
        msg = (
            f"None of the targets ({listed(some[:5])}) has a vector; the vectors are of "
            f"{listed(sorted(map(str, has))[:5])}. Use the same identifiers."
        )
        raise SchemaError(msg)
    rows = [vectors.loc[own].mean(axis=0) for own in known.values()]
    return pd.DataFrame(rows, index=pd.Index(list(known)))
