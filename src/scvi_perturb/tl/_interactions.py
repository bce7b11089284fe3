"""Whether two perturbations together do what the sum of their effects says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, warn
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.request import request_frame
from scvi_perturb.tl._populations import EffectGroups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.request import Context

    Floats = NDArray[np.float64]

#: How far from 1 the size along the sum may lie in a pair that is called additive.
_TOLERANCE: Final = 0.25
#: Cosine with the nearest combination of the singles below which a pair is called neomorphic.
_FIT: Final = 0.9
#: Length orthogonal to the sum, by that of the sum, which an additive pair does not reach.
_ORTHOGONAL: Final = 0.5
#: Share of the product of two squared sizes below which singles are taken as parallel.
_PARALLEL: Final = 0.02


class _Pair(NamedTuple):
    """A pair, its singles, and the context."""

    both: Condition
    first: Condition
    second: Condition
    context: Context


@checked
def interactions(
    data: AnnData,
    *,
    pairs: Sequence[str] | None = None,
    keys: ScreenKeys | None = None,
    block_key: str | None = None,
    genes: bool = False,
    level: float = 0.9,
    n_boot: int = 200,
    seed: int | None = 0,
) -> pd.DataFrame:
    r"""Say how the effect of two perturbations together differs from the sum of their effects.

    The interaction of A and B is ``effect(A+B) - effect(A) - effect(B)`` for each gene, in natural
    logarithms: zero where fold changes multiply.

    For the pair, let :math:`a`, :math:`b` and :math:`y` be the effects of A, B and A+B over genes,
    and :math:`u = a + b`. Squared lengths and products of measured effects are freed of the noise
    that they hold. Reported are the regression :math:`y \approx c_1 a + c_2 b`, and what remains:

    - `along`, :math:`y^T u / u^T u`: the share of the sum that the pair reaches;
    - `orthogonal`, the length of :math:`y` orthogonal to :math:`u`, by the length of :math:`u`;
    - `fit`, the cosine of :math:`y` and its regression; `cosine`, that of :math:`y` and :math:`u`.

    `kind` is the first of these that holds:

    1. "unclear": the effects of the singles are not told from noise;
    2. "neomorphic": the interval of `fit` ends below 0.9: the pair does what neither single does;
    3. "additive": the interval of `along` lies within 0.75 to 1.25, that of `orthogonal` below 0.5;
    4. "synergy": the interval of `along` begins above 1;
    5. "suppression" or "buffering": the interval of `along` ends below 1. The pair's effect along
       the sum is smaller than the larger of the singles' (suppression), or not (buffering);
    6. "unclear": all others.

    Parameters
    ----------
    data
        Cells with raw counts, control cells among them; or what `predict` returns for the pairs and
        their singles.
    pairs
        Labels such as "A+B", at all doses, times and contexts; None takes every pair of two
        perturbations whose singles are there too, at the same dose and time.
    keys
        Where the screen holds its conditions; None takes what `pp.harmonize` recorded or writes.
        With `context` named, each context is a row of its own; without, cells are pooled.
    block_key
        Column of independent repeats, such as donors. Effects are then taken within blocks, whose
        spread makes the intervals. None draws cells: intervals then hold for these donors only.
    genes
        Return a row a pair and gene instead.
    level
        Coverage of the intervals.
    n_boot
        Draws: of cells or blocks with replacement, or of predicted effects within their standard
        errors, genes independent.
    seed
        Seed of the draws.

    Returns
    -------
    pandas.DataFrame
        The condition and its context under the names of `data`, `first` and `second`; then, a row
        a pair: `along`, `orthogonal`, `coefficient_first`, `coefficient_second` and `fit`, each
        with `_lower` and `_upper` (no units; coefficients are NaN where the singles are parallel),
        `cosine`; lengths `size_first`, `size_second`, `size_pair` and `size_interaction` (root of
        the sum of squares over genes, natural log); `p_value`, of no interaction in any gene,
        `q_value` over the pairs (Benjamini-Hochberg), `kind`, `n_cells` of the pair (0 where
        predicted).
        With `genes`: `gene`, the effects `lfc_first`, `lfc_second`, `lfc_pair`, the `interaction`
        with `std`, `lower`, `upper` and `p_value`, `q_value` over the genes of the pair.

    Raises
    ------
    SchemaError
        If there is no pair with both singles, one that is asked for is not there, there are no
        controls, or fewer than two blocks.
    UserWarning
        For pairs without both singles, which are left out.

    Notes
    -----
    Intervals are the estimate plus and minus the spread of draws times a quantile, the normal one
    or with blocks Student's with one degree of freedom fewer than blocks. The p-value compares the
    sum of squared interactions, each by its variance, with its distribution over draws
    (Satterthwaite's approximation). A predicted interaction is as good as the model: one that adds
    effects up predicts none.

    References
    ----------
    Norman et al., Exploring genetic interaction manifolds constructed from rich single-cell
    phenotypes, Science 2019: regression on the singles. Satterthwaite, Biometrics Bulletin 1946.
    """
    from scipy import stats

    populations = EffectGroups.of(data, keys, block_key=block_key, seed=seed)
    found = _pairs(populations, pairs)
    tables = []
    for pair in found:
        effects, draws, n_blocks = populations.draws(
            [pair.first, pair.second, pair.both], pair.context, n_boot
        )
        quantile = float(stats.t.ppf((1 + level) / 2, n_blocks - 1 if n_blocks else np.inf))
        if genes:
            made = _of_genes(effects, draws, quantile, n_blocks)
            tables.append(made.assign(gene=populations.genes))
            continue
        noiseless = populations.is_predicted  # a prediction is a mean, without the noise of cells
        row = _of_pair(effects, draws, quantile, noiseless=noiseless)
        row |= {"p_value": _p_value(effects, draws, n_blocks)}
        row |= {"n_cells": populations.n_cells((pair.both, pair.context))}
        tables.append(pd.DataFrame([row]))
    head = request_frame([RequestRow(p.both, p.context) for p in found], populations.keys)
    head["first"] = [p.first.perturbation for p in found]
    head["second"] = [p.second.perturbation for p in found]
    repeated = head.iloc[np.repeat(np.arange(len(found)), [len(t) for t in tables])]
    result = pd.concat(
        [repeated.reset_index(drop=True), pd.concat(tables, ignore_index=True)], axis=1
    )
    if not genes:
        result["q_value"] = stats.false_discovery_control(result["p_value"])
        result["kind"] = result.pop("kind")
    return result


def _pairs(populations: EffectGroups, asked: Sequence[str] | None) -> list[_Pair]:
    """Return the pairs whose singles are there; raise or warn of those that are not."""
    keys, groups = populations.keys, populations.rows
    controls = {context for condition, context in groups if condition.is_control}
    wanted = None
    if asked is not None:
        wanted = {keys.parse(perturbation=label).names for label in asked}
    found, without = [], []
    for both, context in groups:
        if len(both.components) != 2 or (wanted is not None and both.names not in wanted):
            continue
        first, second = (Condition((part,), both.time) for part in both.components)
        there = {(first, context), (second, context)} <= groups.keys()
        if there and (populations.is_predicted or context in controls):
            found.append(_Pair(both, first, second, context))
        else:
            without.append(f"{both}")
    absent = (wanted or set()) - {pair.both.names for pair in found}
    if absent or not found:
        which = ", ".join(sorted("+".join(names) for names in absent)) or "any pair"
        msg = (
            f"Did not find {which} with both perturbations alone, at the same dose, time and "
            "context, and controls of this context. Pass cells or predictions of all three."
        )
        raise SchemaError(msg)
    if without:
        some = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        warn(f"Left out {len(without)} pairs without both singles or controls: {some}.")
    return found


def _of_genes(
    effects: Floats, draws: Floats, quantile: float, n_blocks: int | None
) -> pd.DataFrame:
    """Return the interaction of each gene with its interval and test."""
    from scipy import stats

    first, second, both = effects
    change = both - first - second
    std = (draws[:, 2] - draws[:, 0] - draws[:, 1]).std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(std > 0, np.abs(change) / std, 0.0)
    p_value = 2 * stats.t.sf(ratio, n_blocks - 1 if n_blocks else np.inf)
    return pd.DataFrame(
        {
            "gene": "",
            "lfc_first": first,
            "lfc_second": second,
            "lfc_pair": both,
            "interaction": change,
            "std": std,
            "lower": change - quantile * std,
            "upper": change + quantile * std,
            "p_value": p_value,
            "q_value": stats.false_discovery_control(p_value),
        }
    )


def _p_value(effects: Floats, draws: Floats, n_blocks: int | None) -> float:
    """Return the p-value of no interaction in any gene."""
    from scipy import stats

    change = effects[2] - effects[0] - effects[1]
    off = draws[:, 2] - draws[:, 0] - draws[:, 1] - change
    variance = off.var(axis=0)
    told = variance > 0
    if not told.any():
        return 1.0
    # Genes of little variance by chance would else dominate (Tusher et al., PNAS 2001).
    scale = variance[told] + np.median(variance[told])
    statistic = float((change[told] ** 2 / scale).mean())
    null = (off[:, told] ** 2 / scale).mean(axis=1)
    df = 2 * null.mean() ** 2 / max(null.var(ddof=1), np.finfo(float).tiny)
    ratio = statistic / null.mean()
    if n_blocks is None:
        return float(stats.chi2.sf(ratio * df, df))
    return float(stats.f.sf(ratio, df, n_blocks - 1))


def _of_pair(effects: Floats, draws: Floats, quantile: float, *, noiseless: bool) -> dict[str, Any]:
    """Return the geometry of a pair, from products of effects freed of noise."""
    off = draws - draws.mean(axis=0)
    noise = np.einsum("rig,rjg->ij", off, off) / (len(draws) - 1)
    products = effects @ effects.T - (0 if noiseless else 1) * noise
    drawn = np.einsum("rig,rjg->rij", draws, draws) - (1 if noiseless else 2) * noise
    at, spread = _geometry(products), _geometry(drawn)
    row: dict[str, Any] = {}
    for name in ("along", "orthogonal", "coefficient_first", "coefficient_second", "fit"):
        value = float(at[name])
        drawn_values = spread[name][np.isfinite(spread[name])]
        told = np.isfinite(value) and len(drawn_values) > 0
        low, high = np.quantile(drawn_values, [0.1587, 0.8413]) if told else (np.nan, np.nan)
        low, high = value - quantile * (high - low) / 2, value + quantile * (high - low) / 2
        row |= {name: value, f"{name}_lower": low, f"{name}_upper": high}
    row["orthogonal_lower"] = max(row["orthogonal_lower"], 0.0)
    row["fit_lower"], row["fit_upper"] = np.clip([row["fit_lower"], row["fit_upper"]], 0, 1)
    interaction = np.array([-1.0, -1.0, 1.0])
    squares = [*np.diag(products), interaction @ products @ interaction]
    sizes = np.sqrt(np.maximum(squares, 0.0))
    row["cosine"] = float(at["cosine"])
    names = ("size_first", "size_second", "size_pair", "size_interaction")
    row |= dict(zip(names, map(float, sizes), strict=True))
    told = at["sum"] > quantile * spread["sum"].std() and np.isfinite(row["along"])
    row["kind"] = _kind(row, float(at["sum"])) if told else "unclear"
    return row


def _geometry(products: Floats) -> dict[str, Floats]:
    """Return regression, lengths and angles from products of A, B and A+B, `(..., 3, 3)`."""
    m = np.moveaxis(products, (-2, -1), (0, 1))
    total = m[0, 0] + 2 * m[0, 1] + m[1, 1]
    shared = m[0, 2] + m[1, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(total > 0, total, np.nan)
        own = np.where(m[2, 2] > 0, m[2, 2], np.nan)
        along = shared / total
        orthogonal = np.sqrt(np.maximum(m[2, 2] - shared**2 / total, 0.0) / total)
        cosine = np.clip(shared / np.sqrt(total * own), -1.0, 1.0)
        determinant = m[0, 0] * m[1, 1] - m[0, 1] ** 2
        apart = determinant > _PARALLEL * m[0, 0] * m[1, 1]
        apart &= np.minimum(m[0, 0], m[1, 1]) > 0
        determinant = np.where(apart, determinant, np.nan)
        first = (m[1, 1] * m[0, 2] - m[0, 1] * m[1, 2]) / determinant
        second = (m[0, 0] * m[1, 2] - m[0, 1] * m[0, 2]) / determinant
        explained = np.maximum(first * m[0, 2] + second * m[1, 2], 0.0)
        fit = np.where(apart, np.sqrt(np.clip(explained / own, 0.0, 1.0)), np.abs(cosine))
    return {
        "sum": total,
        "along": along,
        "orthogonal": orthogonal,
        "coefficient_first": first,
        "coefficient_second": second,
        "fit": fit,
        "cosine": cosine,
    }


def _kind(row: dict[str, Any], total: float) -> str:
    """Return the name of an interaction, by the rule of `interactions`."""
    low, high = row["along_lower"], row["along_upper"]
    if row["fit_upper"] < _FIT:
        return "neomorphic"
    in_line = row["orthogonal_upper"] < _ORTHOGONAL
    if in_line and low > 1 - _TOLERANCE and high < 1 + _TOLERANCE:
        return "additive"
    if low > 1:
        return "synergy"
    if high < 1:
        weaker = row["along"] * np.sqrt(total) < max(row["size_first"], row["size_second"])
        return "suppression" if weaker else "buffering"
    return "unclear"
