"""Where the state starts: responses of all contexts, and what contexts add to them."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb._core import Key
from scvi_perturb.model.causal import fit
from scvi_perturb.model.causal.fit import _response_directions, control_centred

N_GENES = 40


def cells(n_each, *, n_conditions=1, n_contexts=2, noise=0.3, seed=0):
    """Return expression and codes: conditions move one gene each, and contexts another.

    Of condition `c` gene `c` goes up by 1; in context `x` gene `20 + x` by 1, in others down.
    """
    random = np.random.default_rng(seed)
    grid = np.stack(
        np.meshgrid(np.arange(n_conditions + 1), np.arange(n_contexts), np.arange(n_each)), axis=-1
    )
    condition, context, _ = grid.reshape(-1, 3).T
    values = noise * random.standard_normal((len(condition), N_GENES))
    treated = condition > 0
    rows = np.flatnonzero(treated)
    values[rows, condition[rows] - 1] += 1.0
    values[rows[:, None], 20 + np.arange(n_contexts)] -= 1.0 / n_contexts
    values[rows, 20 + context[rows]] += 1.0
    codes = {
        Key.CONDITION: condition,
        Key.CONTEXT: context,
        Key.BATCH: np.zeros(len(condition), dtype=np.int64),
    }
    return values, codes


def held(directions, gene):
    """Return the share of a gene's axis that lies in the span of orthonormal directions."""
    return float((directions[:, gene] ** 2).sum())


def test_state_holds_the_response_and_what_contexts_add():
    found = _response_directions(*cells(200), 2, seed=0)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-8)
    assert held(found, 0) > 0.95
    # The difference of the two contexts: genes 20 and 21, one up and one down.
    assert abs(found @ np.eye(N_GENES)[[20, 21]].T @ [1, -1]).max() / np.sqrt(2) > 0.95
    assert held(found[:1], 0) > 0.95


def test_contexts_of_few_cells_add_less_than_conditions():
    values, codes = cells(4, n_conditions=3, noise=0.01)
    found = _response_directions(values, codes, 3, seed=0)
    assert min(held(found, gene) for gene in range(3)) > 0.95


def test_of_many_groups_the_leading_directions_are_the_same(monkeypatch):
    values, codes = cells(50, n_conditions=5, n_contexts=3)
    every = _response_directions(values, codes, 4, seed=0)
    monkeypatch.setattr(fit, "MAX_GROUPS", 5)
    some = _response_directions(values, codes, 4, seed=0)
    np.testing.assert_allclose(np.abs(np.diag(every @ some.T)), 1.0, atol=1e-2)


@pytest.mark.parametrize("treated", [True, False], ids=["no control", "no treated"])
def test_what_cells_are_displaced_from(treated):
    values, codes = cells(10)
    keep = (codes[Key.CONDITION] > 0) == treated
    displacement, rows = control_centred(values[keep], {k: v[keep] for k, v in codes.items()})
    if not treated:
        assert len(displacement) == len(rows) == 0
        return
    # Without controls, from the mean of their context.
    for context in (0, 1):
        own = codes[Key.CONTEXT][keep] == context
        np.testing.assert_allclose(displacement[own].mean(axis=0), 0.0, atol=1e-8)
