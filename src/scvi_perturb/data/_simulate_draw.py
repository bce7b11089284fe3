"""Drawing the hidden parameters of a simulated screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb.data._simulate_truth import Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data._simulate_config import SimulatorConfig

__all__ = ["draw_truth"]

_BASE_SD = 1.5
_NUISANCE_SD = 0.5


def draw_truth(config: SimulatorConfig, n_genes: int, rng: np.random.Generator) -> Truth:
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
