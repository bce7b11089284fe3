"""Differential expression against control cells, and whether a prediction reproduces it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.stats import false_discovery_control, norm

from scvi_perturb._checks import checked
from scvi_perturb._core import TARGET_SUM

if TYPE_CHECKING:
    from typing import Any, Self

    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats, Matrix

#: Genes with an adjusted p-value below this are significant.
LEVEL = 0.05

#: With fewer significant genes the error of fold changes is that of a handful at the threshold.
_FEWEST = 10

#: Keeps the fold change of a gene that one side never shows finite, counts per million.
_EPSILON = 1e-9
#: From counts per `TARGET_SUM` to counts per million.
_PER_MILLION = 1e6 / TARGET_SUM
#: No log-normalised value is larger.
_LARGEST = 20.0
_ABOVE = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class DifferentialExpression:
    """Test of each gene between cells and control cells.

    `log_fold_change`: Base-2 logarithm of the ratio of mean counts per million, `(n_genes,)`, of
    all genes. `p_value`: Two-sided p-value, `(n_genes,)`; NaN for a gene that is not tested.
    `p_adjusted`: The same, adjusted over tested genes (Benjamini and Hochberg), `(n_genes,)`. `z`:
    Standardised rank sum, above 0 where cells show more than control, `(n_genes,)`, of all genes; 0
    for a gene that is the same in all cells. `tested`: Genes that control cells express enough to
    be tested, `(n_genes,)`.
    """

    log_fold_change: Floats
    p_value: Floats
    p_adjusted: Floats
    z: Floats
    tested: NDArray[np.bool_]

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Tested genes with an adjusted p-value below 0.05, `(n_genes,)`."""
        return self.tested & (np.nan_to_num(self.p_adjusted, nan=1.0) < LEVEL)


@dataclass(frozen=True, slots=True)
class SortedControl:
    """Control cells prepared for many tests. Create it with `SortedControl.of`.

    `keys`: Different values above 0, gene by gene, smallest first, and one key above them all,
    `(n_values + 1,)`: the gene in the upper, the value in the lower 32 bits. `counts`: How many
    control cells have each value, `(n_values + 1,)`; the last is 0. `below`: How many values above
    0, of this gene and those before it, are smaller, `(n_values + 1,)`. `starts`: `below` at the
    first value of each gene, `(n_genes + 1,)`. `ties`: Sum of `t^3 - t` over the values of each
    gene that `t` cells share, `(n_genes,)`. `cpm`: Mean counts per million, `(n_genes,)`.
    `n_cells`: Number of control cells.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]
    below: NDArray[np.int64]
    starts: NDArray[np.int64]
    ties: Floats
    cpm: Floats
    n_cells: int

    @classmethod
    def of(cls, control: Matrix) -> Self:
        """Sort the values of log-normalised control cells `(n_cells, n_genes)`."""
        cells = _checked(control)
        n_genes = cells.shape[1]
        keys, counts = _unique(cells)
        genes = _genes(keys)
        below = np.concatenate([[0], np.cumsum(counts)])
        starts = below[np.searchsorted(genes, np.arange(n_genes + 1))]
        ties = _sums(genes, _tied(counts), n_genes)
        keys, counts = np.append(keys, _ABOVE), np.append(counts, 0)
        return cls(keys, counts, below, starts, ties, _mean_cpm(cells), cells.shape[0])


@checked
def differential_expression(
    cells: Matrix, control: Matrix | SortedControl, *, min_control_cpm: float = 5.0
) -> DifferentialExpression:
    """Test each gene of cells against control cells.

    The rank-sum test of Wilcoxon, Mann and Whitney, two-sided, by the normal approximation with
    correction for ties and without correction for continuity. It compares values as 32-bit
    numbers, in which equal shares of a cell's counts are equal. Cells count as independent
    observations: for generated cells the test compares predictions, and proves nothing.

    Parameters
    ----------
    cells, control
        Cells as `log_normalize` makes them (`log1p` of counts per ten thousand), dense or sparse,
        `(n, n_genes)` and `(m, n_genes)`. For many tests against the same control cells, give
        `SortedControl.of(control)`, which takes about a third of the time.
    min_control_cpm
        Genes whose mean over control cells is not above this number of counts per million are not
        tested. The control cells alone decide it: a prediction cannot choose its tests.

    Returns
    -------
    Numbers of each gene.

    Raises
    ------
    ValueError
        If genes differ, there are no cells, or values that a log-normalised cell cannot have.

    References
    ----------
    Mann and Whitney, Annals of Mathematical Statistics 1947; Benjamini and Hochberg, Journal of
    the Royal Statistical Society B 1995.
    """
    base = control if isinstance(control, SortedControl) else SortedControl.of(control)
    made = _checked(cells)
    if made.shape[1] != len(base.cpm):
        msg = (
            f"Found {made.shape[1]} genes in cells and {len(base.cpm)} in control cells; both "
            "must hold the same genes in the same order."
        )
        raise ValueError(msg)
    z = _rank_sum(made, base)
    tested = base.cpm > min_control_cpm
    p_value = np.where(tested, 2.0 * norm.sf(np.abs(z)), np.nan)
    p_adjusted = np.full_like(p_value, np.nan)
    if tested.any():
        p_adjusted[tested] = false_discovery_control(p_value[tested])
    change = np.log2((_mean_cpm(made) + _EPSILON) / (base.cpm + _EPSILON))
    return DifferentialExpression(change, p_value, p_adjusted, z, tested)


def de_direction_yield(
    predicted: DifferentialExpression, observed: DifferentialExpression, kept: NDArray[np.bool_]
) -> float:
    """Return the share of significant genes whose direction is right.

    `right / max(n_predicted, n_observed)`: genes called in the prediction whose real fold change
    has the same sign, over the larger number of calls. Calling too many genes costs through the
    first, too few through the second. Whether the gene is significant in the real cells does not
    matter for its sign to be right. Predicted calls of genes without a real direction (a fold
    change of exactly 0) do not count. NaN if no gene is significant in the real cells, whatever
    was predicted (Virtual Cell Challenge 2026, "direction fidelity yield", raw).
    """
    ours, real = (test.log_fold_change for test in (predicted, observed))
    called = predicted.significant & kept & (np.nan_to_num(real) != 0)
    right = called & (np.sign(ours) == np.sign(real))
    n_observed = (observed.significant & kept).sum()
    if not n_observed:
        return float("nan")
    return float(right.sum() / max(called.sum(), n_observed))


def de_jaccard(
    predicted: DifferentialExpression, observed: DifferentialExpression, kept: NDArray[np.bool_]
) -> float:
    """Return the size of the intersection of significant genes over that of their union.

    1 if neither side has significant genes: both say that nothing changes.
    """
    ours, real = predicted.significant & kept, observed.significant & kept
    union = (ours | real).sum()
    return float((ours & real).sum() / union) if union else 1.0


def de_lfc_nmae(
    predicted: DifferentialExpression, observed: DifferentialExpression, kept: NDArray[np.bool_]
) -> float:
    """Return the absolute error of log fold changes over that of predicting none.

    `sum |predicted - real| / sum |real|` over genes that are significant in the real cells. A
    predicted fold change that is not finite counts as no change, so that no gene can be evaded.
    NaN with fewer than 10 significant genes, which the real cells alone decide.
    """
    real = observed.log_fold_change
    genes = observed.significant & kept & np.isfinite(real)
    size = np.abs(real[genes]).sum()
    if genes.sum() < _FEWEST or size == 0:
        return float("nan")
    ours = np.nan_to_num(predicted.log_fold_change[genes], nan=0.0, posinf=0.0, neginf=0.0)
    return float(np.abs(ours - real[genes]).sum() / size)


def _rank_sum(cells: sparse.csr_matrix, control: SortedControl) -> Floats:
    """Return the standardised rank sum of each gene.

    Only values above 0 are sorted: a 0 ties with all other zeros and lies below the rest. The
    statistic counts, for each cell, the control cells below it and half of those that tie with it.
    """
    n, m, n_genes = cells.shape[0], control.n_cells, cells.shape[1]
    keys, counts = _unique(cells)
    genes = _genes(keys)
    place = np.searchsorted(control.keys, keys)
    equal = np.where(control.keys[place] == keys, control.counts[place], 0)
    smaller = control.below[place] - control.starts[genes]
    zeros = n - _sums(genes, counts, n_genes)
    control_zeros = m - np.diff(control.starts)
    wins = _sums(genes, counts * (smaller + 0.5 * equal), n_genes)
    wins += (n - zeros) * control_zeros + 0.5 * zeros * control_zeros
    ties = _sums(genes, _tied(counts + equal) - _tied(equal), n_genes)
    ties += control.ties + _tied(zeros + control_zeros)
    total = n + m
    variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))
    # All values of a gene tie: rounding leaves a variance that is not exactly 0.
    varies = variance > 1e-9 * n * m * total
    excess = wins - 0.5 * n * m
    return np.divide(excess, np.sqrt(variance), out=np.zeros(n_genes), where=varies)


def _tied(counts: NDArray[np.integer] | Floats) -> Floats:
    number = np.asarray(counts, dtype=np.float64)
    return number**3 - number


def _sums(genes: NDArray[np.integer], values: NDArray[Any], n_genes: int) -> Floats:
    """Return the sum of values of each gene, `(n_genes,)`."""
    return np.bincount(genes, values, n_genes).astype(np.float64, copy=False)


def _unique(cells: sparse.csr_matrix) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the different stored values of each gene, sorted, and how often they occur.

    The bits of 32-bit numbers above 0 are ordered as the numbers are, so that gene and value make
    one integer that is ordered by gene, then value.
    """
    columns = cells.tocsc()
    values = columns.data.astype(np.float32)
    # Many short sorts of 32-bit numbers take a tenth of the time of one of all keys.
    for start, stop in pairwise(columns.indptr):
        values[start:stop].sort()
    genes = np.repeat(np.arange(cells.shape[1], dtype=np.uint64), np.diff(columns.indptr))
    keys = genes << np.uint64(32) | values.view(np.uint32)
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    return keys[first], np.diff(first, append=len(keys))


def _genes(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (keys >> np.uint64(32)).astype(np.int64)


def _mean_cpm(cells: sparse.csr_matrix) -> Floats:
    values = np.expm1(cells.data.astype(np.float64))
    return _sums(cells.indices, values, cells.shape[1]) * (_PER_MILLION / cells.shape[0])


def _checked(cells: Matrix) -> sparse.csr_matrix:
    """Return cells as CSR without stored zeros, of values that a log-normalised cell can have."""
    made = sparse.csr_matrix(cells)
    if made.shape[0] == 0:
        msg = "Found no cells; the test needs at least one cell on each side."
        raise ValueError(msg)
    if not made.has_canonical_format:
        made = made.copy()
        made.sum_duplicates()
    if made.nnz == 0:
        return made
    least, most = float(made.data.min()), float(made.data.max())
    if not (least >= 0.0 and most <= _LARGEST):
        msg = (
            f"Found values from {least:.3g} to {most:.3g}; expected cells with `log1p` of counts "
            "per ten thousand: pass `log_normalize(counts)`, and no scaled or centred values."
        )
        raise ValueError(msg)
    if least == 0.0:
        made = made.copy()
        made.eliminate_zeros()
    return made
