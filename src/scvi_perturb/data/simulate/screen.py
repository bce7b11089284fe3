"""Simulate a screen, and say what is true of it: effects, profiles, cells of any condition."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import (
    CONTROL,
    SEPARATOR,
    TARGET_SUM,
    Column,
    SchemaError,
    UnknownPerturbationError,
)
from scvi_perturb.data.condition import Component, Condition
from scvi_perturb.data.simulate.config import SimulatorConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_CHUNK_VALUES = 4_000_000
_TECHNICAL_SD = 0.25  # of cells about their batch, relative to the batch effect


class Factors(NamedTuple):
    """Latent factors of cells, `(n_cells, dimensions)`, and who responds if perturbed."""

    identity: NDArray[np.float64]
    state: NDArray[np.float64]
    #: The first dimension is depth in standard deviations.
    technical: NDArray[np.float64]
    responds: NDArray[np.bool_]


def _draw_factors(
    truth: Truth,
    *,
    context: NDArray[np.int64],
    batch: NDArray[np.int64],
    rng: np.random.Generator,
) -> Factors:
    """Draw unperturbed factors of cells of given contexts and batches.

    The draws do not depend on what is done to the cells, so that two conditions drawn from
    generators of one seed are counterfactuals of the same cells.
    """
    config = truth.config
    n = len(context)
    identity = rng.normal(0.0, config.identity_sd, (n, config.n_identity))
    state = rng.normal(0.0, config.state_sd, (n, config.n_state))
    technical = rng.standard_normal((n, config.n_technical))
    technical[:, 1:] *= _TECHNICAL_SD * config.batch_effect
    return Factors(
        identity=truth.context_centroids[context] + identity,
        state=state,
        technical=truth.batch_centroids[batch] + technical,
        responds=rng.random(n) < config.responder_fraction,
    )


def _proportions(truth: Truth, factors: Factors) -> NDArray[np.float32]:
    """Return expected proportions of genes, `(n_cells, n_genes)`."""
    latent = np.hstack([factors.identity, factors.state, factors.technical])
    loadings = np.hstack([truth.loadings_identity, truth.loadings_state, truth.loadings_technical])
    logits = latent.astype(np.float32) @ loadings.T.astype(np.float32)
    logits += truth.base.astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _draw_counts(truth: Truth, factors: Factors, rng: np.random.Generator) -> sparse.csr_matrix:
    """Draw negative binomial counts `(n_cells, n_genes)`, CSR of float32 whole numbers."""
    sd = truth.config.library_sd
    library = truth.config.library_size * np.exp(sd * factors.technical[:, 0] - sd**2 / 2)
    theta = truth.dispersion.astype(np.float32)
    size = max(1, _CHUNK_VALUES // len(theta))
    blocks = []
    for start in range(0, len(library), size):
        rows = slice(start, start + size)
        rate = _proportions(truth, Factors._make(values[rows] for values in factors))
        rate *= library[rows, None].astype(np.float32) / theta
        rate *= rng.standard_gamma(theta, rate.shape, dtype=np.float32)
        blocks.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sparse.vstack(blocks, format="csr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Parameters of the generative process; perturbations are those measured, then the unseen.

    `config`: The configuration of the screen. `perturbations`, `contexts`, `batches`: Names.
    `effects`, `effect_mask`: `(n_perturbations + n_unseen, n_state)`: shift of the state at the
    reference dose and time, averaged over contexts; the programs that are moved. `features`,
    `decoy_features`, `feature_map`: `effects = features @ feature_map + residual`; decoys carry
    nothing. `ec50`, `slope`, `tau`: Hill curve of the dose relative to the reference dose; time
    constant relative to the reference time; one for each perturbation. `interaction_mixing`:
    `(n_state, n_state)` orthonormal matrix from which pair terms are built. `context_modulation`,
    `context_centroids`, `batch_centroids`: `(n_contexts, n_state)`, `(n_contexts, n_identity)`,
    `(n_batches, n_technical)`. `base`, `dispersion`: `(n_genes,)`: log abundance; inverse
    dispersion. `loadings_identity`, `loadings_state`, `loadings_technical`: `(n_genes,
    dimensions)`: log-fold change of a gene for a unit of the factor.
    """

    config: SimulatorConfig
    perturbations: NDArray[np.object_]
    contexts: NDArray[np.object_]
    batches: NDArray[np.object_]
    effects: NDArray[np.float64]
    effect_mask: NDArray[np.bool_]
    features: NDArray[np.float64]
    decoy_features: NDArray[np.float64]
    feature_map: NDArray[np.float64]
    ec50: NDArray[np.float64]
    slope: NDArray[np.float64]
    tau: NDArray[np.float64]
    interaction_mixing: NDArray[np.float64]
    context_modulation: NDArray[np.float64]
    context_centroids: NDArray[np.float64]
    batch_centroids: NDArray[np.float64]
    base: NDArray[np.float64]
    dispersion: NDArray[np.float64]
    loadings_identity: NDArray[np.float64]
    loadings_state: NDArray[np.float64]
    loadings_technical: NDArray[np.float64]

    def to_uns(self) -> dict[str, Any]:
        """Return a dictionary of arrays and one string, which h5ad files can hold."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {"config": self.config.to_json(), **arrays}

    @classmethod
    def from_uns(cls, uns: Mapping[str, Any]) -> Self:
        """Return the parameters that `to_uns` wrote to `adata.uns["truth"]`.

        Raises `SchemaError`: If the data were not simulated.
        """
        if "truth" not in uns:
            msg = (
                "adata.uns has no 'truth', so nothing is known about the true response; expected "
                "data made by simulate_screen (or a subset of them that keeps uns)."
            )
            raise SchemaError(msg)
        stored = dict(uns["truth"])
        config = SimulatorConfig.from_json(str(stored.pop("config")))
        arrays = {name: np.asarray(value) for name, value in stored.items()}
        return cls(config=config, **arrays)

    def index(self, name: str) -> int:
        """Return the row of a perturbation, or raise `UnknownPerturbationError`."""
        found = np.flatnonzero(self.perturbations == name)
        if not found.size:
            raise UnknownPerturbationError(name, map(str, self.perturbations))
        return int(found[0])

    def response(self, perturbation: int, dose: float, time: float | None) -> float:
        """Return the share of the reference effect at a dose (Hill) and time (saturating)."""
        power = self.slope[perturbation]
        x, half = (dose / self.config.reference_dose) ** power, self.ec50[perturbation] ** power
        share = x * (1 + half) / (x + half)
        if time is not None:
            rate = 1 / self.tau[perturbation]
            share *= np.expm1(-rate * time / self.config.reference_time) / np.expm1(-rate)
        return float(share)

    def interaction(self, first: int, second: int) -> NDArray[np.float64]:
        """Return a pair's departure from additivity `(n_state,)` at the reference dose."""
        mixed = self.effects[[first, second]] @ self.interaction_mixing
        direction = mixed[0] * mixed[1]
        size = np.sqrt(np.prod(np.linalg.norm(self.effects[[first, second]], axis=1)))
        length = np.linalg.norm(direction)
        if length == 0:
            return direction
        scaled: NDArray[np.float64] = self.config.interaction_strength * size / length * direction
        return scaled

    def shift(self, condition: Condition) -> NDArray[np.float64]:
        """Return the shift of a responding cell's state in every context `(n_contexts, n_state)`.

        No time means the reference time.
        """
        rows = [self.index(name) for name in condition.names]
        shares = [
            self.response(row, part.dose, condition.time)
            for row, part in zip(rows, condition.components, strict=True)
        ]
        total = np.asarray(shares) @ self.effects[rows]
        for i, j in combinations(range(len(rows)), 2):
            total = total + shares[i] * shares[j] * self.interaction(rows[i], rows[j])
        modulated: NDArray[np.float64] = total * (1 + self.context_modulation)
        return modulated


_BASE_SD = 1.5
_NUISANCE_SD = 0.5


def _draw_truth(config: SimulatorConfig, n_genes: int, rng: np.random.Generator) -> Truth:
    """Draw all parameters of a screen of `n_genes` genes."""
    n_all = config.n_perturbations + config.n_unseen
    base = rng.normal(0.0, _BASE_SD, n_genes)
    return Truth(
        config=config,
        perturbations=_names("pert", n_all),
        contexts=_names("type", config.n_contexts),
        batches=_names("batch", config.n_batches),
        **_draw_effects(config, rng),
        decoy_features=rng.standard_normal((n_all, config.n_decoy_features)),
        ec50=_draw_ec50(config, n_all, rng),
        slope=rng.uniform(1.0, 2.0, n_all),
        tau=np.exp(rng.uniform(np.log(0.3), np.log(1.5), n_all)),
        interaction_mixing=_orthonormal(config.n_state, rng),
        **_draw_surroundings(config, rng),
        base=base,
        dispersion=config.dispersion * np.exp(rng.normal(0.0, 0.3, n_genes)),
        **_draw_loadings(config, base, rng),
    )


def _names(stem: str, n: int) -> NDArray[np.object_]:
    width = max(2, len(str(n)))
    return np.array([f"{stem}_{i:0{width}d}" for i in range(1, n + 1)], dtype=object)


def _orthonormal(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def _draw_effects(config: SimulatorConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Draw sparse effects, and features of which they are a linear function plus a residual."""
    shape = (config.n_perturbations + config.n_unseen, config.n_state)
    n_moved = max(1, round(config.program_share * config.n_state))
    mask = rng.random(shape).argsort(axis=1).argsort(axis=1) < n_moved
    size = rng.uniform(0.7, 1.3, shape) * rng.choice([-1.0, 1.0], shape)
    known = mask * size
    unknown = mask * rng.standard_normal(shape)
    basis = _orthonormal(config.n_features, rng)
    nuisance = rng.normal(0, _NUISANCE_SD, (shape[0], config.n_features - config.n_state))
    weights = config.effect_size * np.sqrt([config.feature_r2, 1 - config.feature_r2])
    return {
        "effects": weights[0] * known + weights[1] * unknown,
        "effect_mask": mask,
        "features": np.hstack([known, nuisance]) @ basis.T,
        "feature_map": weights[0] * basis[:, : config.n_state],
    }


def _draw_ec50(config: SimulatorConfig, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw half-effect doses, relative to the reference dose, over the lower measured doses."""
    relative = np.array(config.doses or (0.1, 0.3, 1.0)) / config.reference_dose
    low, high = np.log(relative.min()), np.log(np.median(relative))
    return np.exp(rng.uniform(low, max(low + 0.1, high), n))


def _draw_surroundings(config: SimulatorConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Draw contexts, how they modulate effects (0 on average), and batches."""
    modulation = rng.standard_normal((config.n_contexts, config.n_state))
    n_batch_dims = max(1, config.n_technical - 1)
    batches = rng.standard_normal((config.n_batches, config.n_technical))
    batches *= config.batch_effect / np.sqrt(n_batch_dims)
    batches[:, 0] = 0.0
    return {
        "context_modulation": config.context_modulation * (modulation - modulation.mean(axis=0)),
        "context_centroids": config.context_distance
        * rng.standard_normal((config.n_contexts, config.n_identity)),
        "batch_centroids": batches,
    }


def _draw_loadings(
    config: SimulatorConfig, base: NDArray[np.float64], rng: np.random.Generator
) -> dict[str, Any]:
    """Draw dense identity and technical loadings, and sparse state programs.

    Abundant genes move less, and a program's abundance-weighted mean over its genes is 0, so that
    moving it hardly moves the proportions of all other genes.
    """
    n_genes = len(base)
    identity = rng.standard_normal((n_genes, config.n_identity))
    technical = rng.standard_normal((n_genes, config.n_technical))
    technical[:, 0] = 0.0
    rank = rng.random((n_genes, config.n_state)).argsort(axis=0).argsort(axis=0)
    member = rank < max(1, round(config.gene_share * n_genes))
    abundance = np.exp(base) / np.exp(base).mean()
    state = rng.standard_normal((n_genes, config.n_state)) / np.sqrt(1 + abundance[:, None])
    weight = abundance[:, None] * member
    state -= (weight * state).sum(axis=0) / weight.sum(axis=0)
    return {
        "loadings_identity": identity / np.sqrt(config.n_identity),
        "loadings_state": state * member,
        "loadings_technical": technical,
    }


class Cells(NamedTuple):
    """What each cell of a screen is and what was done to it, `(n_cells,)` each."""

    conditions: list[Condition]
    """The different conditions, `(n_conditions,)`."""
    condition: NDArray[np.int64]
    """Positions in `conditions`; then in the truth's contexts and in its batches."""
    context: NDArray[np.int64]
    batch: NDArray[np.int64]
    time: NDArray[np.float64] | None
    """None where times are not recorded."""


def _perturb(truth: Truth, cells: Cells, factors: Factors) -> Factors:
    """Return the factors with responding cells' states shifted by their conditions."""
    shifts = np.stack([truth.shift(condition) for condition in cells.conditions])
    shift = shifts[cells.condition, cells.context] * factors.responds[:, None]
    return factors._replace(state=factors.state + shift)


def _annotate(truth: Truth, cells: Cells, factors: Factors, rng: np.random.Generator) -> AnnData:
    """Draw counts and write them with the cells' annotation and factors."""
    counts = _draw_counts(truth, factors, rng)
    n_cells, n_genes = counts.shape
    perturbed = np.array([not condition.is_control for condition in cells.conditions])
    labels = [condition.perturbation for condition in cells.conditions]
    columns: dict[str, object] = {Column.PERTURBATION: _labels(labels, cells.condition)}
    if truth.config.doses is not None:
        columns[Column.DOSE] = _labels(
            [c.format_doses() for c in cells.conditions], cells.condition
        )
    if cells.time is not None:
        columns[Column.TIME] = cells.time
    columns["cell_type"] = _labels(truth.contexts, cells.context)
    columns["batch"] = _labels(truth.batches, cells.batch)
    columns["library_size"] = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
    columns["truth_responder"] = factors.responds & perturbed[cells.condition]
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(n_cells)])
    width = len(str(n_genes - 1))
    return AnnData(
        counts,
        obs=obs,
        var=pd.DataFrame(index=[f"gene_{i:0{width}d}" for i in range(n_genes)]),
        obsm={
            "truth_identity": factors.identity,
            "truth_state": factors.state,
            "truth_technical": factors.technical,
        },
    )


def _labels(names: object, codes: NDArray[np.int64]) -> pd.Categorical:
    """Return text labels of codes; different codes may have one label."""
    values, to_value = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return pd.Categorical.from_codes(to_value[codes], categories=pd.Index(values.astype(object)))


@checked
def simulate_screen(
    *,
    n_cells: int = 5000,
    n_genes: int = 500,
    seed: int | None = 0,
    config: SimulatorConfig | None = None,
) -> AnnData:
    """Simulate a perturbation screen whose effects are known.

    A cell has three latent factors: identity (its context's centroid and variation around it),
    state (variation, plus the effect of the perturbation where the cell responds) and technical
    (batch and depth). Logarithms of proportions are linear in them; counts are negative binomial
    given proportions and a log-normal library size. Effects on the state are linear in the
    perturbations' features up to a residual, scale with dose (Hill curve) and time, vary between
    contexts, and add up in combinations, save for pairwise interactions where asked for.
    Conditions, contexts and batches are balanced and crossed.

    Parameters
    ----------
    n_cells, n_genes
        Size of the screen.
    seed
        Two screens of one seed and configuration, whatever their number of cells, have the same
        true parameters. None draws anew.
    config
        Design and strength; see :class:`SimulatorConfig`.

    Returns
    -------
    anndata.AnnData
        Raw counts in `X` (CSR, float32). `obs`: perturbation ("A+B", "control"), dose ("1+1", "0"
        for control) where configured, time where configured, cell_type, batch, library_size
        (observed counts) and truth_responder. `obsm`: truth_identity, truth_state (after
        perturbation) and truth_technical. `uns["truth"]`: every parameter, read by
        `expected_profile`, `true_effect`, `sample_truth` and `perturbation_features`.

    Raises
    ------
    ValueError
        If there are fewer cells than conditions to be measured.
    """
    config = config or SimulatorConfig()
    sequence = np.random.SeedSequence(seed)
    for_truth, for_design, for_cells = map(np.random.default_rng, sequence.spawn(3))
    truth = _draw_truth(config, n_genes, for_truth)
    cells = _design(truth, n_cells, for_design)
    factors = _draw_factors(truth, context=cells.context, batch=cells.batch, rng=for_cells)
    factors = _perturb(truth, cells, factors)
    adata = _annotate(truth, cells, factors, for_cells)
    adata.uns["truth"] = truth.to_uns()
    return adata


def _design(truth: Truth, n_cells: int, rng: np.random.Generator) -> Cells:
    """Return a balanced, crossed design in random order; condition 0 is control."""
    config = truth.config
    conditions = [Condition(), *_treatments(truth, rng)]
    n_control = max(1, round(config.control_fraction * n_cells))
    n_treated, n_treatments = n_cells - n_control, len(conditions) - 1
    if n_treated < n_treatments:
        msg = (
            f"n_cells={n_cells} leaves {n_treated} perturbed cells for {n_treatments} conditions; "
            f"expected at least one each. Ask for more cells, fewer perturbations, combinations "
            "or doses, or a lower control_fraction."
        )
        raise ValueError(msg)
    position = np.concatenate([np.arange(n_control), np.arange(n_treated)])
    treated = np.arange(n_cells) >= n_control
    condition = np.where(treated, 1 + position % n_treatments, 0)
    within = np.where(treated, position // n_treatments, position)
    context, rest = within % config.n_contexts, within // config.n_contexts
    batch, rest = rest % config.n_batches, rest // config.n_batches
    order = rng.permutation(n_cells)
    time = None
    if config.times is not None:
        time = np.asarray(config.times)[rest % len(config.times)][order]
        conditions = [replace(one, time=t) for one in conditions for t in config.times]
        condition = condition * len(config.times) + rest % len(config.times)
    return Cells(conditions, condition[order], context[order], batch[order], time)


def _treatments(truth: Truth, rng: np.random.Generator) -> list[Condition]:
    """Return singles at every dose, then pairs at the reference dose."""
    config = truth.config
    names, top = map(str, truth.perturbations[: config.n_perturbations]), config.reference_dose
    at_top = [Component(name, top) for name in names]
    doses = config.doses or (top,)
    singles = [Condition((replace(part, dose=dose),)) for part in at_top for dose in doses]
    pairs = list(combinations(at_top, 2))
    chosen = sorted(rng.choice(len(pairs), config.n_combinations, replace=False)) if pairs else []
    return singles + [Condition(pairs[i]) for i in chosen]


@checked
def expected_profile(
    adata: AnnData,
    perturbation: str,
    *,
    dose: str | float | None = None,
    time: float | None = None,
    context: str | None = None,
    n_cells: int = 2000,
    seed: int | None = 0,
) -> NDArray[np.float64]:
    """Return the true mean proportions of genes under any condition.

    The mean over unperturbed factors is taken by Monte Carlo; the mean over responding or not is
    exact. One seed draws the same cells for every condition, so that differences between
    conditions are much more precise than the profiles themselves.

    Parameters
    ----------
    adata
        Data made by `simulate_screen`.
    perturbation
        "A", "A+B", "control", measured or not; the names of `perturbation_features`.
    dose
        Number, or text such as "1+0.3" in the order of `perturbation`; None is the reference
        dose, the largest one measured.
    time
        None is the reference time, the largest one measured.
    context
        Cell type; None is the mean over all.
    n_cells
        Cells drawn, spread evenly over contexts and batches.
    seed
        Seed of the draws.

    Returns
    -------
    numpy.ndarray
        `(n_genes,)`, summing to 1.

    Raises
    ------
    UnknownPerturbationError
        If a perturbation has no defined effect.
    ValueError
        If the context is not one of the screen.
    SchemaError
        If the data were not simulated, or the dose cannot be read.
    """
    truth = Truth.from_uns(adata.uns)
    condition = _condition(truth, perturbation, dose, time)
    rng = np.random.default_rng(seed)
    cells, factors = _draw_cells(truth, condition, rng, context=context, time=time, n_cells=n_cells)
    unmoved = _proportions(truth, factors).mean(axis=0, dtype=np.float64)
    if condition.is_control:
        return unmoved
    factors = factors._replace(state=factors.state + truth.shift(condition)[cells.context])
    moved = _proportions(truth, factors).mean(axis=0, dtype=np.float64)
    share = truth.config.responder_fraction
    return share * moved + (1 - share) * unmoved


@checked
def true_effect(
    adata: AnnData,
    perturbation: str,
    *,
    dose: str | float | None = None,
    time: float | None = None,
    context: str | None = None,
    n_cells: int = 2000,
    seed: int | None = 0,
) -> NDArray[np.float64]:
    """Return the true difference of log profiles from control in the same context.

    `log1p(1e4 * p) - log1p(1e4 * p_control)` with the profiles of `expected_profile`, whose
    parameters these are; `(n_genes,)`.
    """
    profile = partial(
        expected_profile, adata, time=time, context=context, n_cells=n_cells, seed=seed
    )
    perturbed, control = profile(perturbation, dose=dose), profile(CONTROL)
    return np.log1p(TARGET_SUM * perturbed) - np.log1p(TARGET_SUM * control)


@checked
def sample_truth(
    adata: AnnData,
    perturbation: str,
    *,
    dose: str | float | None = None,
    time: float | None = None,
    context: str | None = None,
    n_cells: int = 500,
    seed: int | None = 0,
) -> AnnData:
    """Draw counts of new cells from the truth: a replicate of the experiment.

    Parameters are those of `expected_profile`; `n_cells` are spread evenly over batches, and over
    contexts where `context` is None.

    Returns
    -------
    anndata.AnnData
        `(n_cells, n_genes)` with `X`, `obs` and `obsm` as `simulate_screen` writes them.
    """
    truth = Truth.from_uns(adata.uns)
    condition = _condition(truth, perturbation, dose, time)
    rng = np.random.default_rng(seed)
    cells, factors = _draw_cells(truth, condition, rng, context=context, time=time, n_cells=n_cells)
    sampled = _annotate(truth, cells, _perturb(truth, cells, factors), rng)
    sampled.var_names = adata.var_names
    return sampled


@checked
def state_shift(
    adata: AnnData,
    perturbation: str,
    *,
    dose: str | float | None = None,
    time: float | None = None,
    context: str | None = None,
) -> NDArray[np.float64]:
    """Return the true shift `(n_state,)` of a responding cell's state, or the mean over contexts.

    Parameters are those of `expected_profile`.
    """
    truth = Truth.from_uns(adata.uns)
    shifts = truth.shift(_condition(truth, perturbation, dose, time))
    chosen: NDArray[np.float64] = shifts[_contexts(truth, context)].mean(axis=0)
    return chosen


@checked
def perturbation_features(adata: AnnData) -> dict[str, pd.DataFrame]:
    """Return what is known beforehand about every perturbation, the unseen ones included.

    Returns
    -------
    dict
        "embedding": `(n_perturbations + n_unseen, n_features)`, of which the effects are a linear
        function up to a residual. "decoy", where configured: features that carry nothing.
    """
    truth = Truth.from_uns(adata.uns)
    tables = {"embedding": truth.features, "decoy": truth.decoy_features}
    index = pd.Index(truth.perturbations.astype(str), name="perturbation", dtype=object)
    return {
        name: pd.DataFrame(
            values, index=index, columns=[f"{name}_{i}" for i in range(values.shape[1])]
        )
        for name, values in tables.items()
        if values.shape[1]
    }


def _condition(
    truth: Truth, perturbation: str, dose: str | float | None, time: float | None
) -> Condition:
    filled = truth.config.reference_dose if dose is None else dose
    return Condition.parse(perturbation, dose=filled, time=time, separator=SEPARATOR)


def _contexts(truth: Truth, context: str | None) -> NDArray[np.int64]:
    """Return the positions of the asked context, or of all."""
    if context is None:
        return np.arange(len(truth.contexts))
    check_choice("context", context, map(str, truth.contexts))
    return np.flatnonzero(truth.contexts == context)


def _draw_cells(
    truth: Truth,
    condition: Condition,
    rng: np.random.Generator,
    *,
    context: str | None,
    time: float | None,
    n_cells: int,
) -> tuple[Cells, Factors]:
    """Draw cells of one condition, spread evenly over contexts and batches, not yet perturbed."""
    contexts = _contexts(truth, context)
    position = np.arange(n_cells)
    at = truth.config.reference_time if time is None else time
    cells = Cells(
        conditions=[condition],
        condition=np.zeros(n_cells, np.int64),
        context=contexts[position % len(contexts)],
        batch=position // len(contexts) % truth.config.n_batches,
        time=None if truth.config.times is None else np.full(n_cells, float(at)),
    )
    return cells, _draw_factors(truth, context=cells.context, batch=cells.batch, rng=rng)
