"""What the simulator knows: true effects, expected profiles, and cells under any condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._constants import CONTROL, SEPARATOR, TARGET_SUM
from scvi_perturb._errors import check_choice
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.simulate.screen import (
    Cells,
    Truth,
    annotate,
    draw_factors,
    perturb,
    proportions,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = [
    "expected_profile",
    "perturbation_features",
    "sample_truth",
    "state_shift",
    "true_effect",
]


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
    cells = _even_cells(truth, condition, context=context, time=time, n_cells=n_cells)
    rng = np.random.default_rng(seed)
    factors = draw_factors(truth, context=cells.context, batch=cells.batch, rng=rng)
    unmoved = proportions(truth, factors).mean(axis=0, dtype=np.float64)
    if condition.is_control:
        return unmoved
    state = factors.state + truth.shift(condition)[cells.context]
    moved = proportions(truth, factors, state=state).mean(axis=0, dtype=np.float64)
    share = truth.config.responder_fraction
    return share * moved + (1 - share) * unmoved


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
    profiles = [
        expected_profile(
            adata, label, dose=at, time=time, context=context, n_cells=n_cells, seed=seed
        )
        for label, at in ((perturbation, dose), (CONTROL, None))
    ]
    perturbed, control = np.log1p(TARGET_SUM * np.stack(profiles))
    difference: NDArray[np.float64] = perturbed - control
    return difference


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
    cells = _even_cells(truth, condition, context=context, time=time, n_cells=n_cells)
    rng = np.random.default_rng(seed)
    factors = draw_factors(truth, context=cells.context, batch=cells.batch, rng=rng)
    sampled = annotate(truth, cells, perturb(truth, cells, factors), rng)
    sampled.var_names = adata.var_names
    return sampled


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


def _even_cells(
    truth: Truth, condition: Condition, *, context: str | None, time: float | None, n_cells: int
) -> Cells:
    """Return cells of one condition, spread evenly over contexts and batches."""
    contexts = _contexts(truth, context)
    position = np.arange(n_cells)
    at = truth.config.reference_time if time is None else time
    return Cells(
        conditions=[condition],
        condition=np.zeros(n_cells, np.int64),
        context=contexts[position % len(contexts)],
        batch=position // len(contexts) % truth.config.n_batches,
        time=None if truth.config.times is None else np.full(n_cells, float(at)),
    )
