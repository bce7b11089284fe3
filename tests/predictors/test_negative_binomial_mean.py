"""Counts drawn around a mean have that mean, and the variance of the training cells."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb._core import UNS_KEY, NotTrainedError, SchemaError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import Additive, CellPredictor, NegativeBinomialMean, NoChange
from scvi_perturb.predictors.cells import moment_dispersion

SHARE = np.array([0.4, 0.3, 0.2, 0.1])
DISPERSION = np.array([0.0, 0.2, 0.5, 1.0])
LIBRARY = 200


def draws(n, share, dispersion, rng):
    rate = np.tile(LIBRARY * share, (n, 1))
    spread = dispersion > 0
    shape = 1 / dispersion[spread]
    rate[:, spread] *= rng.gamma(shape, 1 / shape, size=(n, spread.sum()))
    return rng.poisson(rate)


@pytest.fixture(scope="module")
def screen():
    """Cells whose proportions and dispersions are known, in two contexts."""
    rng = np.random.default_rng(0)
    groups = [
        ("control", "T", SHARE),
        ("control", "B", SHARE[::-1]),
        ("A", "T", np.array([0.1, 0.3, 0.2, 0.4])),
        ("A", "B", np.array([0.2, 0.1, 0.4, 0.3])),
    ]
    counts = np.concatenate([draws(1500, share, DISPERSION, rng) for _, _, share in groups])
    obs = pd.DataFrame(
        {
            "perturbation": np.repeat([g[0] for g in groups], 1500),
            "cell_type": np.repeat([g[1] for g in groups], 1500),
        }
    )
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return AnnData(X=sparse.csr_matrix(counts.astype(np.float32)), obs=obs)


@pytest.fixture(scope="module")
def fitted(screen):
    return NegativeBinomialMean(Additive()).fit(screen, keys=ScreenKeys(context="cell_type"))


A_IN_T = pd.DataFrame({"perturbation": ["A"], "cell_type": ["T"]})


def test_moments_find_the_dispersion():
    """With all library sizes alike by a dominant gene, the moments are those of one gene."""
    rng = np.random.default_rng(1)
    counts = draws(6000, np.array([0.05, 0.05, 0.1, 0.02]), DISPERSION, rng)
    rest = 20_000 - counts.sum(axis=1, keepdims=True)
    group = np.repeat([0, 1], 3000)
    found = moment_dispersion(np.hstack([counts, rest]), group)
    np.testing.assert_allclose(found[:4], DISPERSION, atol=0.07)
    as_sparse = moment_dispersion(sparse.csr_matrix(np.hstack([counts, rest])), group)
    np.testing.assert_allclose(as_sparse, found)


def test_a_difference_between_groups_is_no_dispersion():
    rng = np.random.default_rng(1)
    counts = rng.poisson(np.repeat([[5, 50, 45], [50, 5, 45]], 2000, axis=0))
    apart = moment_dispersion(counts, np.repeat([0, 1], 2000))
    together = moment_dispersion(counts, np.zeros(4000, int))
    assert apart.max() < 0.02
    assert together[:2].min() > 0.3


def test_genes_without_counts_and_single_cells():
    counts = np.array([[4, 0, 1], [1, 0, 6], [9, 0, 3], [3, 0, 3]])
    found = moment_dispersion(counts, np.array([0, 0, 0, 1]))
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert not moment_dispersion(counts, np.arange(4)).any()


def test_draws_have_the_mean_and_the_variance(screen, fitted):
    n = 8000
    cells = fitted.sample(A_IN_T, n_samples=n, seed=0)
    counts = cells.X.toarray()
    controls = screen[(screen.obs["perturbation"] == "control") & (screen.obs["cell_type"] == "T")]
    library = np.asarray(controls.X.sum(axis=1)).ravel()
    profile = np.expm1(fitted.predict(A_IN_T).X[0]) / 1e4
    assert profile.sum() == pytest.approx(1, rel=1e-4)
    mean = library.mean() * profile
    # E[m + a m**2] + Var[m] over library sizes.
    square = (library**2).mean() * profile**2
    variance = mean + fitted.dispersion * square + square - mean**2
    error = np.sqrt(variance / n)
    assert (np.abs(counts.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(counts.var(0), variance, rtol=0.12)


def test_cells_are_integer_counts(fitted):
    cells = fitted.sample(A_IN_T, n_samples=20, seed=0)
    assert cells.X.format == "csr"
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.X.data.min() > 0
    about = cells.uns[UNS_KEY]
    assert about["units"] == "counts"
    assert about["model"] == "negative_binomial_mean(additive)"
    assert fitted.predict(A_IN_T).uns[UNS_KEY]["units"] == "log1p(counts per 10,000)"
    assert isinstance(fitted, CellPredictor)


def test_library_sizes_are_those_of_the_reference(screen, fitted):
    deep = screen[:4].copy()
    deep.X = deep.X * 1000
    cells = fitted.sample(A_IN_T, reference=deep, seed=0)
    wanted = np.asarray(deep.X.sum(axis=1)).ravel()
    assert cells.n_obs == 4
    assert cells.obs["reference_cell"].tolist() == deep.obs_names.tolist()
    np.testing.assert_allclose(np.asarray(cells.X.sum(axis=1)).ravel() / wanted, 1, atol=0.95)
    assert np.asarray(cells.X.sum(axis=1)).min() > 5000


def test_dispersion_of_all_cells_is_around_each_condition(screen):
    controls = NegativeBinomialMean().fit(screen, keys=ScreenKeys(context="cell_type"))
    every = NegativeBinomialMean(dispersion_from="all").fit(
        screen, keys=ScreenKeys(context="cell_type")
    )
    np.testing.assert_allclose(every.dispersion, controls.dispersion, atol=0.1)
    assert (every.dispersion != controls.dispersion).any()


def test_seeds(fitted):
    first, again, other = (fitted.sample(A_IN_T, n_samples=5, seed=s).X for s in (0, 0, 1))
    np.testing.assert_array_equal(first.toarray(), again.toarray())
    assert (first != other).nnz


def test_no_change_gives_back_the_mean_of_controls(screen):
    predictor = NegativeBinomialMean(NoChange()).fit(screen, keys=ScreenKeys(context="cell_type"))
    made = predictor.predict(A_IN_T)
    np.testing.assert_allclose(made.layers["lfc"], 0, atol=1e-4)


def test_cells_can_be_written(fitted, tmp_path):
    fitted.sample(A_IN_T, n_samples=3).write_h5ad(tmp_path / "cells.h5ad")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").uns[UNS_KEY]["seed"] == "none"


def test_messages(screen):
    with pytest.raises(NotTrainedError, match="NegativeBinomialMean has not seen data"):
        NegativeBinomialMean().sample(["A"])
    with pytest.raises(ValueError, match=r"mean.profile='cell_mean' is not known; .*'pseudobulk'"):
        NegativeBinomialMean(NoChange(profile="cell_mean"))
    with pytest.raises(ValueError, match="dispersion_from='some'"):
        NegativeBinomialMean(dispersion_from="some")
    with pytest.raises(SchemaError, match="No training control has context"):
        NegativeBinomialMean(NoChange()).fit(screen, keys=ScreenKeys(context="cell_type")).sample(
            A_IN_T.assign(cell_type="new")
        )
