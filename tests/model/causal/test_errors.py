"""Errors of effects: what the weights of genes leave open, and what validation cells say of it."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from scvi_perturb import CausalConfig, CausalPerturbVAE
from scvi_perturb.model.causal.effects import (
    DEFAULT_EXCESS,
    _expected_under,
    error_excess,
    held_out_errors,
    weight_covariance,
)
from scvi_perturb.testing import SINGLE, make_screen

CONFIG = CausalConfig(n_identity=2, n_state=3, n_technical=1)


@pytest.fixture(scope="module")
def trained():
    adata = make_screen()
    CausalPerturbVAE.setup_anndata(adata, context_keys="cell_type", batch_key="batch")
    model = CausalPerturbVAE(adata, n_hidden=16, n_layers=1, likelihood="poisson", causal=CONFIG)
    model.train(20, batch_size=64, accelerator="cpu", enable_progress_bar=False)
    return model


def halves(model):
    """Return two halves of the cells, as if the second had been held out."""
    cells = np.arange(model.adata.n_obs)
    return cells[::2], cells[1::2]


def test_weights_are_as_sure_as_a_regression_of_counts(trained):
    network, reader = trained.module.representation, trained._reader(None)
    train = np.asarray(trained.train_indices)
    batch = reader[train]
    with torch.no_grad():
        latent, _ = network.encode(batch)
        conditions = network.table.rows(batch["condition"])
        mean = network.decode(latent, batch["library"], None, conditions).mean[:, 7].double()
        latent[:, 5] = 1.0  # the depth is no input of the decoder: the intercept
    latent = latent.double()

    def loss(change):
        """Minus the log-posterior of weights of a gene, less what does not depend on them."""
        return (mean * (latent @ change).exp()).sum() + 0.5 * change.square().sum()

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(7, dtype=torch.float64))
    expected = torch.linalg.inv(hessian)[2:5, 2:5].numpy()
    found = weight_covariance(network, reader, train, seed=0)
    assert found.shape == (trained.adata.n_vars, 3, 3)
    np.testing.assert_allclose(found[7], expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(found, trained.operator_errors_["weight_covariance"])


def test_wrong_operators_are_seen_on_validation_cells(trained):
    network, reader = trained.module.representation, trained._reader(None)
    code, squared = held_out_errors(network, reader, halves(trained), seed=0)
    assert len(code) > 3
    assert 0 not in code
    spoiled = deepcopy(network)
    with torch.no_grad():
        spoiled.operators.paced.mul_(-1.0)
    same, larger = held_out_errors(spoiled, reader, halves(trained), seed=0)
    np.testing.assert_array_equal(code, same)
    assert larger.sum() > squared.sum()


def test_without_held_out_controls_nothing_is_measured(trained):
    train, held = halves(trained)
    reader = trained._reader(None)
    held = held[reader.codes["condition"][held] != 0]
    network = trained.module.representation
    assert len(held_out_errors(network, reader, (train, held), seed=0)[0]) == 0


def test_conditions_of_parts_never_trained_on_tell_nothing(trained):
    network, reader = deepcopy(trained.module.representation), trained._reader(None)
    code, _ = held_out_errors(network, reader, halves(trained), seed=0)
    lost = network.table.component[code[0], 0]
    network.seen[lost] = False
    other, _ = held_out_errors(network, reader, halves(trained), seed=0)
    table = network.table.rows(torch.from_numpy(code))
    without = ~((table.component == lost) & table.mask).any(1).numpy()
    assert not without.all()
    np.testing.assert_array_equal(other, code[without])


def test_edited_genes_are_corrected_in_all_cells_of_a_condition():
    adata = make_screen()
    adata.var_names = [SINGLE, *adata.var_names[1:]]
    CausalPerturbVAE.setup_anndata(adata, context_keys="cell_type", batch_key="batch")
    model = CausalPerturbVAE(adata, n_hidden=16, n_layers=1, causal=CONFIG)
    network, reader = model.module.representation.eval(), model._reader(None)
    with torch.no_grad():
        network.on_target.fill_(-2.0)
        network.responds.fill_(-10.0)  # no cell responds
    code = next(
        i
        for i, one in enumerate(model._screen.table.conditions)
        if [part.name for part in one.components] == [SINGLE]
    )
    batch = reader[np.arange(4)]
    shares = []
    for own in (0, code):
        with torch.inference_mode():
            shares.append(_expected_under(network, batch, torch.full((4,), own)))
    odds = [share[:, 0] / (1 - share[:, 0]) for share in shares]
    np.testing.assert_allclose(np.log(odds[1] / odds[0]), -2.0, rtol=1e-3)


def test_errors_beyond_what_is_stated_widen_intervals(trained):
    model = deepcopy(trained)
    effects = []
    for model.operator_errors_["excess"] in (1.0, 4.0):
        effects.append(model.get_perturbation_effects())
    known = np.isfinite(effects[0].layers["std"])
    assert known.any()
    np.testing.assert_allclose(
        effects[1].layers["std"][known], 2 * effects[0].layers["std"][known], rtol=1e-5
    )


def test_of_few_conditions_nothing_is_learned():
    assert error_excess(np.array([8.0, 8.0]), np.ones(2)) == DEFAULT_EXCESS
    assert error_excess(np.zeros(0), np.zeros(0)) == DEFAULT_EXCESS


def test_conditions_of_unknown_error_are_left_out():
    stated = np.ones(30)
    squared = 6.0 * stated
    lost = np.arange(30) == 3
    unknown = error_excess(np.where(lost, 1e9, squared), np.where(lost, np.nan, stated))
    assert unknown == pytest.approx(6.0)


def test_what_all_conditions_say_is_believed():
    stated = np.linspace(1.0, 2.0, 30)
    assert error_excess(6.0 * stated, stated) == pytest.approx(6.0)
    # Smaller errors than chance alone leaves are not believed.
    assert error_excess(0.2 * stated, stated) == 1.0


def test_what_conditions_disagree_on_is_believed_less():
    random = np.random.default_rng(0)
    stated = np.ones(20)
    noisy = 6.0 + 20.0 * random.standard_normal(20)
    ratio = noisy.mean()
    assert abs(error_excess(noisy, stated) - DEFAULT_EXCESS) < 0.5 * abs(ratio - DEFAULT_EXCESS)
