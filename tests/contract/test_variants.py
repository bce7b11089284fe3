"""Every setting of every model, once through all verbs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from scvi_perturb.testing import NEW_PAIR, SINGLE, dense, fit, make_model
from tests.contract.registry import MODELS

VARIANTS = [
    pytest.param(case, name, id=f"{case.name}-{name}") for case in MODELS for name in case.variants
]


@pytest.fixture(scope="module")
def made():
    """Models trained already."""
    return {}


variants = pytest.mark.parametrize(("case", "name"), VARIANTS)


@pytest.fixture
def model(case, name, made, simulated):
    """The variant, trained once for all tests."""
    if (case.name, name) not in made:
        new = make_model(case, simulated.copy(), **case.variants[name])
        made[case.name, name] = fit(case, new, max_epochs=1)
    return made[case.name, name]


@variants
def test_cells_are_drawn_in_the_units_told(case, name, model):
    cells = model.sample([SINGLE, NEW_PAIR, "control"], n_samples=30)
    assert cells.uns["scvi_perturb"]["units"] == case.units.get(name, "counts")
    values = dense(cells.X)
    assert np.isfinite(values).all()
    if name in case.units:
        assert isinstance(cells.X, np.ndarray)
        assert cells.X.dtype == np.float32
        assert (values != np.rint(values)).mean() > 0.9
    else:
        assert isinstance(cells.X, sparse.csr_matrix)
        assert (values >= 0).all()
        assert (values == np.rint(values)).all()
    assert values.std() > 0
    again = model.sample([SINGLE, NEW_PAIR, "control"], n_samples=30)
    np.testing.assert_array_equal(values, dense(again.X))


@variants
def test_effects_and_likelihoods_are_finite(case, name, model):
    effects = model.predict([SINGLE, NEW_PAIR], n_samples=20)
    assert effects.uns["scvi_perturb"]["units"] == "log1p(counts per 10,000)"
    assert all(np.isfinite(x).all() for x in (effects.X, *effects.layers.values()))
    assert (effects.X >= 0).all()
    likelihood = getattr(model, case.likelihood)
    if name in case.without_likelihood:
        with pytest.raises(ValueError, match="has no likelihood to offer"):
            likelihood(indices=range(20), n_samples=4)
        return
    assert np.isfinite(likelihood(indices=range(20), n_samples=4)).all()


@variants
def test_it_is_saved_and_loaded(case, name, model):
    model.save("model")
    loaded = case.model.load("model", model.adata)
    one, two = (m.sample([SINGLE], n_samples=10) for m in (model, loaded))
    np.testing.assert_array_equal(dense(one.X), dense(two.X))


@variants
def test_it_streams_what_it_draws(case, name, model):
    kept = model.sample([SINGLE], n_samples=10)
    streamed = model.sample([SINGLE], n_samples=10, path="cells.h5ad")
    np.testing.assert_allclose(dense(streamed.X[:]), dense(kept.X), rtol=1e-6)
    streamed.file.close()


@pytest.mark.parametrize(
    "case", [c for c in MODELS if "linear" in c.variants], ids=lambda c: c.name
)
@pytest.mark.parametrize("name", ["linear"])
def test_linear_decoder_has_loadings(case, name, model, simulated):
    table = model.get_loadings()
    assert table.index.tolist() == simulated.var_names.tolist()
    assert np.isfinite(table.to_numpy()).all()
    np.testing.assert_allclose(table.mean(), 0, atol=1e-6)
    # A step along a program changes the logarithm of proportions by its loadings.
    steps = torch.cat([torch.zeros(1, table.shape[1]), torch.eye(table.shape[1])])
    n = len(steps)
    decoded = model._representation().decode(steps, torch.ones(n), torch.zeros(n).long())
    change = (decoded.mean.log()[1:] - decoded.mean.log()[0]).detach().numpy()
    change -= change.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(change.T, table, atol=1e-4)
    with pytest.raises(ValueError, match="decoder='linear' only"):
        make_model(case, simulated.copy()).get_loadings()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("likelihood", "gauss"), ("dispersion", "cell"), ("decoder", "deep"), ("space", "pixels")],
)
def test_choices_are_checked(screen, argument, value):
    for case in MODELS:
        if argument in case.init or any(argument in v for v in case.variants.values()):
            with pytest.raises(ValueError, match=rf"{argument}='{value}' is not known; choose"):
                make_model(case, screen, **{argument: value})


@variants
def test_expression_is_normalized_where_there_are_counts(case, name, model):
    if name in case.units or name in case.without_likelihood:
        with pytest.raises(ValueError, match=r"real values|no likelihood"):
            model.get_normalized_expression(indices=[0])
        return
    shares = model.get_normalized_expression(indices=[3, 0], return_numpy=True)
    assert (shares >= 0).all()
    assert (shares.sum(axis=1) > 0).all()
    assert (shares.sum(axis=1) < 1.001).all()
