"""How likely cells are, and draws from the posterior of single cells."""

from __future__ import annotations

import numpy as np
import pytest
from scvi.criticism import PosteriorPredictiveCheck

from scvi_perturb import UnknownPerturbationError
from scvi_perturb.testing import HELD_OUT, SINGLE, dense


def bound(case, model, *arguments, **options):
    return getattr(model, case.likelihood)(*arguments, **{"n_samples": 8, **options})


def test_likelihood_is_one_number_a_cell_in_the_order_asked_for(case, trained, simulated):
    known = ~simulated.obs["perturbation"].str.contains(HELD_OUT).to_numpy()
    cells = np.flatnonzero(known)[:60]
    values = bound(case, trained, indices=cells)
    assert values.shape == (60,)
    assert np.isfinite(values).all()
    assert (values < 0).all(), "probabilities of counts are at most one"
    np.testing.assert_array_equal(values, bound(case, trained, indices=cells))
    assert not np.array_equal(values, bound(case, trained, indices=cells, seed=1))
    # Draws are shared by the cells of a condition, so that order and company do not matter.
    one_group = cells[(simulated.obs["perturbation"] == "control").to_numpy()[cells]]
    some = bound(case, trained, indices=one_group)
    np.testing.assert_allclose(some[::-1], bound(case, trained, indices=one_group[::-1]), rtol=1e-5)


def test_likelihood_is_written_to_new_data(case, trained, simulated):
    some = simulated[simulated.obs["perturbation"] == SINGLE].copy()
    values = bound(case, trained, some, key_added="log_likelihood")
    np.testing.assert_array_equal(some.obs["log_likelihood"], values)


def test_likelihood_of_an_unknown_perturbation_is_refused(case, trained, simulated):
    held_out = np.flatnonzero((simulated.obs["perturbation"] == HELD_OUT).to_numpy())
    with pytest.raises(UnknownPerturbationError, match=HELD_OUT):
        bound(case, trained, indices=held_out[:2])


def test_posterior_draws_are_cells_by_genes_by_samples(trained, simulated):
    draws = trained.posterior_predictive_sample(n_samples=3, indices=[8, 2, 5], batch_size=2)
    assert draws.shape == (3, simulated.n_vars, 3)
    values = draws.todense()
    assert (values >= 0).all()
    assert (values == np.rint(values)).all()
    assert not np.array_equal(values[..., 0], values[..., 1])
    again = trained.posterior_predictive_sample(n_samples=3, indices=[8, 2, 5], batch_size=2)
    np.testing.assert_array_equal(values, again.todense())
    assert trained.posterior_predictive_sample(indices=[1]).shape == (1, simulated.n_vars)


def test_posterior_draws_follow_the_cells(trained, simulated):
    draws = trained.posterior_predictive_sample(n_samples=20).todense().mean(axis=2)
    totals = dense(simulated.X).sum(axis=1)
    assert np.corrcoef(draws.sum(axis=1), totals)[0, 1] > 0.9


def test_scvi_criticises_the_model(case, trained):
    adata = trained.adata.copy()
    # Of whole numbers: scvi-tools 1.4.2 cannot tell whether sparse floats are.
    adata.X = adata.X.astype(np.int32)
    # It looks its first model up by this name.
    check = PosteriorPredictiveCheck(adata, {"model1": trained}, n_samples=2)
    check.calibration_error()
    errors = check.metrics["calibration"].to_numpy(float)
    assert errors.size > 0
    assert np.isfinite(errors).all()
