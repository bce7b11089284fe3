"""Noise, signal variance and scale of effects, gene by gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import svds
from scipy.stats import ttest_1samp
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]


#: To choose from, in counts per ten thousand; the first, unless another is clearly better.
PSEUDOCOUNTS: Final = (1.0, 0.3, 0.1)
#: How unlikely a gain has to be by chance, one-sided.
_LEVEL: Final = 0.025


@dataclass(frozen=True, slots=True)
class Scale:
    """Changes of `log(x + pseudocount)`, where profiles are `log(x + 1)`.

    Expression `x` is in counts per ten thousand. Of genes far below the pseudocount absolute
    changes add up, of those far above it factors multiply. A small one is right where effects are
    factors, and lets the noise of weak genes in.

    `pseudocount`: Positive; 1 is the scale of profiles.
    """

    pseudocount: float = 1.0

    def changes(self, changes: Floats, controls: Floats) -> Floats:
        """Return changes of profiles on this scale.

        `changes`, `controls`: Change, and the profile that it leads from, `(n, n_genes)`.
        """
        if self == LOG1P:
            return changes
        made: Floats = self._of(controls + changes) - self._of(controls)
        return made

    def back(self, changes: Floats, controls: Floats) -> Floats:
        """Return the changes of profiles that changes on this scale are; see `changes`."""
        if self == LOG1P:
            return changes
        own = self.pseudocount
        reached = (np.expm1(controls) + own) * np.exp(changes) - own
        made: Floats = np.log1p(reached) - controls
        return made

    def steepness(self, profiles: Floats) -> Floats:
        """Return how much a small change of profiles is on this scale, `(n, n_genes)`."""
        if self == LOG1P:
            return np.ones_like(profiles)
        made: Floats = np.exp(profiles) / (np.expm1(profiles) + self.pseudocount)
        return made

    def _of(self, profiles: Floats) -> Floats:
        made: Floats = np.log(np.maximum(np.expm1(profiles), 0.0) + self.pseudocount)
        return made


#: The scale of profiles themselves.
LOG1P: Final = Scale()


def clearly_better(errors: Mapping[Scale, Floats]) -> Scale:
    """Return the choice of least error among those that are clearly better than the first.

    Clearly: the mean difference over groups is above zero by a paired t-test at 2.5 %. So few
    groups, or groups that disagree, leave the first.

    `errors`: Squared errors of the groups that were left out, `(n_groups,)` by choice.
    """
    first, *others = errors
    best = first
    for choice in others:
        gain = errors[first] - errors[choice]
        if len(gain) < 2 or not gain.any():
            continue
        unlikely = ttest_1samp(gain, 0.0, alternative="greater").pvalue
        if unlikely < _LEVEL and errors[choice].sum() < errors[best].sum():
            best = choice
    return best


#: Genes are outputs of their own up to this number of rows squared times genes; components beyond.
_MOST_WORK: Final = 50_000_000
#: Leading components, unless a number is given.
_N_COMPONENTS: Final = 100
#: With more rows than these and no more genes, components come from products of genes: faster.
_MANY_ROWS: Final = 1_000
_MOST_SQUARED: Final = 4_000
#: Power iterations of a random subspace.
_N_POWERS: Final = 7
#: Below this share of all variance a component is rounding.
_ROUNDING: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Outputs:
    """Training changes as outputs, with their noise.

    `values`: `(n_rows, n_outputs)`. `row_noise`: Noise variance of each row, in units of `noise`;
    its mean is near 1, `(n_rows,)`. `noise`: Noise variance of each output, `(n_outputs,)`; None if
    it is not known. `axes`: Components as rows, `(n_outputs, n_genes)`, orthonormal; None if
    outputs are genes. `rest`: Variance of each gene outside the components, `(n_genes,)`.
    """

    values: NDArray[np.float64]
    row_noise: NDArray[np.float64]
    noise: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    rest: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        changes: NDArray[np.float64],
        variances: NDArray[np.float64] | None,
        *,
        n_rows_each: NDArray[np.float64],
        n_components: int | None,
    ) -> Outputs:
        """Choose the outputs.

        Noise is taken as a number for each row times a number for each gene, so that one
        eigendecomposition serves all outputs. Components are those of changes divided by the root
        of the noise of their row, not centred: no perturbation is no change.

        `changes`: `(n_rows, n_genes)`. `variances`: Their sampling variances, or None if these are
        not known. `n_rows_each`: How many rows of data each change is the mean of, where variances
        are not known. `n_components`: Number of components; None leaves genes as they are, if noise
        is known and rows few, and else takes 100.
        """
        row_noise, gene_noise = _separated(variances, n_rows_each)
        n_rows, n_genes = changes.shape
        few = n_rows**2 * n_genes <= _MOST_WORK
        if n_components is None and gene_noise is not None and few:
            return cls(changes, row_noise, gene_noise, None, np.zeros(n_genes))
        axes = _axes(changes / np.sqrt(row_noise)[:, None], n_components or _N_COMPONENTS)
        values = changes @ axes.T
        rest = ((changes - values @ axes) ** 2).mean(axis=0)
        noise = None
        if gene_noise is not None:
            noise = axes**2 @ gene_noise
            rest = np.maximum(rest - gene_noise * row_noise.mean(), 0.0)
        return cls(values, row_noise, noise, axes, rest)

    def subset(self, rows: NDArray[np.intp]) -> Outputs:
        """Return some rows."""
        return Outputs(self.values[rows], self.row_noise[rows], self.noise, self.axes, self.rest)

    def genes(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of outputs as those of genes, `(n, n_genes)`."""
        return values if self.axes is None else values @ self.axes

    def gene_variances(self, variances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return variances of genes from those of outputs, which are independent."""
        return variances if self.axes is None else variances @ self.axes**2


def _separated(
    variances: NDArray[np.float64] | None, n_rows_each: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return the noise of rows and of genes, whose product is nearest to `variances`."""
    if variances is None:
        return n_rows_each.mean() / n_rows_each, None
    rows = variances.mean(axis=1)
    if not rows.any():
        return np.ones(len(rows)), np.zeros(variances.shape[1])
    rows = np.maximum(rows / rows.mean(), 1e-3)
    return rows, (variances / rows[:, None]).mean(axis=0)


def _axes(rows: NDArray[np.float64], n_components: int) -> NDArray[np.float64]:
    """Return leading right singular vectors, `(k, n_genes)`, with the largest entry positive.

    Those of many rows and genes are found in a random subspace (Halko, Martinsson and Tropp, 2011).
    """
    n_rows, n_genes = rows.shape
    few = 4 * n_components < min(rows.shape)
    if few and n_rows > _MANY_ROWS and n_genes <= _MOST_SQUARED:
        first = n_genes - n_components
        squared, vectors = eigh(rows.T @ rows, subset_by_index=(first, n_genes - 1))
        spread, axes = np.sqrt(np.maximum(squared, 0.0))[::-1], vectors.T[::-1]
    elif few and n_rows > _MANY_ROWS:
        _, spread, axes = randomized_svd(rows, n_components, n_iter=_N_POWERS, random_state=0)
    elif few:
        start = np.random.default_rng(0).normal(size=min(rows.shape))
        _, spread, axes = svds(rows, k=n_components, v0=start)
        order = np.argsort(-spread)
        spread, axes = spread[order], axes[order]
    else:
        _, spread, axes = np.linalg.svd(rows, full_matrices=False)
    kept = spread > spread.max(initial=0.0) * np.sqrt(_ROUNDING)
    axes = axes[kept][:n_components] if kept.any() else axes[:1]
    largest = np.abs(axes).argmax(axis=1)
    return axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigendecomposition of `D^-1/2 K D^-1/2`, with `D` the noise of rows.

    With `r` the ratio of noise to signal of an output, its covariance is `s (K + r D)`, of which
    the inverse for every `r` follows from one decomposition.

    `vectors`, `values`: Eigenvectors as columns, and eigenvalues, none negative. `root`: Square
    root of `D`, `(n,)`. `rotated`: `vectors^T D^-1/2 Y`, `(n, n_outputs)`.
    """

    vectors: Floats
    values: Floats
    root: Floats
    rotated: Floats

    @classmethod
    def of(cls, kernel: Floats, row_noise: Floats, outputs: Floats) -> Spectrum:
        """Decompose a kernel `(n, n)` for outputs `(n, n_outputs)`."""
        root = np.sqrt(row_noise)
        values, vectors = np.linalg.eigh(kernel / np.outer(root, root))
        rotated = vectors.T @ (outputs / root[:, None])
        return cls(vectors, np.maximum(values, 0.0), root, rotated)

    def weights(self, ratios: Floats) -> Floats:
        """Return `(K + r D)^-1 Y` with the ratio of each output, `(n, n_outputs)`.

        A kernel to training times these is the posterior mean.
        """
        shrunken = self.rotated / (self.values[:, None] + ratios)
        return (self.vectors @ shrunken) / self.root[:, None]

    def predicted(self, kernel: Floats, weights: Floats) -> Floats:
        """Return the mean of outputs, `(n_asked, n_outputs)`, by what `weights` returned."""
        return kernel @ weights

    def explained(self, kernel: Floats, ratios: Floats) -> Floats:
        """Return the diagonal of `k (K + r D)^-1 k^T` for each ratio, `(n_asked, n_ratios)`.

        `kernel`: Between what is asked and training, `(n_asked, n)`. `ratios`: Any, `(n_ratios,)`.
        """
        turned = (kernel / self.root) @ self.vectors
        return turned**2 @ (1 / (self.values[:, None] + ratios))

    def explained_jointly(self, kernel: Floats, ratio: float) -> Floats:
        """Return `k (K + r D)^-1 k^T` itself, `(n_asked, n_asked)`."""
        turned = (kernel / self.root) @ self.vectors
        return (turned / (self.values + ratio)) @ turned.T

    def left_out(
        self, ratio: float, members: Sequence[NDArray[np.intp]], outputs: NDArray[np.bool_]
    ) -> Floats:
        """Return the residuals of rows when their group is left out, `(n, n_chosen_outputs)`.

        With `Q = (K + r D)^-1`, those of a group `g` are `Q[g, g]^-1 (Q Y)[g]` (Rasmussen and
        Williams 2006, section 5.4.2, for groups), so nothing is fitted twice.

        `ratio`: Of noise to signal. `members`: Rows of each group. `outputs`: Which outputs,
        `(n_outputs,)`.
        """
        inverse = 1 / (self.values + ratio)
        solved = self.vectors @ (inverse[:, None] * self.rotated[:, outputs])
        if len(members) == len(solved):
            made = solved / ((self.vectors**2) @ inverse)[:, None]
        else:
            made = np.empty_like(solved)
            for rows in _by_size(members):
                own = self.vectors[rows]
                within = (own * inverse) @ own.transpose(0, 2, 1)
                made[rows] = np.linalg.solve(within, solved[rows])
        return made * self.root[:, None]

    def left_out_variance(self, ratio: float, members: Sequence[NDArray[np.intp]]) -> Floats:
        """Return the variances of the residuals of `left_out` for a signal variance of 1, `(n,)`.

        They are the diagonal of `Q[g, g]^-1`, noise of the rows included.
        """
        inverse = 1 / (self.values + ratio)
        made = np.empty(len(inverse))
        for rows in _by_size(members):
            own = self.vectors[rows]
            within = (own * inverse) @ own.transpose(0, 2, 1)
            made[rows] = np.diagonal(np.linalg.inv(within), axis1=1, axis2=2)
        return made * self.root**2

    def surprise(self, scales: Floats, ratios: Floats) -> Floats:
        """Return minus twice the log density of each output, up to a constant, `(n_outputs,)`.

        `scales`: Signal variance of each output. `ratios`: Noise by signal variance of each output.
        """
        spread = scales * (self.values[:, None] + ratios)
        return (np.log(spread) + self.rotated**2 / spread).sum(axis=0)


def _by_size(members: Sequence[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    """Return the rows of groups, those of one size together, `(n_groups, size)`."""
    sizes = np.array([len(rows) for rows in members])
    return [
        np.stack([members[i] for i in np.flatnonzero(sizes == size).tolist()])
        for size in np.unique(sizes)
    ]


#: "loo": least squared error of what is left out; "marginal": largest marginal likelihood.
Tune = Literal["loo", "marginal"]

#: Ratios of noise to signal to choose from where noise is unknown; the last is no change.
_RATIOS: Final = (*np.geomspace(1e-2, 1e3, 11).tolist(), 1e6)
#: Known ratios are rounded to this many even steps of a factor of ten, so that outputs share work.
_STEPS: Final = 6
_LEAST, _MOST = 1e-6, 1e6
#: Rows that the mean signal over genes counts as, in that of each gene.
_PRIOR_ROWS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal of each output, and how well it predicts.

    `scales`: Signal variance, for a kernel whose mean diagonal is 1, `(n_outputs,)`. `ratios`:
    Noise by signal variance, `(n_outputs,)`. `score`: What tuning makes least.
    """

    scales: Floats
    ratios: Floats
    score: float


def fit_signal(
    spectrum: Spectrum,
    outputs: Outputs,
    *,
    diagonal: Floats,
    members: Sequence[NDArray[np.intp]],
    tune: Tune,
    noise: float,
) -> Signal:
    """Fit the signal of each output, and score the kernel.

    Where noise is known, the signal of an output is its mean square less its noise, over rows, by
    empirical Bayes; that of a gene is drawn to the mean over genes as if by 1.5 further rows. Where
    it is not, the ratio of both is the one that predicts that output best.

    `spectrum`, `outputs`: Of the training rows. `diagonal`: Of the kernel, `(n_rows,)`. `members`:
    Rows of each group that is left out together. `tune`: What is made least. `noise`: Factor of the
    known noise.
    """
    if outputs.noise is None:
        return _chosen(spectrum, outputs, members, tune)
    scales = _moments(outputs, diagonal)
    ratios = _rounded(noise * outputs.noise / scales)
    if tune == "marginal":
        return Signal(scales, ratios, float(spectrum.surprise(scales, ratios).mean()))
    squared = left_out(spectrum, ratios, members) ** 2
    error = float(row_weights(outputs, float(scales.mean())) @ squared.sum(axis=1))
    return Signal(scales, ratios, error / outputs.values.size)


def left_out(spectrum: Spectrum, ratios: Floats, members: Sequence[NDArray[np.intp]]) -> Floats:
    """Return the residuals of outputs when the group of a row is left out, `(n, n_outputs)`."""
    made = np.empty(spectrum.rotated.shape)
    for ratio in np.unique(ratios):
        here = ratios == ratio
        made[:, here] = spectrum.left_out(float(ratio), members, here)
    return made


def calibration(
    spectrum: Spectrum, outputs: Outputs, signal: Signal, members: Sequence[NDArray[np.intp]]
) -> float:
    """Return the error of what is left out by what was expected of it, both without known noise.

    1 where nothing can be left out. At least 0.1 and at most 10.
    """
    if len(members) < 2:
        return 1.0
    found, expected = 0.0, 0.0
    rows = outputs.row_noise[:, None]
    for ratio in np.unique(signal.ratios):
        here = signal.ratios == ratio
        residuals = spectrum.left_out(float(ratio), members, here)
        variance = spectrum.left_out_variance(float(ratio), members)[:, None] * signal.scales[here]
        noise = 0.0 if outputs.noise is None else rows * outputs.noise[here]
        known = 0.0 if outputs.noise is None else rows * ratio * signal.scales[here]
        found += float((residuals**2 - noise).sum())
        expected += float((variance - known).sum())
    return float(np.clip(found / expected, 0.1, 10.0)) if expected > 0 else 1.0


def _moments(outputs: Outputs, diagonal: Floats) -> Floats:
    noise = np.zeros(outputs.values.shape[1]) if outputs.noise is None else outputs.noise
    excess = outputs.values**2 - outputs.row_noise[:, None] * noise
    mean = max(float(excess.mean()), 0.0)
    weights = row_weights(outputs, mean) ** 2
    found = np.maximum(weights @ excess / (weights @ diagonal), 0.0)
    if outputs.axes is None:
        n_rows = len(outputs.values)
        found = (n_rows * found + _PRIOR_ROWS * found.mean()) / (n_rows + _PRIOR_ROWS)
    least = 1e-9 * float((outputs.values**2).mean())
    return np.maximum(found, max(least, 1e-12))


def row_weights(outputs: Outputs, signal: float) -> Floats:
    """Return the weight of each row's square: less where noise is more; the mean is 1."""
    noise = 0.0 if outputs.noise is None else float(outputs.noise.mean())
    spread = signal + outputs.row_noise * noise
    weights = np.ones_like(spread) if spread.min() <= 0 else 1 / spread
    return weights / weights.mean()


def _rounded(ratios: Floats) -> Floats:
    clipped = np.clip(ratios, _LEAST, _MOST)
    return 10 ** (np.round(np.log10(clipped) * _STEPS) / _STEPS)


def _chosen(
    spectrum: Spectrum, outputs: Outputs, members: Sequence[NDArray[np.intp]], tune: Tune
) -> Signal:
    """Choose the ratio of each output: the best of those that never fall from one to the next."""
    # large components come first and hold more signal; free choices would fit the noise of many
    n_rows, n_outputs = outputs.values.shape
    every = np.ones(n_outputs, bool)
    scores = np.empty((len(_RATIOS), n_outputs))
    scales = np.empty_like(scores)
    for i, ratio in enumerate(_RATIOS):
        spread = spectrum.values[:, None] + ratio
        scales[i] = np.maximum((spectrum.rotated**2 / spread).mean(axis=0), 1e-12)
        if tune == "marginal":
            scores[i] = spectrum.surprise(scales[i], np.full(n_outputs, ratio))
        else:
            weights = 1 / outputs.row_noise / np.mean(1 / outputs.row_noise)
            scores[i] = weights @ spectrum.left_out(ratio, members, every) ** 2 / n_rows
    best = _rising(scores)
    place = best, np.arange(n_outputs)
    return Signal(scales[place], np.array(_RATIOS)[best], float(scores[place].sum() / n_outputs))


def _rising(scores: Floats) -> NDArray[np.intp]:
    """Return the choice of least total score that rises or stays from column to column."""
    n_choices, n_columns = scores.shape
    total = np.zeros(n_choices)
    came_from = np.zeros(scores.shape, np.intp)
    for column in range(n_columns):
        least = np.minimum.accumulate(total)
        new_least = np.r_[True, total[1:] < least[:-1]]
        came_from[:, column] = np.maximum.accumulate(np.where(new_least, np.arange(n_choices), 0))
        total = least + scores[:, column]
    chosen = np.empty(n_columns, np.intp)
    place = int(total.argmin())
    for column in reversed(range(n_columns)):
        chosen[column] = place
        place = int(came_from[place, column])
    return chosen
