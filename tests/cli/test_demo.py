"""`scvi-perturb demo`, from a file to results."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_perturb.cli import _demo, main
from scvi_perturb.cli._demo import FILES
from scvi_perturb.data import Split

FAST = ["--max-epochs", "2", "--n-steps", "10"]


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(_demo, "N_SAMPLES", 25)


def _without_figures(monkeypatch) -> None:
    """Leave out what is slow and tested in `tests/pl`; one test here draws."""
    monkeypatch.setattr(_demo, "draw", lambda *_, **__: None)


def test_combinations_are_held_out_and_everything_is_written(combinations_file, capsys):
    assert main(["demo", "--data", str(combinations_file), "--out", "results", *FAST]) == 0
    out = Path("results")
    assert {path.name for path in out.iterdir()} == set(FILES)
    split = Split.from_json(out / "split.json")
    assert split.kind == "unseen_combination"
    (held,) = [row["perturbation"] for row in split.held_out]
    assert "+" in held

    cells = anndata.read_h5ad(out / "predicted_cells.h5ad")
    assert cells.n_obs == 25
    assert set(cells.obs["perturbation"]) == {held}
    counts = cells.X.toarray()
    assert (counts >= 0).all()
    assert (counts == np.rint(counts)).all()
    effects = anndata.read_h5ad(out / "effects.h5ad")
    assert {"lfc", "lower", "upper", "measured_lfc"} <= set(effects.layers)

    scores = pd.read_csv(out / "metrics.csv")
    methods = ["no change", "mean perturbation", "additive", "PerturbDiffusion", "replicate"]
    assert sorted(scores["method"]) == sorted(methods)
    assert np.isfinite(scores["energy"]).all()
    printed = capsys.readouterr().out
    for text in (printed, (out / "metrics.md").read_text(encoding="utf-8")):
        assert all(method in text for method in methods)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert f"combinations: {held}" in report
    assert (out / "effects.png").read_bytes().startswith(b"\x89PNG")


def test_options_say_what_cannot_be_guessed(foreign_file, monkeypatch):
    _without_figures(monkeypatch)
    arguments = ["--perturbation-key", "guide", "--control", "wt", "--context-keys", "tissue"]
    arguments += ["--layer", "umis", "--batch-key", "lane", "--held-out", "type_02"]
    assert main(["demo", "--data", str(foreign_file), *arguments, *FAST]) == 0
    split = Split.from_json("demo_out/split.json")
    assert split.kind == "unseen_context"
    assert {row["context"]["tissue"] for row in split.held_out} == {"type_02"}
    scores = pd.read_csv("demo_out/metrics.csv")
    assert set(scores["method"]) >= {"no change", "mean of contexts", "replicate"}
    assert scores["condition"].nunique() == 2


def test_earlier_results_stay_when_a_run_fails(combinations_file, monkeypatch, capsys):
    out = Path("results")
    out.mkdir()
    (out / "metrics.csv").write_text("before")

    def fail(*_: object, **__: object) -> None:
        msg = "the disk is full"
        raise OSError(msg)

    monkeypatch.setattr(_demo, "draw", fail)
    assert main(["demo", "--data", str(combinations_file), "--out", "results", *FAST]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["metrics.csv"]
    assert (out / "metrics.csv").read_text() == "before"


def test_nothing_is_left_when_there_was_nothing(foreign_file):
    assert main(["demo", "--data", str(foreign_file), "--out", "results"]) == 2
    assert not Path("results").exists()
