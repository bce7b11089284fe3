"""Which perturbation is behind a change, or would bring it about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.special import logsumexp, softmax

from scvi_perturb._checks import checked
from scvi_perturb._core import CONTROL, Column, SchemaError
from scvi_perturb.data.condition import default_keys
from scvi_perturb.data.reader import align_genes
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.request import read_counts, request_frame
from scvi_perturb.tl._blocks import condition_names
from scvi_perturb.tl._populations import FEWEST_CELLS, EffectGroups, stated_effects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys

    Floats = NDArray[np.float64]


#: Axes of effects that are looked at.
_MOST_AXES: Final = 30
#: Parts of the candidates; axes for one are taken from the others.
_N_FOLDS: Final = 10
#: Columns of the result that are not those of the candidate.
_OWN: Final = (
    "shift", "rank", "explanation", "probability", "evidence", "strength", "cosine",
)  # fmt: skip


@checked
def reverse(
    candidates: AnnData,
    shift: AnnData,
    *,
    reference: AnnData | None = None,
    keys: ScreenKeys | None = None,
    strength_sd: float = 0.3,
    n_boot: int = 100,
    seed: int | None = 0,
) -> pd.DataFrame:
    r"""Rank the conditions that may have caused a change, or would move cells from A to B.

    Each candidate has an effect with an error, and the change has an error of its own: that of
    measured cells is taken from draws of cells, genes varying together, that of predictions from
    their `std`. The change is explained by a candidate if it is, within both errors, the same
    effect, up to its strength, which is normal around 1. Other explanations are that nothing
    changed, and that the cause is another condition, whose effect lies along the axes of those of
    the candidates, but anywhere. All explanations are equally likely beforehand.

    Parameters
    ----------
    candidates
        What `predict` returns with `std`: a row a perturbation, dose or pair. Or measured cells
        with raw counts, control cells among them.
    shift
        Cells with raw counts, control cells among them: each condition is a change to explain. Or
        a table of changes with the layers `lfc` and `std`. With `reference`, all cells are those
        of B.
    reference
        Cells of A, raw counts: the change to explain is that from these to `shift`.
    keys
        Where cells hold their conditions and counts; None takes what `pp.harmonize` recorded or
        writes.
    strength_sd
        Standard deviation of the strength: 0 if the change has the size that the candidate states.
    n_boot
        Draws of cells.
    seed
        Seed of the draws.

    Returns
    -------
    pandas.DataFrame
        One row a change and explanation, the most probable first: `shift`, its label; `rank`, from
        1; `explanation`, "candidate", "no change" or "another cause"; the columns of the candidate;
        `probability`, which sums to 1 over a change; `evidence`, the logarithm of the odds against
        another cause; `strength`, how much stronger the change is than the effect; `cosine` of the
        change and the effect, both in units of noise.

    Raises
    ------
    SchemaError
        If effects have no `std`, or one that is not finite, cells no controls, no change has 10
        cells on both sides, or there are fewer than 10 common genes.

    Notes
    -----
    Errors between experiments, such as other batches, are not among those counted: probabilities
    are then too sure. Conditions with like effects share the probability.
    """
    shift = shift if reference is None else _between(reference, shift, keys)
    genes = candidates.var_names[candidates.var_names.isin(shift.var_names)]
    if len(genes) < 10:
        msg = (
            f"Candidates and shift have {len(genes)} genes in common; expected at least 10. The "
            f"names are such as {candidates.var_names[0]!r} and {shift.var_names[0]!r}."
        )
        raise SchemaError(msg)
    stated = _Seen.of(candidates, keys, genes, n_boot, seed)
    changes = _Seen.of(shift, None if reference is not None else keys, genes, n_boot, seed)
    white = _Whitening.of(stated, changes)
    laws = _laws(stated, white)
    obs = stated.obs.reset_index(drop=True)
    tables = []
    for label, change, std in zip(changes.labels, changes.values, changes.std, strict=True):
        y, noise = white(change), white.level(std)
        by_law = pd.DataFrame([law.explains(y, noise, strength_sd) for law in laws])
        tables.append(_table(label, obs, by_law, _log_density(_squared(y), noise, len(y))))
    return pd.concat(tables, ignore_index=True)


class _Explained(NamedTuple):
    """How well an effect explains a change, and how well another one would.

    `evidence`, `other`: Log densities of the change by this effect, and by one that is only known
    to lie as effects do.
    """

    evidence: float
    other: float
    strength: float
    cosine: float


@dataclass(frozen=True)
class _Seen:
    """Effects and their errors.

    `labels`, `obs`: Names, and columns. `values`: Effects, `(n, n_genes)`. `off`: Draws of the
    errors of each, `(n_draws, n_genes)`, or None where `std` is stated. `std`: Standard deviations,
    `(n, n_genes)`.
    """

    labels: list[str]
    obs: pd.DataFrame
    values: Floats
    off: list[Floats] | None
    std: Floats

    @classmethod
    def of(
        cls, data: AnnData, keys: ScreenKeys | None, genes: pd.Index, n_boot: int, seed: int | None
    ) -> _Seen:
        """Return the effects that are stated, or that cells show beside their controls."""
        place = data.var_names.get_indexer(genes)
        if "lfc" in data.layers:
            lfc, std = (layer[:, place] for layer in stated_effects(data))
            obs = data.obs.drop(columns=["novelty", "support", *_OWN], errors="ignore")
            return cls(condition_names(data), obs, lfc, None, std)
        populations = EffectGroups.of(data, keys, seed=seed)
        controls = {context for what, context in populations.rows if what.is_control}
        rows, values, off = [], [], []
        for what, context in populations.rows:
            if not what.is_control and context in controls:
                effect, draws, _ = populations.draws([what], context, n_boot)
                rows.append(RequestRow(what, context))
                values.append(effect[0, place])
                off.append((draws[:, 0] - effect[0])[:, place])
        if not rows:
            msg = "Found no perturbed condition with control cells in its context; expected one."
            raise SchemaError(msg)
        obs = request_frame(rows, populations.keys)
        std = np.stack([own.std(axis=0) for own in off])
        return cls(condition_names(AnnData(obs=obs)), obs, np.stack(values), off, std)


@dataclass(frozen=True, slots=True)
class _Whitening:
    """What makes errors of genes uncorrelated and of variance 1, for a change of usual precision.

    `scale`: Standard error of each gene, `(n_genes,)`. `axes`: Directions along which errors go
    together, `(n_axes, n_genes)`. `by`: Factor along each, less 1.
    """

    scale: Floats
    axes: Floats
    by: Floats

    @classmethod
    def of(cls, stated: _Seen, changes: _Seen) -> _Whitening:
        """Learn from draws of measured cells; errors that are only stated are independent."""
        variance = (changes.std**2).mean(axis=0)
        scale = np.sqrt(np.maximum(variance, max(1e-3 * float(variance.mean()), 1e-12)))
        n_genes = len(scale)
        off = stated.off or changes.off
        if off is None:
            return cls(scale, np.zeros((0, n_genes)), np.zeros(0))
        sizes = [max(float(np.linalg.norm(own)), 1e-12) for own in off]
        errors = [own[:20] / size / scale for own, size in zip(off, sizes, strict=True)]
        _, spread, axes = np.linalg.svd(np.concatenate(errors), full_matrices=False)
        n = min(_MOST_AXES, len(spread) // 4)
        rest = max(float((spread[n:] ** 2).sum()) / (n_genes - n), 1e-12)
        by = 1 / np.sqrt(np.maximum(spread[:n] ** 2 / rest, 1.0))
        return cls(scale, axes[:n], by - 1)

    def __call__(self, values: Floats) -> Floats:
        """Return effects `(..., n_genes)` in independent units."""
        made = values / self.scale
        return np.asarray(made + (made @ self.axes.T * self.by) @ self.axes)

    def level(self, std: Floats) -> float:
        """Return the mean variance of an error in these units."""
        return max(float(((std / self.scale) ** 2).mean()), 1e-6)


@dataclass(frozen=True, slots=True)
class _Law:
    """What is known of one effect, in units in which errors are independent.

    Axes are those of other candidates, so that they owe nothing to the noise of this one.

    `noise`: Variance of the error of the effect. `axes`: `(n_axes, n_genes)`, orthonormal. `sizes`:
    Variance of effects along them. `beyond`: And of this one along any direction beyond them.
    `along`, `off`: Effect along the axes, `(n_axes,)`, and beyond them, `(n_genes,)`.
    """

    noise: float
    axes: Floats
    sizes: Floats
    beyond: float
    along: Floats
    off: Floats

    @classmethod
    def of(cls, x: Floats, noise: float, others: Floats, typical: float) -> _Law:
        """Learn from an effect, its noise, and other effects in standard errors, `(n, n_genes)`.

        `typical`: Variance of the error of a usual effect.
        """
        n, n_genes = others.shape
        # The noise of control cells, which all have in common, would look like an effect.
        _, spread, axes = np.linalg.svd(others - others.mean(axis=0), full_matrices=False)
        sizes = spread**2 / n
        # Independent errors alone make less than this along any axis (Marchenko and Pastur).
        kept = np.flatnonzero(sizes > (1 + np.sqrt(n_genes / n)) ** 2)[:_MOST_AXES]
        axes, sizes = axes[kept], typical * (sizes[kept] - 1)
        along = axes @ x
        off = x - along @ axes
        beyond = max(_squared(off) / max(n_genes - len(kept), 1) - noise, 0.0)
        return cls(noise, axes, sizes, beyond, along, off)

    def explains(self, y: Floats, noise: float, strength_sd: float) -> _Explained:
        """Return how well the effect explains a change with this variance of its error."""
        along = self.axes @ y
        off = y - along @ self.axes
        whole = max(_squared(off) / max(len(y) - len(along), 1), noise)
        other = _density_of_parts(along, off, noise + self.sizes, whole)
        # The mean and variance of the change, given what was measured of the effect.
        gain = self.sizes / (self.sizes + self.noise)
        shared = min(whole - noise, self.beyond)
        gain_off = shared / (self.beyond + self.noise)
        mean, mean_off = gain * self.along, gain_off * self.off
        variances, variance = noise + gain * self.noise, whole - gain_off * shared
        left, left_off = along - mean, off - mean_off
        evidence = _density_of_parts(left, left_off, variances, variance)
        # The strength is normal around 1: one more direction of variance.
        size = float(mean**2 @ (1 / variances)) + _squared(mean_off) / variance
        fit = float((mean / variances) @ left + mean_off @ left_off / variance)
        spread = 1 + strength_sd**2 * size
        evidence += 0.5 * (strength_sd**2 * fit**2 / spread - float(np.log(spread)))
        length = np.sqrt((_squared(mean) + _squared(mean_off)) * _squared(y))
        cosine = float(mean @ along + mean_off @ off) / length if length > 0 else np.nan
        return _Explained(evidence, other, 1 + strength_sd**2 * fit / spread, cosine)


def _squared(values: Floats) -> float:
    return float(values @ values)


def _density_of_parts(along: Floats, off: Floats, variances: Floats, variance: float) -> float:
    """Return the log density along axes, and beyond them."""
    made = -0.5 * float((along**2 / variances + np.log(2 * np.pi * variances)).sum())
    return made + _log_density(_squared(off), variance, len(off) - len(along))


def _log_density(squared: float, variance: float, n: int) -> float:
    """Return the log density of `n` independent normal values from the sum of their squares."""
    return -0.5 * float(squared / variance + n * np.log(2 * np.pi * variance))


def _laws(stated: _Seen, white: _Whitening) -> list[_Law]:
    """Return what is known of each candidate."""
    values = white(stated.values)
    noises = np.array([white.level(own) for own in stated.std])
    units = values / np.sqrt(noises)[:, None]
    n, typical = len(values), float(np.median(noises))
    fold = np.arange(n) % min(n, _N_FOLDS)
    others = [units[fold != part] if n > 1 else units for part in range(max(fold) + 1)]
    return [_Law.of(values[i], noises[i], others[fold[i]], typical) for i in range(n)]


def _table(label: str, obs: pd.DataFrame, by_law: pd.DataFrame, nothing: float) -> pd.DataFrame:
    """Return the explanations of one change, the most probable first."""
    n = len(obs)
    # Each candidate is compared with another cause along its own axes.
    evidence = np.append(by_law["evidence"] - by_law["other"], [0.0, 0.0])
    evidence[n] = nothing - (logsumexp(by_law["other"]) - np.log(n))
    table = obs.reindex(range(n + 2)).astype(object)
    table.insert(0, "shift", label)
    table.insert(1, "explanation", ["candidate"] * n + ["no change", "another cause"])
    table["probability"] = softmax(evidence)
    table["evidence"] = evidence
    table["strength"] = by_law["strength"].reindex(range(n + 2))
    table["cosine"] = by_law["cosine"].reindex(range(n + 2))
    table = table.iloc[np.argsort(-evidence, kind="stable")].reset_index(drop=True)
    table.insert(1, "rank", np.arange(1, n + 3))
    return table


def _between(start: AnnData, goal: AnnData, keys: ScreenKeys | None) -> AnnData:
    """Return cells of both, those of the start as control."""
    layer = (keys or default_keys(goal)).layer if keys or Column.PERTURBATION in goal.obs else None
    for name, cells in (("shift", goal), ("reference", start)):
        if cells.n_obs < FEWEST_CELLS:
            msg = (
                f"{name} has {cells.n_obs} cells; expected at least {FEWEST_CELLS}, from which the "
                "error of the change is drawn."
            )
            raise SchemaError(msg)
    if absent := [gene for gene in goal.var_names if gene not in start.var_names]:
        msg = (
            f"reference lacks {len(absent)} of the {goal.n_vars} genes of shift, such as "
            f"{absent[0]!r}; pass cells with the same genes."
        )
        raise SchemaError(msg)
    start = align_genes(start, list(goal.var_names))
    parts = [
        sparse.csr_matrix(read_counts(cells, layer, np.arange(cells.n_obs), what=what))
        for cells, what in ((goal, "shift"), (start, "reference"))
    ]
    labels = ["shift"] * goal.n_obs + [CONTROL] * start.n_obs
    obs = pd.DataFrame({Column.PERTURBATION: labels})
    obs.index = obs.index.astype(str)
    return AnnData(sparse.csr_matrix(sparse.vstack(parts)), obs=obs, var=goal.var[[]])
