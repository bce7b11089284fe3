"""`scvi-perturb benchmark`, from a file to results."""

from __future__ import annotations

import io
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from scvi_perturb import LeakError, UnknownPerturbationError
from scvi_perturb.benchmark import Method, Record, read_study
from scvi_perturb.cli import _benchmark, main
from scvi_perturb.predictors import NoChange
from tests.cli.conftest import simulate

STUDY = """
seeds = [0]
methods = ["no_change", "context_mean", "shifted_control"]

[[task]]
name = "sim"
title = "A simulated screen"
file = "screen.h5ad"
split = "unseen_combination"
n_folds = 3
"""


@pytest.fixture(autouse=True)
def _study(monkeypatch):
    simulate(n_contexts=1).write_h5ad("screen.h5ad")
    Path("study.toml").write_text(STUDY, encoding="utf-8")
    monkeypatch.setattr(_benchmark, "write_report", _report)


def _report(results, path) -> None:
    """Stand in for what is slow and tested in `tests/benchmark`."""
    path.write_text(f"{len(results.records())} records", encoding="utf-8")


def _no_change(setting):
    return NoChange(profile=setting.profile)


def _fails(arguments, capsys) -> str:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def _add(monkeypatch, make) -> None:
    """Let the study have one more method."""
    read = read_study

    def with_another(path):
        file = read(path)
        methods = (*file.study.methods, Method(name="another", make=make))
        return _benchmark.replace(file, study=_benchmark.replace(file.study, methods=methods))

    monkeypatch.setattr(_benchmark, "read_study", with_another)


def test_everything_is_written_and_the_same_command_goes_on(capsys):
    arguments = ["benchmark", "study.toml", "--max-folds", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 tasks, 3 methods, 1 seeds: 8 results" in printed
    assert "8/8 sim, seed 0, fold 1: shifted_control, ok" in printed
    assert "A simulated screen" in printed
    assert "shifted control cells" in printed
    out = Path("results")
    assert {path.name for path in out.iterdir()} == {
        "records",
        "report.html",
        "summary.csv",
        "scores.csv",
        "status.csv",
    }
    assert (out / "report.html").read_text(encoding="utf-8") == "8 records"
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["method"]) == {"no_change", "context_mean", "shifted_control", "replicate"}
    assert set(pd.read_csv(out / "summary.csv")["conditions"]) >= {"all"}
    assert (pd.read_csv(out / "status.csv")["status"] == "ok").all()

    made = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")}
    assert main(arguments) == 0
    assert "8 results, replicates of the experiment included; 8 are" in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")}
    assert main([*arguments, "--max-folds", "1", "--fresh"]) == 0
    assert "fold 0: no_change, ok" in capsys.readouterr().out
    again = {path: path.stat().st_mtime_ns for path in (out / "records").rglob("*.json")}
    assert sum(made[path] != again[path] for path in made) == 4


def test_what_the_file_says_can_be_overruled(monkeypatch):
    asked = {}

    def run(study, out, **options):
        asked.update(options, study=study, out=out)
        raise KeyboardInterrupt

    monkeypatch.setattr(_benchmark, "run", run)
    arguments = ["--out", "there", "--workers", "3", "--seeds", "4", "5", "--max-folds", "1"]
    assert main(["benchmark", "study.toml", *arguments, "--backend", "ray"]) == 130
    assert (asked["out"], asked["n_workers"], asked["backend"]) == (Path("there"), 3, "ray")
    assert (asked["study"].seeds, asked["study"].max_folds) == ((4, 5), 1)
    assert not asked["fresh"]
    assert main(["benchmark", "study.toml"]) == 130
    assert (asked["out"], asked["n_workers"]) == (Path("results"), 1)


def test_a_method_that_fails_is_told_and_ends_with_1(monkeypatch, capsys):
    def fail(setting):
        msg = f"no luck\nwith seed {setting.seed}"
        raise RuntimeError(msg)

    _add(monkeypatch, fail)
    assert main(["benchmark", "study.toml", "--max-folds", "1"]) == 1
    printed = capsys.readouterr().out
    assert "another, failed: RuntimeError: no luck with seed 0" in printed
    assert "Not scored everywhere\n  sim, another: failed in 1 trial: RuntimeError" in printed
    status = pd.read_csv("results/status.csv").set_index("method")["status"]
    assert status["another"] == "failed"
    assert status["no_change"] == "ok"


def test_a_method_that_refuses_is_no_failure(monkeypatch, capsys):
    def refuse(setting):
        name = f"seed {setting.seed}"
        raise UnknownPerturbationError(name)

    _add(monkeypatch, refuse)
    assert main(["benchmark", "study.toml", "--max-folds", "1"]) == 0
    assert "another, refused: Perturbation 'seed 0' was not" in capsys.readouterr().out


def test_a_leak_ends_the_run(monkeypatch, capsys):
    def leak(setting):
        msg = f"held-out cells\nwere seen with seed {setting.seed}"
        raise LeakError(msg)

    _add(monkeypatch, leak)
    assert "held-out cells were seen" in _fails(["benchmark", "study.toml"], capsys)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupted_results_are_kept(kind, monkeypatch, capsys):
    def interrupt(setting):
        raise kind

    _add(monkeypatch, interrupt)
    assert main(["benchmark", "study.toml", "--max-folds", "1"]) == 130
    assert "what was finished is kept; the same command goes on" in capsys.readouterr().err
    assert len(list(Path("results/records").rglob("*.json"))) == 4
    _add(monkeypatch, _no_change)
    assert main(["benchmark", "study.toml", "--max-folds", "1"]) == 0
    assert "5 results" in capsys.readouterr().out


def test_bar_stands_where_somebody_looks_on():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    same = {"task": "t", "role": "mean", "seed": 0, "fold": 0, "fingerprint": ""}
    with _benchmark._progress(console, 3) as tell:
        tell(Record(**same, method="fine"))
        tell(Record(**same, method="shy", status="refused", message="too\nlittle"))
        tell(Record(**same, method="shy", status="refused", message="too\nlittle"))
    printed = console.file.getvalue()
    assert "3/3" in printed
    assert printed.count("shy, refused: too little") == 1
    assert "fine, ok" not in printed


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ImportError("install ray"), "install ray"), (BrokenProcessPool(), "fewer --workers")],
)
def test_what_a_machine_lacks_is_said(monkeypatch, capsys, error, expected):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(_benchmark, "run", run)
    assert expected in _fails(["benchmark", "study.toml"], capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.toml"], "There is no file absent.toml"),
        (["screen.h5ad"], "not a TOML file"),
        (["study.toml", "--out", "study.toml"], "name a folder"),
    ],
)
def test_what_cannot_be_run(arguments, expected, capsys):
    assert expected in _fails(["benchmark", *arguments], capsys)


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--seeds"], ["--backend", "slurm"]])
def test_arguments_that_make_no_sense(arguments, capsys):
    assert "See scvi-perturb benchmark --help" in _fails(
        ["benchmark", "study.toml", *arguments], capsys
    )
