"""Curves of an effect over doses."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import TARGET_SUM, SchemaError
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.request import RequestRow
from scvi_perturb.metrics import pseudobulk, pseudobulk_variance
from scvi_perturb.predictors.request import request_frame
from scvi_perturb.tl._populations import EffectGroups, influences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.request import Context
    from scvi_perturb.tl._populations import Group

    Floats = NDArray[np.float64]
    Weights = NDArray[Any]  # places of genes, or a column of weights

#: Fewest doses of a curve: with control as many points as it has parameters.
_MIN_DOSES: Final = 3
#: Slopes that are tried, and how far beyond the doses the half-maximal one is looked for.
_SLOPES: Final = np.geomspace(0.5, 4.0, 13)
_SLOPE_ENDS: Final = np.log(_SLOPES[[0, -1]])
_BEYOND: Final = 100.0
_N_EC50: Final = 161
#: Genes that are fitted together.
_CHUNK: Final = 256


@dataclass(frozen=True)
class _Series:
    """Effects of one perturbation over doses, the first being control at dose 0.

    `condition`, `context`: What was done, at the highest dose. `doses`: `(n_doses + 1,)`. `effect`,
    `variance`: Of each gene or signature, `(n_doses + 1, n)`.
    """

    condition: Condition
    context: Context
    doses: Floats
    effect: Floats
    variance: Floats


@checked
def dose_response(
    data: AnnData,
    *,
    genes: Sequence[str] | None = None,
    signature: Mapping[str, float] | None = None,
    keys: ScreenKeys | None = None,
    slope: float | None = None,
    level: float = 0.9,
    fdr: float = 0.05,
    points: bool = False,
) -> pd.DataFrame:
    r"""Fit a Hill curve to the effect of each perturbation over its doses.

    .. math:: y(d) = e_0 + E_{max} \frac{d^s}{EC_{50}^s + d^s}

    :math:`y` is the change from control, natural logarithm; :math:`e_0` takes up the noise of the
    control and is 0 for predictions. Doses are weighted by their standard errors.

    Parameters
    ----------
    data
        Cells with raw counts, control cells among them; or what `predict` returns for the doses.
    genes
        Genes to fit; None takes all.
    signature
        Weights of genes. The curve is then that of the weighted sum of their effects, one for each
        perturbation.
    keys
        Where the screen holds its conditions, doses among them; None takes what `pp.harmonize`
        recorded or writes. With `context` named, each context is fitted alone.
    slope
        Slope :math:`s` of all curves; None fits one each, between 0.5 and 4.
    level
        Coverage of the intervals.
    fdr
        False discovery rate at which a curve counts as a response.
    points
        Return the effects at the doses instead.

    Returns
    -------
    pandas.DataFrame
        One row for each perturbation, time, context and gene, under the names of `data`, with
        `gene` ("signature" for one): `ec50`, in the unit of the doses, `emax`, the change at
        infinite dose, natural logarithm, both with `_lower` and `_upper`; `slope`; `e0`;
        `n_doses`; `p_value`, of no change at any dose, `q_value` over the genes of a perturbation
        (Benjamini-Hochberg); `misfit_p_value`, of effects that follow such a curve, NaN with three
        doses. `range` says what the doses tell:

        - "bracketed": the interval of `ec50` has two ends;
        - "open below", "open above": one end is 0 or infinity, as the doses do not reach low or
          high enough. `ec50` is NaN where the fit puts it beyond the doses on that side;
        - "undetermined": both ends are open, and `ec50` is NaN;
        - "flat": `q_value` is above `fdr`; all figures of the curve are NaN.

        With `points`: `dose`, `lfc`, `std`, `lower`, `upper`; control is dose 0.

    Raises
    ------
    SchemaError
        If no single perturbation has three doses, a gene is absent, or there are no controls.

    Notes
    -----
    For each EC50 and slope of a grid the rest is linear; the best of the grid is refined on finer
    ones. Intervals are those of the profile likelihood: all values with which the other parameters
    still fit. They hold the noise of the cells, with one overdispersion of a gene for all doses,
    and for predictions the stated standard errors, taken as independent between doses and, for a
    signature, between genes. Curves are monotone: look at `misfit_p_value` for those that rise and
    fall.

    References
    ----------
    Hill, Journal of Physiology 1910. Venzon and Moolgavkar, A method for computing
    profile-likelihood-based confidence intervals, Applied Statistics 1988.
    """
    from scipy import stats

    populations = EffectGroups.of(data, keys)
    names, weights = _asked(populations.genes, genes, signature)
    found = list(_series(populations, weights))
    tables = []
    for series in found:
        if points:
            tables.append(_points(series, names, level))
            continue
        table = _fit(series, slope, level)
        table["q_value"] = stats.false_discovery_control(table["p_value"])
        flat = (table["q_value"] > fdr).to_numpy()
        table["range"] = np.where(flat, "flat", _ranges(table, series))
        table.loc[flat, list(_FIGURES)] = np.nan
        tables.append(pd.concat([pd.DataFrame({"gene": names}), table], axis=1))
    head = request_frame([RequestRow(s.condition, s.context) for s in found], populations.keys)
    head = head.drop(columns=str(populations.keys.dose))
    rows = np.repeat(np.arange(len(found)), [len(table) for table in tables])
    repeated = head.iloc[rows].reset_index(drop=True)
    return pd.concat([repeated, pd.concat(tables, ignore_index=True)], axis=1)


_FIGURES: Final = ("ec50", "ec50_lower", "ec50_upper", "emax", "emax_lower", "emax_upper", "slope",
    "e0", "misfit_p_value")  # fmt: skip


def _asked(
    known: pd.Index, genes: Sequence[str] | None, signature: Mapping[str, float] | None
) -> tuple[list[str], Weights]:
    """Return the names of what is fitted; places of genes `(n,)`, or weights `(n_genes, 1)`."""
    if genes is not None and signature is not None:
        msg = "Found both genes and signature; give one of them."
        raise ValueError(msg)
    wanted = list(known if genes is None else genes) if signature is None else list(signature)
    absent = [gene for gene in wanted if gene not in known]
    if absent or not wanted:
        msg = f"Genes {absent[:5]} are not in var_names, such as {list(known[:3])}; drop them."
        raise SchemaError(msg)
    place = known.get_indexer(pd.Index(wanted))
    if signature is None:
        return wanted, place
    weights = np.zeros((len(known), 1))
    weights[place, 0] = list(signature.values())
    if not weights.any():
        msg = "All weights of the signature are 0; expected some that are not."
        raise ValueError(msg)
    return ["signature"], weights


def _series(populations: EffectGroups, weights: Weights) -> Iterator[_Series]:
    """Yield the effects of each perturbation that has enough doses."""
    by_what = defaultdict(list)
    for condition, context in populations.rows:
        if len(condition.components) == 1 and populations.keys.dose is not None:
            (part,) = condition.components
            by_what[part.name, part.kind, condition.time, context].append(condition)
    kept = {what: own for what, own in by_what.items() if len(own) >= _MIN_DOSES}
    if not kept:
        where = populations.keys.dose
        most = max(map(len, by_what.values()), default=0)
        msg = (
            f"No perturbation alone has {_MIN_DOSES} doses: the most is {most}, and the column of "
            f"doses is {where!r}. Name it with keys=ScreenKeys(dose=...), or predict more doses."
        )
        raise SchemaError(msg)
    controls: dict[Context, tuple[Floats, Floats, float]] = {}
    for (*_, context), own in kept.items():
        ordered = sorted(own, key=lambda condition: condition.components[0].dose)
        read = [_profile(populations, (condition, context), weights) for condition in ordered]
        if populations.is_predicted:
            zero = np.zeros_like(read[0][0]), 1e-9 * np.min([one[1] for one in read], axis=0), 0.0
        else:
            if context not in controls:
                controls[context] = _profile(populations, (Condition(), context), weights)
            zero = controls[context]
        profile, variance, total = (np.stack(part) for part in zip(zero, *read, strict=True))
        if not populations.is_predicted and weights.ndim == 1:
            variance = _moderated(profile, variance, total[:, None])
        least = np.maximum(1e-9 * np.median(variance[variance > 0]), 1e-12)
        doses = np.array([0.0, *(condition.components[0].dose for condition in ordered)])
        effect, variance = profile - profile[0], np.maximum(variance, least)
        yield _Series(ordered[-1], context, doses, effect, variance)


def _moderated(profile: Floats, variance: Floats, total: Floats) -> Floats:
    """Return variances of profiles of counts with one overdispersion of each gene for all doses.

    The variance that few cells show is itself uncertain, and low where a gene is low by chance.
    Here it is the Poisson variance of the profile, with half a count added, times the ratio of
    the sums of both over doses.

    `profile`, `variance`: Of each dose, `(n, n_genes)`. `total`: Sum of all counts, `(n, 1)`.
    """

    def poisson(share: Floats) -> Floats:
        made: Floats = share * (TARGET_SUM / (1 + TARGET_SUM * share)) ** 2 / total
        return made

    share = np.expm1(profile) / TARGET_SUM
    expected = poisson(share).sum(axis=0)
    ratio = np.divide(
        variance.sum(axis=0), expected, out=np.ones_like(expected), where=expected > 0
    )
    return np.maximum(ratio, 1.0) * poisson(share + 0.5 / total)


def _profile(
    populations: EffectGroups, group: Group, weights: Weights
) -> tuple[Floats, Floats, float]:
    """Return profile or predicted effect of a group, its variance, and the sum of its counts."""
    chosen = weights.ndim == 1  # places of genes
    if populations.is_predicted:
        row = int(populations.rows[group][0])
        effect, std = (
            np.asarray(populations.data.layers[name][row], np.float64).ravel()
            for name in ("lfc", "std")
        )
        if chosen:
            return effect[weights], std[weights] ** 2, 0.0
        return effect @ weights, std**2 @ weights**2, 0.0
    counts = populations.counts(group)
    if counts.shape[0] < 2:
        msg = f"Found one cell of {group[0]} {group[1]}; its error needs two. Drop it."
        raise SchemaError(msg)
    profile, total = np.asarray(pseudobulk(counts), np.float64), float(counts.sum())
    if chosen:
        variance = np.asarray(pseudobulk_variance(counts)[weights], np.float64)
        return profile[weights], variance, total
    library = np.asarray(counts.sum(axis=1), np.float64).ravel()
    n = len(library)
    variance = n / (n - 1) * (influences(counts, weights, library) ** 2).sum(axis=0)
    return profile @ weights, variance, total


def _points(series: _Series, names: Sequence[str], level: float) -> pd.DataFrame:
    """Return the effects at the doses, with intervals."""
    from scipy import stats

    n = len(series.doses)
    std = np.sqrt(series.variance).ravel(order="F")
    lfc = series.effect.ravel(order="F")
    half = stats.norm.ppf((1 + level) / 2) * std
    return pd.DataFrame(
        {
            "gene": np.repeat(np.asarray(names, dtype=object), n),
            "dose": np.tile(series.doses, len(names)),
            "lfc": lfc,
            "std": std,
            "lower": lfc - half,
            "upper": lfc + half,
        }
    )


def _fit(series: _Series, slope: float | None, level: float) -> pd.DataFrame:
    """Fit all curves on the grid, with intervals of the profile likelihood."""
    n = series.effect.shape[1]
    parts = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
    return pd.concat(
        [
            _fit_part(
                replace(series, effect=series.effect[:, p], variance=series.variance[:, p]),
                slope,
                level,
            )
            for p in parts
        ],
        ignore_index=True,
    )


def _fit_part(series: _Series, slope: float | None, level: float) -> pd.DataFrame:
    """Fit some curves: for each EC50 and slope of the grid, `e0` and `emax` are linear."""
    from scipy import stats

    low, high = series.doses[1] / _BEYOND, series.doses[-1] * _BEYOND
    ec50 = np.linspace(np.log(low), np.log(high), _N_EC50)
    slopes = np.log(_SLOPES if slope is None else [slope])
    tried = np.stack(np.meshgrid(ec50, slopes, indexing="ij")).reshape(2, -1)
    misfit, _, _, flat = _linear(_hill(series.doses, *np.exp(tried)[..., None]), series)
    step = np.array([ec50[1] - ec50[0], 0.0 if slope else slopes[1] - slopes[0]])
    best, emax, e0, least = _refine(series, tried[:, misfit.argmin(axis=0)], step)
    limit = least + stats.chi2.ppf(level, 1)
    profile = misfit.reshape(_N_EC50, len(slopes), -1).min(axis=1)
    is_open = profile[[0, -1]] <= limit
    at, largest = _ends(series, _box(tried, misfit, limit, best, step), limit, step)
    largest[(emax > 0).astype(int), np.arange(len(emax))] += np.where(
        is_open[1], np.copysign(np.inf, emax), 0.0
    )  # where the EC50 has no upper end, neither has the change at infinite dose
    n_free = len(series.doses) - 3 - (slope is None)
    return pd.DataFrame(
        {
            "ec50": np.exp(best[0]),
            "ec50_lower": np.where(is_open[0], 0.0, np.exp(at[0])),
            "ec50_upper": np.where(is_open[1], np.inf, np.exp(at[1])),
            "emax": emax,
            "emax_lower": largest[0],
            "emax_upper": largest[1],
            "slope": np.exp(best[1]),
            "e0": e0,
            "n_doses": len(series.doses) - 1,
            "p_value": stats.chi2.sf(flat, len(series.doses) - 1),
            "misfit_p_value": stats.chi2.sf(least, n_free) if n_free else np.nan,
        }
    )


def _box(tried: Floats, misfit: Floats, limit: Floats, best: Floats, step: Floats) -> Floats:
    """Return the least and largest EC50 and slope that fit, and a step beyond, `(2, 2, n)`.

    `tried`: What was tried, `(2, n_rows, 1 or n)`, logarithms; `best`, `(2, n)`, always fits.
    """
    tried = tried[..., None] if tried.ndim == 2 else tried
    fits = misfit <= limit
    low = np.minimum(np.where(fits, tried, np.inf).min(axis=1), best) - step.reshape(2, -1)
    high = np.maximum(np.where(fits, tried, -np.inf).max(axis=1), best) + step.reshape(2, -1)
    made = np.stack([low, high], axis=1)
    return made if not np.any(step[1]) else np.stack([made[0], made[1].clip(*_SLOPE_ENDS)])


def _ends(series: _Series, box: Floats, limit: Floats, step: Floats) -> tuple[Floats, Floats]:
    """Return the ends of EC50 (logarithm) and `emax` with which curves fit, `(2, n)` each.

    Each round covers the box of what fitted in the last one, so that the grid becomes as fine as
    the interval is narrow.
    """
    n_ec50, n_slopes = 31, 11 if np.any(step[1]) else 1
    for _ in range(4):
        ec50, slopes = (
            np.linspace(low, high, n)
            for (low, high), n in zip(box, (n_ec50, n_slopes), strict=True)
        )
        tried = np.stack([np.repeat(ec50, n_slopes, axis=0), np.tile(slopes, (n_ec50, 1))])
        misfit, emax, weight, _ = _linear(
            _hill(series.doses[:, None], *np.exp(tried)[:, :, None]), series
        )
        middle = tried[:, misfit.argmin(axis=0), np.arange(misfit.shape[1])]
        spacing = (box[:, 1] - box[:, 0]) / np.array([[n_ec50 - 1], [max(n_slopes - 1, 1)]])
        box = _box(tried, misfit, limit, middle, spacing)
    profile = misfit.reshape(n_ec50, n_slopes, -1).min(axis=1)
    slack = np.sqrt(np.maximum(limit - misfit, 0.0) / weight)
    fits = (misfit <= limit) | (misfit == misfit.min(axis=0))
    low = np.where(fits, emax - slack, np.inf).min(axis=0)
    high = np.where(fits, emax + slack, -np.inf).max(axis=0)
    return _crossings(profile, ec50, limit), np.stack([low, high])


def _hill(doses: Floats, ec50: Any, slope: Any) -> Floats:  # noqa: ANN401
    """Return the share of the largest effect at doses."""
    with np.errstate(divide="ignore"):
        made: Floats = 1 / (1 + np.exp(-slope * (np.log(doses) - np.log(ec50))))
    return made


def _linear(shares: Floats, series: _Series) -> tuple[Floats, Floats, Floats, Floats]:
    """Fit `e0` and `emax`, to shares of all curves `(n_rows, n_doses + 1)` or of each `(..., n)`.

    Returns misfit (weighted squares), `emax` and its weight (inverse variance), `(n_rows, n)`, and
    the misfit of no change at all, `(n,)`.
    """
    over = partial(np.einsum, "kdn,dn->kn" if shares.ndim == 3 else "kd,dn->kn", optimize=True)
    w = 1 / series.variance
    y = series.effect - (w * series.effect).sum(axis=0) / w.sum(axis=0)
    flat = (w * y**2).sum(axis=0)
    weight = over(shares**2, w) - over(shares, w) ** 2 / w.sum(axis=0)
    weight = np.maximum(weight, np.finfo(float).tiny)
    shared = over(shares, w * y)
    emax = shared / weight
    return np.maximum(flat - emax * shared, 0.0), emax, weight, flat


def _crossings(misfit: Floats, at: Floats, limit: Floats) -> Floats:
    """Return where a profile `(n_rows, n)` crosses its limit, first and last, `(2, n)`."""
    inside = (misfit <= limit) | (misfit == misfit.min(axis=0))
    every, last = np.arange(misfit.shape[1]), len(at) - 1
    made = []
    for inner, way in ((inside.argmax(axis=0), -1), (last - inside[::-1].argmax(axis=0), 1)):
        outer = np.clip(inner + way, 0, last)
        below, above = misfit[inner, every], misfit[outer, every]
        part = np.clip((limit - below) / np.maximum(above - below, 1e-300), 0, 1)
        made.append(at[inner, every] + part * (at[outer, every] - at[inner, every]))
    return np.stack(made)


def _refine(series: _Series, at: Floats, step: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Refine curves on ever finer grids around the best of the first.

    `at`: Logarithms of EC50 and slope, `(2, n)`. `step`: Spacing of the first grid, 0 of what is
    fixed. Returns `at`, `emax`, `e0` and the misfit, of the best.
    """
    every = np.arange(at.shape[1])
    for _ in range(12):
        around = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2), axis=0).reshape(2, -1)
        tried = at[:, None] + (step[:, None] * around)[..., None]
        if step[1]:
            tried[1] = tried[1].clip(*_SLOPE_ENDS)
        shares = _hill(series.doses[:, None], *np.exp(tried)[:, :, None])
        misfit, emax, *_ = _linear(shares, series)
        best = misfit.argmin(axis=0)
        at, step = tried[:, best, every], step / 1.7
    share, emax = shares[best, :, every].T, emax[best, every]
    e0 = np.average(series.effect - emax * share, axis=0, weights=1 / series.variance)
    return at, emax, e0, misfit.min(axis=0)


def _ranges(table: pd.DataFrame, series: _Series) -> NDArray[np.object_]:
    """Return what the doses tell of each EC50, and take out those that they do not."""
    below = (table["ec50_lower"] == 0).to_numpy()
    above = np.isinf(table["ec50_upper"]).to_numpy()
    ec50 = table["ec50"].to_numpy()
    beyond = (below & (ec50 < series.doses[1])) | (above & (ec50 > series.doses[-1]))
    table.loc[beyond | (below & above), "ec50"] = np.nan
    cases = [below & above, below, above]
    names = ["undetermined", "open below", "open above"]
    made: NDArray[np.object_] = np.select(cases, names, "bracketed").astype(object)
    return made
