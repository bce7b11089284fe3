"""Bad inputs are refused by checks of ours: a sample of `python -m benchmarks.hostile`."""

from __future__ import annotations

import pytest

from benchmarks.hostile.surface import run_surface
from benchmarks.hostile.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(
        tmp_path_factory.mktemp("hostile"), models=("PerturbDiffusion", "CausalPerturbVAE")
    )


def test_bad_inputs_are_refused_by_checks_of_ours(world):
    report = run_surface(world, n=1500, seed=1)
    assert not report.broken
    assert not report.wrong
    assert report.n == 1500
