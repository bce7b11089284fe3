"""Simulated screens whose effects are known, and their design."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.data._condition import Component, Condition
from scvi_perturb.data._simulate_cells import Cells, annotate, perturb
from scvi_perturb.data._simulate_config import SimulatorConfig
from scvi_perturb.data._simulate_draw import draw_truth
from scvi_perturb.data._simulate_factors import draw_factors

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._simulate_truth import Truth

__all__ = ["simulate_screen"]


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
    truth = draw_truth(config, n_genes, for_truth)
    cells = _design(truth, n_cells, for_design)
    factors = draw_factors(truth, context=cells.context, batch=cells.batch, rng=for_cells)
    factors = perturb(truth, cells, factors)
    adata = annotate(truth, cells, factors, for_cells)
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
        conditions, condition = _cross_times(conditions, condition, config.times, rest)
    return Cells(conditions, condition[order], context[order], batch[order], time)


def _treatments(truth: Truth, rng: np.random.Generator) -> list[Condition]:
    """Return singles at every dose, then pairs at the reference dose."""
    config = truth.config
    names = [str(name) for name in truth.perturbations[: config.n_perturbations]]
    doses = config.doses or (config.reference_dose,)
    singles = [Condition((Component(name, dose),)) for name in names for dose in doses]
    pairs = list(combinations(names, 2))
    chosen = sorted(rng.choice(len(pairs), config.n_combinations, replace=False)) if pairs else []
    top = config.reference_dose
    doubles = [Condition(tuple(Component(name, top) for name in pairs[i])) for i in chosen]
    return singles + doubles


def _cross_times(
    conditions: list[Condition],
    condition: NDArray[np.int64],
    times: tuple[float, ...],
    position: NDArray[np.int64],
) -> tuple[list[Condition], NDArray[np.int64]]:
    """Return every condition at every time, and each cell's code among them."""
    crossed = [replace(entry, time=time) for entry in conditions for time in times]
    return crossed, condition * len(times) + position % len(times)
