"""The report on a screen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.pp import harmonize, validate


def screen(labels, n_cells=12, n_genes=5):
    obs = pd.DataFrame({"perturbation": np.repeat(labels, n_cells)})
    obs.index = [f"c{i}" for i in range(len(obs))]
    obs["cell_type"] = np.where(np.arange(len(obs)) % 2, "T", "B")
    counts = np.random.default_rng(0).poisson(3.0, (len(obs), n_genes)) + 1.0
    return AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)


def test_a_good_screen():
    report = validate(
        screen(["control", "A", "B"], n_cells=30), keys=ScreenKeys(context="cell_type")
    )
    assert report.ok
    assert report.raw_counts
    assert (report.n_cells, report.n_genes, report.n_conditions) == (90, 5, 2)
    assert report.n_controls == {"B": 15, "T": 15}
    assert str(report).splitlines() == [
        "90 cells x 5 genes, 2 conditions",
        "control cells: B 15, T 15",
        "raw counts: yes",
        "problems: none",
    ]


def log_normalised(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))


def repeat_cell(adata):
    adata.obs_names = ["c0", "c0", *adata.obs_names[2:]]


def repeat_gene(adata):
    adata.var_names = ["g", "g", *adata.var_names[2:]]


def no_controls_in_context(adata):
    adata.obs.loc[adata.obs["perturbation"] == "control", "cell_type"] = "T"


def other_control(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].replace({"control": "NT"})


def missing_label(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].replace({"A": "nan"})


def no_label(adata):
    adata.obs.loc["c0", "perturbation"] = None


def no_column(adata):
    del adata.obs["perturbation"]


def empty_cells(adata):
    counts = adata.X.toarray()
    counts[:3] = 0
    adata.X = sparse.csr_matrix(counts)


def small_library(adata):
    adata.obs["library_size"] = 1.0


def no_context(adata):
    del adata.obs["cell_type"]


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (log_normalised, [r"not whole.*layer='counts'"]),
        (repeat_cell, ["1 obs_names come more than once, such as 'c0'"]),
        (repeat_gene, ["1 var_names come more than once, such as 'g'"]),
        (no_controls_in_context, [r"fewer than 10 control cells: B \(0\)"]),
        (other_control, ["No cell is control", r"look like controls: \['NT'\]"]),
        (missing_label, ["look like missing labels"]),
        (no_label, ["missing for 1 of"]),
        (no_column, ["harmonize"]),
        (empty_cells, ["3 of 90 sampled cells have no counts"]),
        (small_library, ["'library_size'.* is less than"]),
        (no_context, ["'cell_type' is not in adata.obs"]),
    ],
)
def test_each_problem_is_reported_and_nothing_else(spoil, messages):
    import re

    adata = screen(["control", "A", "B"], n_cells=30)
    spoil(adata)
    report = validate(adata, keys=ScreenKeys(context="cell_type"))
    assert not report.ok
    assert len(report.problems) == len(messages)
    for problem, message in zip(report.problems, messages, strict=True):
        assert re.search(message, problem)
    assert f"problems: {len(messages)}" in str(report)


def test_rare_conditions_keys_and_layers():
    adata = screen(["control", "A"], n_cells=12)
    adata.obs.loc[adata.obs_names[-3:], "perturbation"] = "C"
    assert "'A'" in validate(adata).problems[0]
    assert "1 conditions have fewer than 5" in validate(adata, min_cells=5).problems[0]
    assert validate(adata, min_cells=3).ok
    renamed = AnnData(adata.X, obs=adata.obs.rename(columns={"perturbation": "gene"}))
    assert validate(renamed, keys=ScreenKeys("gene"), min_cells=3).ok
    assert (
        "Layer 'raw' was not found"
        in validate(adata, keys=ScreenKeys(layer="raw"), min_cells=3).problems[0]
    )


def test_nothing_is_changed():
    adata = screen(["control", "A"])
    before = adata.copy()
    validate(adata, keys=ScreenKeys(context=["cell_type"]))
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not (adata.X != before.X).nnz
    assert not adata.uns


def test_backed(tmp_path):
    import anndata as ad

    screen(["control", "A"]).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert validate(backed).ok
    backed.file.close()


def in_batches(**batch_of):
    """Return a screen whose cells of each label are in the named batches, by turns."""
    adata = screen([*batch_of], n_cells=40)
    batches = {label: list(names) for label, names in batch_of.items()}
    labels = adata.obs["perturbation"]
    adata.obs["batch"] = [batches[x][i // 2 % len(batches[x])] for i, x in enumerate(labels)]
    return adata


def test_effects_that_cannot_be_told_from_their_batch_are_named():
    report = validate(in_batches(control="x", A="y", B="xy"), context_keys="cell_type")
    assert len(report.problems) == 1
    assert "2 effects cannot be told from the batch" in report.problems[0]
    assert "A in B, A in T" in report.problems[0]
    assert report.controls_by_batch.loc["T"].to_dict() == {"x": 20, "y": 0}
    assert "x  y" in str(report)
    assert validate(in_batches(control="xy", A="y", B="x")).ok
    assert validate(in_batches(control="x", A="x", B="x"), batch_key="batch").ok


def test_batches_and_contexts_are_those_that_setup_registered():
    from scvi_perturb import PerturbDiffusion

    adata = in_batches(control="x", A="y", B="xy")
    adata.obs["plate"] = adata.obs.pop("batch")
    assert validate(adata).ok
    PerturbDiffusion.setup_anndata(adata, context_keys=["cell_type"], batch_key="plate")
    report = validate(adata)
    assert "told from the batch" in report.problems[0]
    assert report.n_controls == {"B": 20, "T": 20}
    assert validate(adata, keys=ScreenKeys()).ok


def test_a_batch_must_be_there_for_every_cell():
    adata = in_batches(control="x", A="x")
    assert "no column 'lane'" in validate(adata, batch_key="lane").problems[0]
    adata.obs.loc["c3", "batch"] = None
    assert "'batch'] has 1 missing labels" in validate(adata).problems[0]


def test_perturbations_with_features_are_counted():
    from scvi_perturb import PerturbationFeatures

    adata = screen(["control", "A", "B"])
    table = pd.DataFrame({"f": [1.0, 2.0]}, index=["A", "b"])
    report = validate(adata, features=PerturbationFeatures({"e": table}))
    assert report.n_featured == 1
    assert "1 of 2 perturbations have no features, such as 'B'" in report.problems[0]
    assert "with features: 1" in str(report)


def test_counts_in_raw_are_named():
    adata = screen(["control", "A"])
    adata.raw = adata.copy()
    log_normalised(adata)
    del adata.layers["counts"]
    assert "Counts are in adata.raw" in validate(adata).problems[0]


def test_numbers_of_perturbations_are_held_against_labels():
    adata = screen(["control", "A", "B", "A_B"])
    adata.obs["nperts"] = adata.obs["perturbation"].map({"control": 0, "A": 1, "B": 1, "A_B": 2})
    assert "obs['nperts'] is not the number of names in 1 labels, such as 'A_B'" in " ".join(
        validate(adata).problems
    )
    assert validate(harmonize(adata), min_cells=5).ok


def test_numbers_of_perturbations_that_are_none_raise_nothing():
    adata = screen(["control", "A"])
    for odd in (1j, True, "two", b"\xff", 10**400):
        numbers = pd.Series(1, index=adata.obs_names, dtype=object)
        numbers.iloc[0] = odd
        adata.obs["nperts"] = numbers
        assert validate(adata).ok == (odd not in (b"\xff", 10**400))
