"""Signatures drawn around a mean: their mean, spread, and how genes go together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_perturb import NotTrainedError, SchemaError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import SampledSignatures, StackedMean
from scvi_perturb.predictors.signatures import _loadings

N_GENES, N_NAMES, CONTEXTS = 30, 24, ("a", "b", "c")
#: Half of the genes go up and down together, beside what a signature says.
MODULE = np.r_[np.ones(N_GENES // 2), np.zeros(N_GENES - N_GENES // 2)]
KEYS = ScreenKeys("perturbation")


@pytest.fixture(scope="module")
def screen():
    random = np.random.default_rng(0)
    effects = random.normal(0, 2, (N_NAMES, N_GENES))
    rows, obs = [], []
    for i in range(N_NAMES):
        for context in CONTEXTS:
            peculiar = random.normal() * MODULE + random.normal(0, 0.3, N_GENES)
            rows.append(effects[i] + peculiar)
            obs.append({"perturbation": f"p{i:02d}", "context": context})
    frame = pd.DataFrame(obs, index=[f"row{i}" for i in range(len(obs))])
    return AnnData(np.array(rows), obs=frame)


@pytest.fixture(scope="module")
def fitted(screen):
    hidden = (screen.obs["perturbation"] == "p00") & (screen.obs["context"] == "a")
    stack = StackedMean(profile="effects", scenarios=["context_transfer"], n_folds=3)
    made = SampledSignatures(mean=stack)
    return made.fit(screen[~hidden].copy(), keys=replace(KEYS, context=["context"]))


ASKED = pd.DataFrame({"perturbation": ["p00"], "context": ["a"]})


def test_draws_have_the_mean_and_the_spread_that_are_stated(fitted):
    n = 4000
    drawn = fitted.sample(ASKED, n_samples=n, seed=0)
    stated = fitted.predict(ASKED)
    std = stated.layers["std"][0]
    # five standard errors of a mean, and of a standard deviation of normal draws
    assert np.abs(drawn.X.mean(0) - stated.layers["lfc"][0]).max() < 5 * std.max() / n**0.5
    np.testing.assert_allclose(drawn.X.std(0), std, rtol=5 / (2 * n) ** 0.5)


def test_genes_of_a_module_go_together(fitted):
    drawn = fitted.sample(ASKED, n_samples=2000, seed=0).X
    correlation = np.corrcoef(drawn.T)
    half = N_GENES // 2
    inside = correlation[:half, :half][np.triu_indices(half, 1)]
    outside = correlation[half:, half:][np.triu_indices(N_GENES - half, 1)]
    # errors there are a shared normal of variance 1 (+ 1/2 for the mean of two) and 0.09 of noise
    assert inside.mean() > 0.6
    assert abs(outside.mean()) < 0.1


def test_without_factors_genes_are_independent(screen):
    stack = StackedMean(profile="effects", scenarios=["context_transfer"], n_folds=3)
    made = SampledSignatures(mean=stack, n_factors=0)
    made.fit(screen, keys=replace(KEYS, context=["context"]))
    drawn = made.sample(ASKED, n_samples=2000, seed=0).X
    off = np.corrcoef(drawn.T)[np.triu_indices(N_GENES, 1)]
    assert np.abs(off).max() < 5 / 2000**0.5


def test_independent_errors_have_no_components():
    errors = np.random.default_rng(0).normal(size=(200, 50))
    assert len(_loadings(errors, 20)) <= 1  # the edge is asymptotic


def test_one_seed_gives_the_same_draws(fitted):
    first, again, other = (fitted.sample(ASKED, n_samples=5, seed=s).X for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_rows_say_what_they_are(fitted):
    asked = pd.DataFrame({"perturbation": ["p00", "p01"], "context": ["a", "b"]})
    drawn = fitted.sample(asked, n_samples=3, seed=0)
    assert drawn.shape == (6, N_GENES)
    assert drawn.obs["perturbation"].tolist() == ["p00"] * 3 + ["p01"] * 3
    assert drawn.obs["draw"].tolist() == [0, 1, 2] * 2
    assert drawn.uns["scvi_perturb"]["units"] == "effects as given"


def test_messages():
    with pytest.raises(SchemaError, match="signatures need 'effects'"):
        SampledSignatures(mean=StackedMean())
    with pytest.raises(ValueError, match="n_factors=-1"):
        SampledSignatures(n_factors=-1)
    with pytest.raises(NotTrainedError, match="call `fit"):
        _ = SampledSignatures().loadings


def test_too_little_to_leave_out_is_refused(screen):
    few = screen[:1].copy()
    with pytest.raises(SchemaError, match="Nothing could be left out"):
        SampledSignatures().fit(few, keys=replace(KEYS, context=["context"]))


def test_a_draw_is_at_least_one(fitted):
    with pytest.raises(ValueError, match="n_samples=0"):
        fitted.sample(ASKED, n_samples=0)
