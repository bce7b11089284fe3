"""What the contract tests share: the models, one screen, and each model trained on it once."""

from __future__ import annotations

import contextlib

import pytest

from scvi_perturb.testing import fit, make_features, make_model, make_screen, make_split
from tests.contract.registry import MODELS


def pytest_generate_tests(metafunc):
    """Run a test of a `case` on all models, or on the `CASES` of its file."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    own = hasattr(metafunc.module, "case") or any("case" in names for names in chosen)
    if own or "case" not in metafunc.fixturenames:
        return
    cases = getattr(metafunc.module, "CASES", MODELS)
    names = [case.name for case in cases]
    metafunc.parametrize("case", cases, ids=names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def case(request):
    """A model of the registry."""
    return request.param


@pytest.fixture(scope="session")
def simulated():
    """The screen; to be copied, never changed."""
    return make_screen()


@pytest.fixture
def screen(simulated):
    """The screen, free to be changed."""
    return simulated.copy()


@pytest.fixture(scope="session")
def features(simulated):
    """What is known of perturbations."""
    return make_features(simulated)


@pytest.fixture(scope="session")
def models():
    """The models that were trained so far: each file of tests goes through all cases."""
    return {}


@pytest.fixture(scope="session")
def trained(case, models, simulated, features, tmp_path_factory):
    """A model trained on the screen, one perturbation held out; not to be trained further."""
    if id(case) not in models:
        adata = simulated.copy()
        with contextlib.chdir(tmp_path_factory.mktemp("training")):
            model = make_model(case, adata, features=features)
            models[id(case)] = fit(case, model, split=make_split(adata))
    return models[id(case)]


@pytest.fixture
def untrained(case, screen):
    """A model on a screen of its own."""
    return make_model(case, screen)
