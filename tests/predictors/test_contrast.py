"""Less of what conditions have in common."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.metrics import discrimination
from scvi_perturb.predictors import ContextMean, KernelRidge
from tests.predictors._contrasted import ContrastedMean
from tests.predictors._effects import effects, lfc, pairs
from tests.predictors._screen import make_screen

RNG = np.random.default_rng(0)
NAMES = [f"p{i:02d}" for i in range(80)]
SETS = pd.DataFrame(RNG.normal(size=(80, 6)), index=NAMES)
#: Much of the change is along one direction, and much is noise.
TRUTH = SETS.to_numpy() @ RNG.normal(size=(6, 15)) + RNG.normal(size=15)
TRUTH += 8 * SETS.to_numpy()[:, :1] * RNG.normal(size=15) + 6 * RNG.normal(size=(80, 15))
TABLE = effects(pairs(NAMES[:50], TRUTH))
ASKED = NAMES[50:]


def ridge():
    return KernelRidge(PerturbationFeatures({"text": SETS}), profile="effects")


def test_it_multiplies_with_the_inverse_of_a_shrunk_covariance():
    made = lfc(ContrastedMean(ridge(), contrast=2.0).fit(TABLE), ASKED)
    centre = TRUTH[:50].mean(0)
    covariance = np.cov(TRUTH[:50].T)
    largest = np.linalg.eigvalsh(covariance).max()
    specific = lfc(ridge().fit(TABLE), ASKED) - centre
    inverse = np.linalg.inv(np.eye(15) + 2.0 * covariance / largest)
    seen = TRUTH[:50] - centre
    nearest = ((seen @ inverse) * seen).sum() / ((seen @ inverse) ** 2).sum()
    assert nearest > 1.1
    expected = centre + nearest * specific @ inverse
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


def test_changes_that_are_all_the_same_stay():
    same = effects(pairs(NAMES[:4], np.ones((4, 3))))
    made = lfc(ContrastedMean(ContextMean("all", profile="effects")).fit(same), NAMES[:4])
    np.testing.assert_allclose(made, 1)


def test_conditions_are_told_apart_better_at_the_cost_of_a_larger_error():
    plain = lfc(ridge().fit(TABLE), ASKED)
    same = lfc(ContrastedMean(ridge(), contrast=0).fit(TABLE), ASKED)
    np.testing.assert_allclose(same, plain, atol=1e-5)
    made = lfc(ContrastedMean(ridge()).fit(TABLE), ASKED)
    centre, truth = TRUTH[:50].mean(0), TRUTH[50:]
    found = [discrimination(x - centre, truth - centre).mean() for x in (plain, made)]
    assert found[1] > found[0] + 0.01
    errors = [((x - truth) ** 2).sum() for x in (plain, made)]
    assert errors[1] > errors[0]


def test_controls_do_not_change():
    made = lfc(ContrastedMean(ridge()).fit(TABLE), ["control", "p60", "control"])
    assert (made[[0, 2]] == 0).all()
    assert (made[1] != 0).all()


def test_messages():
    with pytest.raises(ValueError, match="contrast=-1"):
        ContrastedMean(ridge(), contrast=-1)
    with pytest.raises(ValueError, match="contrast=inf"):
        ContrastedMean(ridge(), contrast=np.inf)
    screen = make_screen([("control", "T")])
    from scvi_perturb.predictors import NoChange

    with pytest.raises(SchemaError, match="ContrastedMean found no training condition"):
        ContrastedMean(NoChange()).fit(screen, keys=ScreenKeys(context="cell_type"))
