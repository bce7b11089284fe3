"""What methods get to see: values, conditions, contexts and names, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd

from scvi_perturb.benchmark import Method, Study, run
from scvi_perturb.predictors import NoChange
from tests.benchmark._world import TASK, make_trial, screen


def rich():
    """Return a screen with things computed from all its cells, held-out ones included."""
    adata = screen()
    adata.obs["total_counts"] = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["family"] = adata.obs["perturbation"].astype(str).str[-1]
    adata.obs["cluster"] = [str(i % 3) for i in range(adata.n_obs)]
    adata.uns["rank_genes"] = {"names": list(adata.var_names)}
    adata.varm["effects"] = np.ones((adata.n_vars, 4))
    adata.var["mean"] = np.asarray(adata.X.mean(0)).ravel()
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.layers["scaled"] = adata.X.copy()
    adata.raw = adata.copy()
    return adata


def test_nothing_that_was_computed_from_all_cells_is_passed_on():
    trial = make_trial(replace(TASK, load=rich))
    for part in (trial.visible, trial.held_out_cells):
        assert list(part.obs) == ["perturbation", "cell_type"]
        assert list(part.var) == []
        assert part.raw is None
        assert not [*part.uns, *part.varm, *part.obsm, *part.layers]
    np.testing.assert_array_equal(trial.visible.var_names, screen().var_names)


def test_features_see_text_that_is_the_same_for_a_perturbation():
    seen = []

    def features(adata):
        seen.append(adata)

    make_trial(replace(TASK, load=rich, features=features))
    (given,) = seen
    assert given.n_obs == 13
    assert given.obs.loc["pert_03", "family"] == "3"
    assert not {"total_counts", "cluster"} & set(given.obs)
    assert given.X is None
    assert not given.uns


def test_a_layer_alone_is_passed_on():
    def load():
        adata = screen()
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.zeros(adata.shape)
        return adata

    trial = make_trial(replace(TASK, load=load, keys=replace(TASK.keys, layer="counts")))
    assert trial.visible.X is None
    assert list(trial.visible.layers) == ["counts"]
    exact = make_trial()
    assert (trial.visible.layers["counts"] != exact.visible.X).nnz == 0


def test_a_screen_on_disk(tmp_path):
    path = tmp_path / "screen.h5ad"
    screen().write_h5ad(path)
    held = []

    def load():
        held.append(anndata.read_h5ad(path, backed="r"))
        return held[-1]

    trial = make_trial(replace(TASK, load=load))
    held[0].file.close()
    exact = make_trial()
    assert (trial.visible.X != exact.visible.X).nnz == 0
    np.testing.assert_allclose(
        trial.conditions[0].truth.observed.mean, exact.conditions[0].truth.observed.mean
    )


class Counting(NoChange):
    """Remember how many cells are asked for."""

    asked: list[int] = []  # noqa: RUF012

    def sample(self, conditions, *, reference=None, n_samples=None, seed=None):
        self.asked.append(n_samples)
        control = screen()
        control = control[(control.obs["perturbation"] == "control").to_numpy()]
        parts = []
        for i, row in enumerate(conditions.to_dict("records")):
            cells = control[np.arange(n_samples) % control.n_obs].copy()
            cells.obs = pd.DataFrame([row] * n_samples).set_axis(
                [f"{i}-{j}" for j in range(n_samples)]
            )
            parts.append(cells)
        return anndata.concat(parts)


def _counting(setting):
    return Counting(profile=setting.profile)


def test_the_number_of_cells_asked_for_tells_nothing(tmp_path):
    Counting.asked.clear()
    study = Study(
        tasks=(replace(TASK, max_cells=450),),
        methods=(Method(name="counting", make=_counting),),
        seeds=(0,),
        max_folds=1,
    )
    status = run(study, tmp_path).status().set_index("method").loc["counting"]
    assert status["status"] == "ok", status["message"]
    assert Counting.asked == [450]
