"""Many conditions in parts: alike on every backend, and a dead worker is named."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import scvi_perturb as svp
from scvi_perturb._cluster import WorkerError, by_ray
from scvi_perturb.testing import OTHER, PAIR, SINGLE, make_screen

ASKED = [SINGLE, PAIR, OTHER]
RAY = "ray is not installed (extra scale)"


@pytest.fixture(scope="module")
def model() -> svp.PerturbDiffusion:
    screen = make_screen()
    svp.PerturbDiffusion.setup_anndata(screen, context_keys="cell_type", batch_key="batch")
    model = svp.PerturbDiffusion(screen, n_latent=4, n_hidden=16)
    model.train(1, n_steps=2, enable_progress_bar=False)
    return model


def assert_same(one, two, *, exact=True):
    close = np.testing.assert_array_equal if exact else np.testing.assert_allclose
    assert one.obs.equals(two.obs)
    for layer in [None, *one.layers]:
        a, b = (x.to_df(layer).to_numpy() for x in (one, two))
        close(a, b, **({} if exact else {"rtol": 1e-5, "atol": 1e-6}))


def test_a_part_is_the_verb_with_its_own_seed(model):
    many = svp.tl.ask_many(model, ASKED, chunk_size=2, seed=3, options={"n_samples": 10})
    seeds = [np.random.SeedSequence([3, start]).generate_state(1)[0] for start in (0, 2)]
    first = model.predict(ASKED[:2], n_samples=10, seed=int(seeds[0]))
    second = model.predict(ASKED[2:], n_samples=10, seed=int(seeds[1]))
    np.testing.assert_array_equal(many.X, np.vstack([first.X, second.X]))
    np.testing.assert_array_equal(many.layers["lower"][2:], second.layers["lower"])
    assert [*many.obs_names] == ["row0", "row1", "row2"]
    assert many.uns["scvi_perturb"]["seed"] == 3


def test_cells_are_drawn_in_order_and_a_table_is_cut_alike(model):
    names = svp.tl.ask_many(model, ASKED, verb="sample", chunk_size=1, options={"n_samples": 5})
    table = names.obs[["perturbation"]].drop_duplicates().astype(str).reset_index(drop=True)
    again = svp.tl.ask_many(model, table, verb="sample", chunk_size=1, options={"n_samples": 5})
    assert [*names.obs["perturbation"]] == [name for name in ASKED for _ in range(5)]
    assert names.obs_names[-1] == "row2_draw4"
    assert_same(names, again)


def test_what_cannot_be_asked_in_parts(model):
    with pytest.raises(ValueError, match="`path`"):
        svp.tl.ask_many(model, ASKED, verb="sample", options={"path": "cells.h5ad"})
    with pytest.raises(ValueError, match="No condition"):
        svp.tl.ask_many(model, [])
    with pytest.raises(svp.UnknownPerturbationError):
        svp.tl.ask_many(model, [*ASKED, "Z"], chunk_size=2)


def test_without_ray_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"scvi-perturb\[scale\]"):
        svp.tl.ask_many(model, ASKED, backend="ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_answers_alike_and_names_what_a_dead_worker_had(model):
    ray = pytest.importorskip("ray", reason=RAY)
    options = {"chunk_size": 1, "options": {"n_samples": 10}}
    here = svp.tl.ask_many(model, ASKED, **options)
    try:
        ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
        there = svp.tl.ask_many(model, ASKED, backend="ray", **options)
        with pytest.raises(WorkerError, match="conditions A, A\\+B died 3 times"):
            list(by_ray(lambda item, _: os._exit(item), [1], names=["conditions A, A+B"]))
        with pytest.raises(svp.UnknownPerturbationError, match="'Z'"):
            svp.tl.ask_many(model, ["Z"], backend="ray")
    finally:
        ray.shutdown()
    assert_same(here, there, exact=False)
