"""The leaderboard: its tasks, and a run of it on a small one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from benchmarks import _tasks, leaderboard
from benchmarks._kang_frame import data_directory
from scvi_perturb.benchmark import Trial
from scvi_perturb.data import SimulatorConfig, simulate_screen

CONFIG = SimulatorConfig(n_perturbations=4, n_combinations=3, n_contexts=1)


def test_a_quick_run_writes_beside_its_results(tmp_path, monkeypatch, capsys):
    small = replace(
        _tasks.combinations(),
        load=partial(simulate_screen, n_cells=600, n_genes=40, config=CONFIG),
    )
    monkeypatch.setattr(leaderboard, "tasks", lambda: (small,))
    results = leaderboard.main(["--quick", "--models", "--out", str(tmp_path)])
    assert set(results.status()["fold"]) == {0, 1}
    assert set(results.status()["seed"]) == {0}
    page = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "## Simulated: a pair never seen" in page
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "sim_unseen_combination, seed 0, fold 1: shifted_control ok" in capsys.readouterr().out


@pytest.mark.parametrize("make", [_tasks.combinations, partial(_tasks.doses, "inner"),
                                  partial(_tasks.doses, "top")])  # fmt: skip
def test_simulated_tasks_hold_out_what_they_say(make):
    task = make()
    adata = task.load()
    made = task.split(adata, seed=0, fold=0)
    made.leaks(adata)
    assert {row["stratum"] for row in made.held_out if "stratum" in row} <= {"inner", "top"}
    assert len(made.held_out) >= 4


@pytest.mark.parametrize(
    ("file", "name", "n_conditions"),
    [
        (_tasks.FILE, "kang_unseen_context", 1),
        (_tasks.PAPALEXI, "papalexi_unseen_perturbation", 5),
        (_tasks.NORMAN, "norman_unseen_combination", 3),
        (_tasks.MORPHIC, "morphic_unseen_gene", None),
        (_tasks.LINCS, "lincs_unseen_drug", None),
    ],
)
def test_public_tasks_make_a_trial(file, name, n_conditions):
    if not (data_directory() / file).exists():
        pytest.skip(f"{file} is not here (SCVI_PERTURB_DATA)")
    if file == _tasks.LINCS:
        pytest.importorskip("rdkit", reason="rdkit is not installed (extra chem)")
    task = _tasks._ON_DISK[file]()
    assert task.name == name
    trial = Trial.make(task, seed=0, fold=0)
    assert n_conditions in (None, len(trial.conditions))
    if task.features is not None:
        held = set(trial.requests["perturbation"].astype(str))
        known = {name for name in held if name in trial.features}
        assert len(known) >= 0.9 * len(held)
    if task.values == "effects":
        molecules = task.options.groups
        if molecules:
            seen = set(trial.visible.obs["perturbation"].astype(str).map(molecules))
            assert not seen & {molecules[name] for name in held}
