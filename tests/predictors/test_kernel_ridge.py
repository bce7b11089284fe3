"""Kernel ridge: an oracle, a published experiment, refusals."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.kernel_ridge import KernelRidge as ControlCells

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import ContextMean, KernelRidge
from scvi_perturb.similarity.kernels import tanimoto
from tests.predictors._effects import FEATURES, effects, lfc, pairs


@pytest.fixture
def sets():
    """Features of 30 names, and changes that are linear in them."""
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(30)]
    table = pd.DataFrame(rng.integers(0, 2, (30, 12)).astype(float), index=names)
    truth = table.to_numpy() @ rng.normal(size=(12, 8))
    return PerturbationFeatures({"sets": table}), names, truth


def test_it_is_kernel_ridge_on_centred_changes(sets):
    store, names, truth = sets
    table = effects(pairs(names[:24], truth))
    predictor = KernelRidge(store, profile="effects").fit(table)
    values = store.frame("sets").to_numpy()
    mean = truth[:24].mean(0)
    oracle = ControlCells(alpha=predictor.lambda_, kernel="precomputed")
    oracle.fit(tanimoto(values[:24], values[:24]), truth[:24] - mean)
    expected = mean + oracle.predict(tanimoto(values[24:], values[:24]))
    np.testing.assert_allclose(lfc(predictor, names[24:]), expected, rtol=1e-4, atol=1e-5)


def test_it_beats_the_mean_where_features_explain_changes(sets):
    store, names, truth = sets
    table = effects(pairs(names[:24], truth))
    kernel = KernelRidge(store, profile="effects").fit(table)
    mean = ContextMean("perturbations", profile="effects").fit(table)
    errors = [((lfc(p, names[24:]) - truth[24:]) ** 2).sum() for p in (kernel, mean)]
    assert errors[0] < 0.6 * errors[1]


def test_renaming_and_reordering_change_nothing(sets):
    store, names, truth = sets
    order = np.random.default_rng(1).permutation(24)
    new = {name: f"q{name[::-1]}" for name in names}
    renamed = PerturbationFeatures({"sets": store.frame("sets").rename(index=new)})
    first = KernelRidge(store, profile="effects").fit(effects(pairs(names[:24], truth)))
    rows = [(new[names[i]], truth[i]) for i in order]
    second = KernelRidge(renamed, profile="effects").fit(effects(rows))
    assert first.lambda_ == second.lambda_
    np.testing.assert_allclose(
        lfc(first, names[24:]), lfc(second, [new[name] for name in names[24:]]), rtol=1e-5
    )


def test_noise_gets_the_largest_penalty_and_so_the_mean(sets):
    store, names, truth = sets
    noise = np.random.default_rng(5).normal(size=truth.shape)
    predictor = KernelRidge(store, profile="effects").fit(effects(pairs(names, noise)))
    assert predictor.lambda_ >= 10
    spread = lfc(predictor, names) - noise.mean(0)
    assert np.abs(spread).max() < 0.3


def test_contexts_share_one_prediction(sets):
    store, names, truth = sets
    rows = pairs(names[:10], truth) + pairs(names[5:], truth)
    table = effects(rows, cell_type=["T"] * 10 + ["B"] * 25)
    predictor = KernelRidge(store, profile="effects").fit(
        table, keys=ScreenKeys(context="cell_type")
    )
    asked = pd.DataFrame({"perturbation": names[:1] * 3, "cell_type": ["T", "B", "new"]})
    made = lfc(predictor, asked)
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])


def test_combinations_teach_and_are_the_mean_of_their_components():
    rng = np.random.default_rng(0)
    rows = [(name, rng.normal(size=3)) for name in ("A", "C", "D", "A+C", "C+D")]
    predictor = KernelRidge(FEATURES, penalties=(0.1,), profile="effects").fit(effects(rows))
    made = lfc(predictor, ["A+C", "A", "C", "E+F", "E", "F"])
    np.testing.assert_allclose(made[0], made[1:3].mean(0), rtol=1e-4)
    np.testing.assert_allclose(made[3], made[4:].mean(0), rtol=1e-4)
    singles = KernelRidge(FEATURES, penalties=(0.1,), profile="effects").fit(effects(rows[:3]))
    assert not np.allclose(lfc(singles, ["A"]), made[1])


def test_what_has_no_features_is_left_out_aloud_and_refused():
    rows = [("A", [1.0, 2.0]), ("C", [0.0, 1.0]), ("Z", [9.0, 9.0]), ("A+Z", [9.0, 9.0])]
    with pytest.warns(UserWarning, match=r"leaves out 2 of 4 training conditions.*'A \+ Z', 'Z'"):
        predictor = KernelRidge(FEATURES, profile="effects").fit(effects(rows))
    without = KernelRidge(FEATURES, profile="effects").fit(effects(rows[:2]))
    np.testing.assert_array_equal(lfc(predictor, ["D"]), lfc(without, ["D"]))
    with pytest.raises(
        UnknownPerturbationError, match=r"'Z' was not trained on.*any of the 5 known names"
    ):
        predictor.predict(["A+Z"])


def test_features_are_needed():
    with pytest.raises(SchemaError, match=r"KernelRidge compares .*given none"):
        KernelRidge(profile="effects").fit(effects([("A", [1.0])]))
    with pytest.raises(SchemaError, match="can learn from none of the 1"):
        KernelRidge(FEATURES, profile="effects").fit(effects([("Z", [1.0])]))


def test_unseen_drugs_as_in_the_reference_experiment(data_dir):
    """One fold of LINCS against the formulas of ordinary kernel ridge, penalty included."""
    chem = pytest.importorskip("rdkit.Chem")
    fingerprints = pytest.importorskip("rdkit.Chem.rdFingerprintGenerator")
    screen = anndata.read_h5ad(data_dir / "lincs_l1000_drugbank_consensus_z.h5ad")
    smiles = screen.obs["smiles"].astype(str)
    screen = screen[(smiles.str.len() > 1) & (smiles != "nan")].copy()
    smiles = screen.obs["smiles"].astype(str).to_numpy()
    maker = fingerprints.GetMorganGenerator(radius=2, fpSize=2048)
    bits = np.array([maker.GetFingerprintAsNumPy(chem.MolFromSmiles(s)) for s in smiles], float)
    changes = np.clip(np.asarray(screen.X, float), -10, 10)
    drugs = np.random.default_rng(0).permutation(np.unique(smiles))
    fold = {drug: i % 5 for i, drug in enumerate(drugs)}
    test = np.array([fold[s] for s in smiles]) == 0
    names = np.array([f"drug{i}" for i in range(len(smiles))])
    store = PerturbationFeatures({"morgan": pd.DataFrame(bits, index=names)})
    predictor = KernelRidge(store, profile="effects").fit(
        effects(pairs(names[~test], changes[~test])), keys=ScreenKeys("perturbation")
    )
    predicted = lfc(predictor, names[test].tolist())
    mean = changes[~test].mean(0)
    oracle = ControlCells(alpha=predictor.lambda_, kernel="precomputed")
    oracle.fit(tanimoto(bits[~test], bits[~test]), changes[~test] - mean)
    expected = mean + oracle.predict(tanimoto(bits[test], bits[~test]))
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    assert predictor.lambda_ == 1.0
    ratio = ((predicted - changes[test]) ** 2).sum() / (changes[test] ** 2).sum()
    assert ratio < 0.93 * ((mean - changes[test]) ** 2).sum() / (changes[test] ** 2).sum()
