"""The regression of mean displacements on components, against known vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.data import Condition, ConditionTable
from scvi_perturb.model.base.additive import fit_additive
from scvi_perturb.model.base.reference import to_tensors

N_LATENT, N_CELLS = 6, 60
NAMES = [f"p{i}" for i in range(10)]


def fit(labels, vectors, *, features=None, spread=0.3, seed=0):
    """Fit displacements of cells that move by the sum of their components' vectors."""
    rng = np.random.default_rng(seed)
    table = ConditionTable.from_conditions([Condition.parse(label) for label in labels])
    index = {name: i for i, (name, _) in enumerate(table.components)}
    code = np.repeat(np.arange(1, len(table)), N_CELLS)
    means = np.stack(
        [sum(vectors[name] for name in table.conditions[c].names) for c in range(1, len(table))]
    )
    move = np.repeat(means, N_CELLS, axis=0) + spread * rng.normal(size=(len(code), N_LATENT))
    n_ids = len(NAMES) + 1
    tensors = {
        name: (torch.from_numpy(values), torch.ones(n_ids, dtype=torch.bool))
        for name, values in (features or {}).items()
    }
    made = fit_additive(
        torch.from_numpy(move).float(),
        code,
        to_tensors(table.arrays()),
        torch.ones(n_ids),
        tensors,
    )
    return made.vectors.numpy(), index


def vectors_around(common, *, own=1.0, seed=1):
    rng = np.random.default_rng(seed)
    shift = common * rng.normal(size=N_LATENT)
    return {name: shift + own * rng.normal(size=N_LATENT) for name in NAMES}, shift


def test_vectors_of_singles_and_pairs_are_recovered():
    vectors, _ = vectors_around(0.0)
    found, index = fit([*NAMES[:8], "p0+p1", "p2+p3", "p8+p1"], vectors)
    for name in NAMES[:9]:  # p8 is seen in a pair alone
        error = np.linalg.norm(found[index[name]] - vectors[name])
        assert error < 6 * 0.3 / np.sqrt(N_CELLS) * np.sqrt(N_LATENT), name


@pytest.mark.parametrize("common", [0.0, 2.0])
def test_a_component_never_seen_gets_what_all_have_in_common(common):
    """With features that say nothing, its vector is the mean of the others, if they share one."""
    vectors, shift = vectors_around(common, own=0.5)
    nothing = {"noise": np.random.default_rng(3).normal(size=(11, 40)).astype(np.float32)}
    found, index = fit(NAMES[:8], vectors, features=nothing)
    unseen = next(i for i in range(11) if i not in index.values())
    assert np.linalg.norm(found[unseen] - shift) < 0.4 * max(np.linalg.norm(shift), 2.0)
    if common:
        cosine = found[unseen] @ shift / np.linalg.norm(found[unseen]) / np.linalg.norm(shift)
        assert cosine > 0.9


# Rounding chose between equal levels in the second of them.
@pytest.mark.parametrize("seed", [0, 11])
def test_vectors_of_components_of_one_condition_each_are_the_means(seed):
    # Left out in turn, none is told by the others, whatever the level of misfit.
    vectors, _ = vectors_around(0.0, own=5.0, seed=seed)
    centre = np.mean(list(vectors.values()), axis=0)
    vectors = {name: vector - centre for name, vector in vectors.items()}
    found, index = fit(NAMES, vectors, seed=seed)
    for name in NAMES:
        # The noise that is assumed is the variance of all cells over 60: it shrinks by about 2 %.
        np.testing.assert_allclose(
            found[index[name]], vectors[name], rtol=0.03, atol=4 * 0.3 / N_CELLS**0.5
        )
