"""Expression of measured cells as the model decodes it: scvi-tools' verb."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb import NotTrainedError, SchemaError
from scvi_perturb.testing import dense

GENES = ["gene_05", "gene_02"]


def test_shares_are_one_table_of_cells_by_genes(trained, simulated):
    shares = trained.get_normalized_expression(indices=[8, 2, 5], n_samples=3)
    assert list(shares.index) == list(simulated.obs_names[[8, 2, 5]])
    assert list(shares.columns) == list(simulated.var_names)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-4)
    again = trained.get_normalized_expression(indices=[8, 2, 5], n_samples=3, return_numpy=True)
    np.testing.assert_array_equal(shares.to_numpy(), again)
    other = trained.get_normalized_expression(indices=[8, 2, 5], n_samples=3, seed=1)
    assert not np.array_equal(again, other.to_numpy())


def test_totals_are_those_asked_for(trained, simulated):
    shares = trained.get_normalized_expression(indices=[1, 0], gene_list=GENES)
    assert list(shares.columns) == GENES
    scaled = trained.get_normalized_expression(indices=[1, 0], gene_list=GENES, library_size=1e4)
    np.testing.assert_allclose(scaled, 1e4 * shares, rtol=1e-4)
    counts = trained.get_normalized_expression(indices=[1, 0], library_size="latent")
    np.testing.assert_allclose(
        counts.sum(axis=1), dense(simulated.X).sum(axis=1)[[1, 0]], rtol=1e-4
    )


def test_the_mean_expression_is_that_of_the_cells(trained, simulated):
    found = trained.get_normalized_expression(n_samples=4, return_numpy=True)
    counts = dense(simulated.X)
    observed = counts / counts.sum(axis=1, keepdims=True)
    assert np.corrcoef(found.mean(axis=0), observed.mean(axis=0))[0, 1] > 0.9


def test_new_data_are_decoded_in_their_own_order_of_genes(trained, simulated):
    some = simulated[:6, ::-1].copy()
    np.testing.assert_allclose(
        trained.get_normalized_expression(some, return_numpy=True),
        trained.get_normalized_expression(indices=range(6), return_numpy=True),
        rtol=1e-4,
    )


def test_all_cells_can_be_decoded_in_one_batch(case, trained, simulated):
    if case.name.startswith("CausalPerturbVAE"):
        with pytest.raises(ValueError, match="decodes without batches"):
            trained.get_normalized_expression(transform_batch="batch_01")
        return
    own = trained.get_normalized_expression(indices=range(40), return_numpy=True)
    asked = {"indices": range(40), "transform_batch": "batch_01", "return_numpy": True}
    first = trained.get_normalized_expression(**asked)
    there = (simulated.obs["batch"][:40] == "batch_01").to_numpy()
    np.testing.assert_array_equal(own[there], first[there])
    assert not np.allclose(own[~there], first[~there], rtol=1e-3)
    with pytest.raises(SchemaError, match="the batches are"):
        trained.get_normalized_expression(transform_batch="batch_99")


def test_genes_may_be_an_index(trained, simulated):
    found = trained.get_normalized_expression(indices=[0], gene_list=simulated.var_names[:2])
    assert list(found.columns) == list(simulated.var_names[:2])


def test_nothing_is_made_of_nothing(trained, simulated):
    with pytest.raises(SchemaError, match="gene_list holds no gene"):
        trained.get_normalized_expression(gene_list=[])
    with pytest.raises(SchemaError, match="indices is empty"):
        trained.get_normalized_expression(indices=np.zeros(simulated.n_obs, bool))
    empty = simulated[:3].copy()
    empty.X = empty.X * 0
    with pytest.raises(SchemaError, match="Cells without counts"):
        trained.get_normalized_expression(empty)


def test_what_is_unknown_is_refused(trained, untrained):
    with pytest.raises(SchemaError, match="gene_99"):
        trained.get_normalized_expression(gene_list=["gene_02", "gene_99"])
    with pytest.raises(NotTrainedError):
        untrained.get_normalized_expression()
