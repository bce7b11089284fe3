"""The bilinear model recovers bilinear changes, and solves the problem it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import PCARidge
from tests.predictors._effects import effects, lfc, pairs

RNG = np.random.default_rng(0)
NAMES = [f"p{i:02d}" for i in range(40)]
SCORES = RNG.normal(size=(40, 2))
LOADINGS = RNG.normal(size=(2, 15))
#: Bilinear, but for what is common to all genes, which `G` does not span.
TRUTH = SCORES @ (LOADINGS - LOADINGS.mean(axis=1, keepdims=True)) + RNG.normal(size=15)
STORE = PerturbationFeatures({"text": pd.DataFrame(SCORES @ RNG.normal(size=(2, 9)), index=NAMES)})


def fitted(n=30, **options):
    options = {"profile": "effects", "n_components": 4} | options
    return PCARidge(STORE, **options).fit(effects(pairs(NAMES[:n], TRUTH)))


def test_changes_that_are_bilinear_are_recovered_for_unseen_perturbations():
    made = lfc(fitted(penalty=1e-6), NAMES)
    np.testing.assert_allclose(made, TRUTH, atol=1e-3)


def test_weights_minimise_the_ridge_criterion():
    """Two ridge solves in turn: of `(Y - b)'` on `G`, then of that on `P`."""
    predictor = fitted(penalty=2.0)
    centred = TRUTH[:30] - TRUTH[:30].mean(0)
    genes = predictor._genes
    places = predictor._scores.of(NAMES[:30])

    def fit(columns, targets):
        def loss(flat):
            w = flat.reshape(columns.shape[1], -1)
            return ((targets - columns @ w) ** 2).sum() + 2.0 * (w**2).sum()

        n = columns.shape[1] * targets.shape[1]
        return minimize(loss, np.zeros(n), tol=1e-12).x.reshape(columns.shape[1], -1)

    inner = fit(genes, centred.T)
    outer = fit(places, inner.T)
    np.testing.assert_allclose(predictor._weights, outer.T, atol=1e-4)


def test_combinations_are_sums():
    predictor = fitted()
    made = lfc(predictor, ["p01", "p35", "p01+p35"])
    np.testing.assert_allclose(made[2], made[0] + made[1], rtol=1e-4, atol=1e-6)


def test_without_features_the_perturbed_genes_stand_for_themselves():
    """Genes in modules: perturbing one gene changes its module, also for a gene never perturbed."""
    genes = [f"g{i}" for i in range(30)]
    module = np.arange(30) % 3
    same = (module[:, None] == module[None, :]).astype(float)
    trained = [(genes[i], 2.0 * same[i]) for i in range(12)]
    predictor = PCARidge(n_components=3, profile="effects").fit(effects(trained, genes))
    made = lfc(predictor, [genes[i] for i in range(12, 30)])
    nearest = np.array([np.corrcoef(row, same[i])[0, 1] for i, row in enumerate(made, 12)])
    assert nearest.min() > 0.99


def test_what_is_no_gene_is_left_out_aloud_and_refused():
    rows = [("g0", [1.0, 0, 2]), ("g1", [0.0, 1, 1]), ("drug", [5.0, 5, 5])]
    with pytest.warns(UserWarning, match=r"PCARidge leaves out 1 of 3 .*'drug'"):
        predictor = PCARidge(profile="effects").fit(effects(rows))
    with pytest.raises(UnknownPerturbationError, match=r"'drug' .*names, which are g0"):
        predictor.predict(["drug"])
    with pytest.raises(SchemaError, match="can learn from none of the 1"):
        PCARidge(profile="effects").fit(effects(rows[2:]))
    with pytest.raises(SchemaError, match="found no training condition"):
        PCARidge(profile="effects").fit(effects([("g0+g1", [1.0, 2, 3])]))


def test_missing_modalities_are_at_the_mean():
    first = PerturbationFeatures(
        {
            "text": STORE.frame("text"),
            "rare": pd.DataFrame(RNG.normal(size=(20, 3)), index=NAMES[:20]),
        }
    )
    predictor = PCARidge(first, profile="effects").fit(effects(pairs(NAMES[:30], TRUTH)))
    scores = predictor._scores._standard(NAMES)
    assert not scores[20:, 9:].any()
    assert np.isfinite(lfc(predictor, NAMES[35:])).all()


@pytest.mark.parametrize("options", [{"n_components": 0}, {"penalty": 0.0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="out of range"):
        PCARidge(**options)


def test_counts_of_genes_that_are_perturbed(screen):
    screen.obs["perturbation"] = screen.obs["perturbation"].replace({"A": "g0", "C": "g5"})
    predictor = PCARidge().fit(screen, keys=ScreenKeys(context="cell_type"))
    made = lfc(predictor, ["g0", "g5", "g1"])
    assert made[0, 0] > made[1, 0]
    assert made[1, 5] > made[0, 5]
