"""Effects of conditions: profiles, changes and intervals, in memory or streamed to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_h5ad
from scipy import sparse
from scipy.special import stdtrit

from scvi_perturb._core import TARGET_SUM
from scvi_perturb._files import writing_hdf5
from scvi_perturb.data.reader import read_rows
from scvi_perturb.model.base.draw import condition_frame, group_populations, write_annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from scvi_perturb.data.request import Request
    from scvi_perturb.data.screen import Screen
    from scvi_perturb.model.base.draw import Drawn
    from scvi_perturb.model.base.reference import Plan, Reference

    Floats = NDArray[np.float64]
    #: Tables of some rows of a request, by name, `(n_rows, n_genes)` each.
    Block = Mapping[str, np.ndarray]

#: Tables of effects; all but the profiles `X` are layers.
TABLES: Final = ("X", "lfc", "lower", "upper", "std")


def effect_blocks(
    drawn: Iterator[Drawn], plan: Plan, *, likelihood: str, interval: float
) -> Iterator[Block]:
    """Yield the effects of the rows of a request in turn, from cells drawn for it."""
    ends = np.searchsorted(plan.row, np.arange(len(plan.request) + 1))
    for row, shares, _ in group_populations(drawn, plan.row, likelihood):
        used = plan.reference[ends[row] : ends[row + 1]]
        yield {k: v[None] for k, v in _effect(shares, plan.cells, used, interval).items()}


def effects_adata(
    blocks: Iterable[Block],
    request: Request,
    screen: Screen,
    *,
    n_cells: NDArray[np.intp] | int,
    annotate: Callable[[], Mapping[str, np.ndarray]] = dict,
    uns: dict[str, Any] | None = None,
    path: str | Path | None = None,
    inputs: Iterable[object] = (),
) -> AnnData:
    """Return one row a condition, or stream them to a file and open it backed.

    `blocks`: Tables of the rows in their order, `X`, `lfc`, `lower`, `upper` and `std`. `n_cells`:
    Cells behind each row. `annotate`: Returns further columns of `obs`; asked after the last block.
    `inputs`: Data that are read meanwhile: their files are not written to.
    """
    shape = (len(request), len(screen.genes))
    if path is None:
        tables: dict[str, Any] = {name: np.empty(shape, np.float32) for name in TABLES}
        _fill(tables, blocks, check=lambda: None)
        return AnnData(
            tables.pop("X"),
            obs=_effects_obs(request, screen, n_cells, annotate()),
            var=pd.DataFrame(index=pd.Index(screen.genes)),
            layers=tables,
            uns=uns,
        )
    with writing_hdf5(path, inputs=inputs, make_folder=True) as (file, check):
        tables = {
            name: file.create_dataset("X" if name == "X" else f"layers/{name}", shape, "f4")
            for name in TABLES
        }
        for table in tables.values():
            table.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        _fill(tables, blocks, check=check)
        obs = _effects_obs(request, screen, n_cells, annotate())
        write_annotations(file, obs=obs, genes=screen.genes, uns=uns or {})
    return read_h5ad(path, backed="r")


def with_support(novelty: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of `obs` that tell how new each row is."""
    return {"novelty": novelty, "support": 1.0 - novelty}


def _fill(tables: Mapping[str, Any], blocks: Iterable[Block], check: Callable[[], None]) -> None:
    start = 0
    for block in blocks:
        stop = start + len(block["X"])
        for name, table in tables.items():
            table[start:stop] = block[name]
        start = stop
        check()


def _effects_obs(
    request: Request,
    screen: Screen,
    n_cells: NDArray[np.intp] | int,
    more: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    frame = condition_frame(request, screen)
    frame["n_cells"] = n_cells
    frame.index = pd.Index([f"row{i}" for i in range(len(frame))])
    for column in frame:
        if frame[column].dtype == object:
            frame[column] = frame[column].astype("category")
    return frame.assign(**more)


def _effect(
    shares: np.ndarray, cells: Reference, used: np.ndarray, interval: float
) -> dict[str, np.ndarray]:
    """Return profile, effect and interval of one population, each `(n_genes,)`.

    A drawn cell keeps much of its reference, and their difference is what is uncertain: reference
    cells, each with what was drawn from it, are the independent units. The variance is that of
    their linear influences on the difference (the delta method; the infinitesimal jackknife), and
    the interval Student's with as many degrees of freedom as cells but one. From a single
    reference cell no interval can be had, and it is NaN.

    `shares`: Expected shares of the drawn cells. `used`: The reference cell of each. Both profiles
    are those of summed counts.

    Reference: Efron, Nonparametric estimates of standard error, Biometrika 1981.
    """
    pool, place = np.unique(used, return_inverse=True)
    n, library = len(pool), cells.library[used]
    counts = read_rows(cells.counts, pool)
    control = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    weights = (library.astype(np.float32), (place, np.arange(len(used))))
    expected = sparse.csr_matrix(weights, (n, len(used))) @ shares.astype(np.float32)
    size = np.asarray(np.bincount(place, library), np.float64)
    own_size = cells.library[pool].astype(np.float64)
    share, moved = _influences(expected, size)
    own_share, own_moved = _influences(control.astype(np.float32), own_size)
    moved -= own_moved
    effect = _log(share) - _log(own_share)
    variance = np.einsum("ij,ij->j", moved, moved, dtype=np.float64)
    std = np.sqrt(variance * (n / (n - 1))) if n > 1 else np.full_like(effect, np.nan)
    reach = std * (stdtrit(n - 1, (1 + interval) / 2) if n > 1 else np.nan)
    results = {
        "X": _log(share),
        "lfc": effect,
        "lower": effect - reach,
        "upper": effect + reach,
        "std": std,
    }
    return {key: value.astype(np.float32) for key, value in results.items()}


def _influences(counts: NDArray[np.float32], library: Floats) -> tuple[Floats, NDArray[np.float32]]:
    """Return the shares of summed counts, and what each cell adds to their logarithm.

    `counts`: `(n_cells, n_genes)`, which become the influences, `T (x - p l) / (1 + T p)` by the
    sum of all `l`. `library`: `(n_cells,)`.
    """
    total = library.sum()
    share: Floats = counts.sum(axis=0, dtype=np.float64) / total
    counts -= np.outer(library.astype(np.float32), share.astype(np.float32))
    counts *= (TARGET_SUM / (1 + TARGET_SUM * share) / total).astype(np.float32)
    return share, counts


def _log(share: Floats) -> Floats:
    made: Floats = np.log1p(TARGET_SUM * share)
    return made
