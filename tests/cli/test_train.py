"""`scvi-perturb train`, from a file to the folder of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import PerturbDiffusion
from scvi_perturb.cli import _train, main
from scvi_perturb.cli._app import ScreenOptions
from scvi_perturb.cli._screen import open_screen
from scvi_perturb.data import Split, read_screen
from tests.cli.conftest import SHORT, simulate


@pytest.fixture
def asked(monkeypatch):
    """What was asked to be trained, in place of training it."""
    found = []

    class Trained(Exception):
        """Raised in place of what follows."""

    def fit(*arguments, **named):
        found.append((arguments, named))
        raise Trained

    monkeypatch.setattr(_train, "fit", fit)

    def ask(*arguments: str):
        with pytest.raises(Trained):
            main(["train", *arguments])
        return found[-1]

    return ask


def _fails(capsys, *arguments: str) -> str:
    """Return the one line that is said."""
    assert main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_the_folder_holds_model_split_and_record(trained):
    model = PerturbDiffusion.load(trained, adata=False)
    assert model.sample(["pert_01+pert_02"], n_samples=7).n_obs == 7
    split = Split.from_json(trained / "split.json")
    screen = open_screen(read_screen(trained.parent / "screen.h5ad"), ScreenOptions())
    split.check(screen.adata)
    assert [row["perturbation"] for row in split.held_out] == ["pert_01+pert_02"]
    run = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert run["data"]["fingerprint"] == model.trained_on_["fingerprint"]
    assert run["seed"] == model.trained_on_["seed"] == 3
    assert run["columns"]["perturbation"] == "perturbation"
    assert run["context_keys"] == ["cell_type"]
    assert run["split"]["conditions"][0]["perturbation"] == "pert_01+pert_02"
    assert run["versions"]["torch"]


def test_a_folder_that_is_there_is_not_replaced_unasked(trained, capsys, asked):
    before = (trained / "run.json").read_bytes()
    given = [str(trained.parent / "screen.h5ad"), "--out", str(trained), *SHORT]
    assert "pass --overwrite" in _fails(capsys, *given)
    asked(*given, "--overwrite")
    assert (trained / "run.json").read_bytes() == before
    (trained.parent / "other").mkdir(exist_ok=True)
    (trained.parent / "other" / "thesis.txt").write_text("all of it", encoding="utf-8")
    given[2] = str(trained.parent / "other")
    assert "holds thesis.txt, which would be lost" in _fails(capsys, *given, "--overwrite")


@pytest.mark.parametrize("checkpoints", [[], ["--checkpoints", "states"]])
def test_an_interruption_leaves_no_folder(combinations_file, checkpoints, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_train, "fit", interrupted)
    before = {path.name for path in Path().iterdir()}
    assert main(["train", str(combinations_file), "--out", "made", *checkpoints]) == 130
    assert {path.name for path in Path().iterdir()} == before
    expected = "the same command goes on from states." if checkpoints else "nothing was written."
    assert capsys.readouterr().err == f"scvi-perturb: interrupted; {expected}\n"


def test_training_goes_on_from_its_checkpoints(combinations_file):
    given = ["train", str(combinations_file), "--out", "made", "--checkpoints", "states", *SHORT]
    assert main(given) == 0
    written = {path: path.stat().st_mtime_ns for path in Path("states").iterdir()}
    assert written
    assert main([*given, "--overwrite"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("states").iterdir()} == written


def test_columns_are_found_or_named(foreign_file, asked):
    named = ["--perturbation-key", "guide", "--control", "wt", "--context", "tissue"]
    named += ["--layer", "umis", "--batch", "lane"]
    (_, screen, split), given = asked(str(foreign_file), "--out", "made", *named)
    assert (screen.contexts, screen.batch, split) == (("tissue",), "batch", None)
    assert given["given"]["max_epochs"] is None


def test_a_split_is_a_kind_or_a_file(combinations_file, asked, capsys):
    given = [str(combinations_file), "--out", "made"]
    for kind in ("cells", "unseen_combination"):
        (_, _, split), _ = asked(*given, "--split", kind, "--seed", "5")
        assert (split.kind, split.seed) == (kind, 5)
    split.to_json("split.json")
    (_, _, again), _ = asked(*given, "--split", "split.json")
    assert again == split
    simulate(300).write_h5ad("other.h5ad")
    said = _fails(capsys, "other.h5ad", "--out", "made", "--split", "split.json")
    assert "The split is of 420 cells, but these data have 300" in said
    assert not Path("made").exists()


def test_a_split_of_chosen_genes_fits_them(combinations_file, asked):
    given = [str(combinations_file), "--out", "made", "--split", "cells"]
    (_, screen, split), _ = asked(*given, "--max-genes", "20", "--max-cells", "300")
    assert screen.adata.shape == (300, 20)
    split.check(screen.adata)
    assert screen.library == "library_size"


def test_contexts_and_perturbations_can_be_named(trained, asked, capsys):
    given = [str(trained.parent / "screen.h5ad"), "--out", "made"]
    (_, _, split), _ = asked(*given, "--held-out", "type_01")
    assert split.kind == "unseen_context"
    said = _fails(capsys, *given, "--held-out", "pert_01")
    assert "pert_01: no training cell has this perturbation" in said
    table = pd.DataFrame({"name": ["pert_01", "pert_02"], "known": [0.5, 1.0]})
    table.to_csv("known.csv", index=False)
    features = ["--features", "known.csv"]
    (_, _, split), named = asked(*given, "--held-out", "pert_01", *features)
    assert split.kind == "unseen_perturbation"
    assert named["features"].frame("known")["known"].tolist() == [0.5, 1.0]
    assert "pert_03: no training cell" in _fails(capsys, *given, "--held-out", "pert_03", *features)


def test_parts_that_no_training_cell_has_are_told(asked, capsys):
    adata = simulate(300)
    keep = ~adata.obs["perturbation"].isin(["pert_01", "pert_01+pert_03"])
    adata[keep.to_numpy()].write_h5ad("screen.h5ad")
    pairs = ["pert_01+pert_02", "pert_02+pert_03"]
    asked("screen.h5ad", "--out", "made", "--held-out", *pairs)
    assert "pert_01: no training cell has this perturbation" in capsys.readouterr().out
    said = _fails(capsys, "screen.h5ad", "--out", "made", "--held-out", pairs[0])
    assert "pert_01: no training cell" in said


def test_gene_sets_tell_of_perturbations_and_measured_genes(asked):
    adata = simulate(200)
    genes = [*adata.var_names[:4], "pert_01", "pert_02"]
    lines = (["one", "", *genes, "elsewhere"], ["two", "", *genes[:5]])
    Path("sets.gmt").write_text("\n".join(map("\t".join, lines)), encoding="utf-8")
    adata.write_h5ad("screen.h5ad")
    _, named = asked("screen.h5ad", "--out", "made", "--features", "sets.gmt")
    assert set(named["features"].names) == set(genes)


def test_options_come_from_a_file_and_the_command_line_wins(combinations_file, asked, capsys):
    text = 'out = "made"\nmax_epochs = 7\nseed = 1\nheld_out = ["pert_01+pert_02"]\n'
    Path("train.toml").write_text(text + 'context_keys = ["cell_type"]\n', encoding="utf-8")
    given = [str(combinations_file), "--config", "train.toml"]
    (_, _, split), named = asked(*given, "--seed", "2", "--held-out", "pert_01+pert_03")
    assert (named["seed"], named["given"]["max_epochs"]) == (2, 7)
    assert [row["perturbation"] for row in split.held_out] == ["pert_01+pert_03"]
    Path("train.toml").write_text(text + "max_epoch = 8\n", encoding="utf-8")
    assert "Did you mean --max-epochs?" in _fails(capsys, *given)
    assert "there is no such file" in _fails(capsys, *given[:1], "--config=absent.toml")
    Path("train.toml").write_text("max_epochs = = 8\n", encoding="utf-8")
    assert "train" in _fails(capsys, *given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "PerturbFlw"], "Did you mean 'PerturbFlow'?"),
        (["--model", "CausalPerturbVAE", "--n-steps", "3"], "--n-steps: CausalPerturbVAE has one"),
        (["--split", "unseen"], "--split unseen: kind='unseen' is not known"),
        (["--split", "dose"], "name the column of doses with --dose-key"),
        (["--split", "absent.json"], "There is no file absent.json"),
        (["--split", "s.json", "--held-out", "A+B"], "give one of them"),
        (["--features", "absent.csv"], "--features absent.csv: there is no such file"),
        (["--features", "x.h5ad"], "x.h5ad: "),
        (["--max-epochs", "0"], "--max-epochs"),
    ],
)
def test_what_cannot_be_done_is_one_line(combinations_file, arguments, expected, capsys):
    assert expected in _fails(capsys, str(combinations_file), "--out", "made", *arguments)
    assert not Path("made").exists()


def test_without_a_terminal_nothing_is_printed_by_step(trained, capfd):
    given = [str(trained.parent / "screen.h5ad"), "--out", "made", *SHORT]
    assert main(["train", *given]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert len(out.splitlines()) < 15
    assert np.array([word in out for word in ("Training PerturbDiffusion", "made")]).all()
