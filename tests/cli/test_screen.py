"""What is found out about a screen."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.cli import UsageError, main
from scvi_perturb.cli._app import ScreenOptions
from scvi_perturb.cli._held_out import MIN_CELLS, cases, hold_out
from scvi_perturb.cli._screen import open_screen, smaller, with_genes
from tests.cli.conftest import simulate


def test_check_says_what_was_found(combinations_file, capsys):
    assert main(["check", str(combinations_file)]) == 0
    printed = capsys.readouterr().out
    assert "column 'perturbation'; control: control" in printed
    assert "batch: column 'batch', 2 labels" in printed
    assert "6 conditions" in printed
    assert "problems: none" in printed


def test_check_exits_with_1_when_there_are_problems(capsys):
    adata = simulate()
    few = np.flatnonzero(adata.obs["perturbation"] == "pert_01")[5:]
    adata[np.setdiff1d(np.arange(adata.n_obs), few)].write_h5ad("few.h5ad")
    assert main(["check", "few.h5ad"]) == 1
    assert "1 conditions have fewer than 10 cells" in capsys.readouterr().out


def test_counts_are_found_in_a_layer(foreign):
    options = ScreenOptions(perturbation_key="guide", control=("wt",), context_keys=("tissue",))
    counts = foreign.layers["umis"].toarray()
    screen = open_screen(foreign, options)
    np.testing.assert_array_equal(screen.adata.X.toarray(), counts)
    assert screen.contexts == ("tissue",)
    assert "counts: layer 'umis'" in screen.notes
    assert (screen.adata.obs["perturbation"] == "control").sum() == (
        screen.adata.obs["guide"] == "wt"
    ).sum()


def test_a_batch_that_holds_no_control_is_not_used():
    adata = simulate()
    treated = adata.obs["perturbation"] != "control"
    adata.obs["batch"] = np.where(treated, "b1", "b2")
    screen = open_screen(adata, ScreenOptions())
    assert screen.batch is None
    assert any("nothing but controls" in note for note in screen.notes)
    assert open_screen(adata, ScreenOptions(batch_key="batch")).batch == "batch"


def test_columns_can_be_switched_off():
    screen = open_screen(
        simulate(n_contexts=2), ScreenOptions(batch_key="none", context_keys=("none",))
    )
    assert screen.batch is None
    assert screen.contexts == ()


def test_a_library_size_is_used_where_it_counts_more_than_the_file():
    adata = simulate()
    assert open_screen(adata, ScreenOptions()).library is None
    adata.obs["library_size"] *= 30
    screen = open_screen(adata, ScreenOptions())
    assert screen.library == "library_size"
    assert any("hold 3% of it" in note for note in screen.notes)


def test_cells_without_counts_or_context_are_left_out():
    adata = simulate(n_contexts=2)
    counts = adata.X.toarray()
    counts[0] = 0
    adata.X = counts
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs.iloc[1:4, adata.obs.columns.get_loc("cell_type")] = "Unknown"
    screen = open_screen(adata, ScreenOptions())
    assert screen.adata.n_obs == 416
    assert "1 cells without counts were left out" in screen.notes
    assert "3 cells of unknown cell_type were left out" in screen.notes


def test_a_large_screen_is_cut_down_and_keeps_its_library_sizes():
    screen = open_screen(simulate(), ScreenOptions())
    total = np.asarray(screen.adata.X.sum(axis=1)).ravel()
    small = with_genes(screen, 20, np.arange(300))
    assert small.adata.shape == (420, 20)
    np.testing.assert_allclose(small.adata.obs["library_size"], total)
    assert small.library == "library_size"
    assert smaller(screen, 100, 0).adata.n_obs == 100
    assert smaller(screen, 1000, 0) is screen


def test_combinations_come_first_then_contexts_then_cells():
    kinds = []
    for design in ({}, {"n_combinations": 0, "n_contexts": 2}, {"n_combinations": 0}):
        screen = open_screen(simulate(**design), ScreenOptions())
        split, _ = hold_out(screen.adata, screen.contexts, named=None, seed=0)
        split.check(screen.adata)
        kinds.append(split.kind)
        asked, _ = cases(screen, split)
        assert all(len(case.observed) >= MIN_CELLS for case in asked)
        test = set(split.test)
        assert all(set(case.observed) <= test and not set(case.control) & test for case in asked)
    assert kinds == ["unseen_combination", "unseen_context", "cells"]


def test_only_combinations_of_measured_parts_are_chosen():
    adata = simulate(n_combinations=3)
    parts = adata.obs["perturbation"].astype(str)
    screen = open_screen(adata[~parts.isin(["pert_01"])].copy(), ScreenOptions())
    split, _ = hold_out(screen.adata, (), named=None, seed=0)
    assert [row["perturbation"] for row in split.held_out] == ["pert_02+pert_03"]


def test_named_combinations_are_held_out_in_any_order():
    screen = open_screen(simulate(), ScreenOptions())
    split, _ = hold_out(screen.adata, (), named=["pert_03+pert_01"], seed=0)
    out = screen.adata.obs["perturbation"].iloc[split.test]
    assert set(out) == {"pert_01+pert_03"}
    assert (screen.adata.obs["perturbation"] == "pert_01+pert_03").sum() == len(out)


def test_conditions_of_few_cells_cannot_be_judged():
    adata = simulate()
    held = np.flatnonzero(adata.obs["perturbation"] == "pert_01+pert_02")[5:]
    kept = np.setdiff1d(np.arange(adata.n_obs), held)
    screen = open_screen(adata[kept].copy(), ScreenOptions())
    split, _ = hold_out(screen.adata, (), named=["pert_01+pert_02"], seed=0)
    with pytest.raises(UsageError, match="nothing can be judged"):
        cases(screen, split)


def test_doses_and_times_are_part_of_a_case():
    adata = simulate(doses=(0.1, 1.0), times=(6.0, 24.0), n_combinations=1, n_batches=1)
    screen = open_screen(adata, ScreenOptions())
    split, _ = hold_out(screen.adata, (), named=None, seed=0)
    asked, _ = cases(screen, split)
    assert list(asked[0].request.columns) == ["perturbation", "dose", "time"]
    where = "pert_01+pert_03, dose 1+1"
    assert [case.title for case in asked] == [f"{where}, 24.0 h", f"{where}, 6.0 h"]
