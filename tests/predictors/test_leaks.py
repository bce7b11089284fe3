"""No predictor may see anything of what is held out; a planted leak would show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb.data import ScreenKeys, split
from scvi_perturb.predictors import PREDICTORS, CellPredictor
from scvi_perturb.testing import moved_split
from tests.predictors._effects import build
from tests.predictors._screen import make_screen

CONTEXT = ["cell_type"]
GROUPS = [(p, t) for t in ("T", "B") for p in ("control", "A", "C", "A+C")]


@pytest.fixture(params=["context_transfer", "cells"])
def held(request):
    """A screen of cells that differ, a split of it, and what is asked."""
    screen = make_screen(GROUPS, n=12)
    rng = np.random.default_rng(3)
    screen.X = rng.poisson(screen.X.toarray()).astype(np.float32)
    made = split(screen, request.param, keys=ScreenKeys(context=CONTEXT), fraction=0.25, seed=3)
    asked = pd.DataFrame({"perturbation": ["A", "C"], "cell_type": ["T", "T"]})
    return screen, made, asked


def answers(predictor, screen, made, asked):
    predictor.fit(screen, made, keys=ScreenKeys(context=CONTEXT))
    found = [predictor.predict(asked).X, predictor.predict(asked).layers["lfc"]]
    if isinstance(predictor, CellPredictor):
        cells = predictor.sample(asked, n_samples=30, seed=0).X
        found.append(cells.toarray() if hasattr(cells, "toarray") else cells)
    return found


@pytest.mark.parametrize("cls", PREDICTORS.values(), ids=PREDICTORS)
def test_whatever_stands_in_held_out_cells_the_predictor_is_the_same(held, cls):
    screen, made, asked = held
    expected = answers(build(cls), screen, made, asked)
    rng = np.random.default_rng(0)
    for garbage in (np.nan, -1e6, rng.normal(size=(len(made.test), screen.n_vars))):
        spoilt = screen.copy()
        spoilt.X[made.test] = garbage
        for first, second in zip(
            expected, answers(build(cls), spoilt, moved_split(made, spoilt), asked), strict=True
        ):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("cls", PREDICTORS.values(), ids=PREDICTORS)
def test_without_the_held_out_cells_the_predictor_is_the_same(held, cls):
    screen, made, asked = held
    expected = answers(build(cls), screen, made, asked)
    seen = np.sort(np.concatenate([made.train, made.validation]))
    for first, second in zip(
        expected, answers(build(cls), screen[seen].copy(), None, asked), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_the_check_would_catch_a_leak(held):
    """Seeing the test cells does change the answer, so that the tests above can fail."""
    screen, made, asked = held
    spoilt = screen.copy()
    spoilt.X[made.test] = 500
    cls = PREDICTORS["additive"]
    first, second = (answers(build(cls), data, None, asked) for data in (screen, spoilt))
    assert not np.allclose(first[0], second[0])


@pytest.mark.parametrize("cls", PREDICTORS.values(), ids=PREDICTORS)
def test_neither_the_order_of_cells_nor_names_matter(held, cls):
    screen, _, asked = held
    predictor = build(cls).fit(screen, keys=ScreenKeys(context=CONTEXT))
    shuffled = screen[np.random.default_rng(0).permutation(screen.n_obs)].copy()
    shuffled.obs["cell_type"] = shuffled.obs["cell_type"].map({"T": "a", "B": "b"})
    again = build(cls).fit(shuffled, keys=ScreenKeys(context=CONTEXT))
    renamed = asked.assign(cell_type="a")
    np.testing.assert_allclose(
        predictor.predict(asked).X, again.predict(renamed).X, rtol=1e-4, atol=1e-5
    )
