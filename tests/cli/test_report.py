"""`scvi-perturb report`: one page of a saved model on its screen."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import anndata
import pytest

from scvi_perturb.cli import main
from tests.benchmark.report._page import Page, check_page
from tests.cli.conftest import SHORT, simulate

PAIR = "pert_01+pert_02"


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory) -> Page:
    """The page of a model with a combination held out; it asks for another condition besides."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    asked = ["--conditions", "pert_02+pert_01", "pert_03", "--out", str(path), "--seed", "5"]
    assert main(["report", str(trained), str(trained.parent / "screen.h5ad"), *asked]) == 0
    return Page(path.read_text(encoding="utf-8"))


def _fails(capsys, *arguments: str) -> str:
    """Return the one line that is said."""
    assert main(["report", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_the_page_holds_to_what_every_page_must(page):
    check_page(page)


def test_the_answer_comes_first_and_says_against_what(page):
    headings = [a["id"] for tag, a, _ in page.elements if tag == "h2"]
    assert headings[:3] == ["answer", "pictures", "rivals"]
    assert {"calibration", "novelty", "data", "split", "training", "versions"} <= set(headings)
    assert re.search(r"the error of PerturbDiffusion is [\d.]+ of that of predicting no", page.text)
    assert re.search(r"best trivial predictor \([\w ]+\)\s+has [\d.]+", page.text)
    assert "a replicate of the experiment" in page.text
    assert "Only 2 conditions held out" in page.text


def test_held_out_is_predicted_against_real_beside_replicate_and_trivial(page):
    alts = [picture["alt"] for picture in page.all("img")]
    for context in ("type_01", "type_02"):
        own = [alt for alt in alts if f"{PAIR} | {context}" in alt]
        assert re.search(r"predicted [+-][\d.]+, measured [+-][\d.]+", own[0])
        named = ("by model", "by replicate", "by trivial: ")
        assert all(any(words in alt for alt in own) for words in named)
    assert "Held out; " in page.text


def test_other_conditions_are_predicted_only(page):
    alts = [p["alt"] for p in page.all("img") if "pert_03" in p["alt"] and "Effects" in p["alt"]]
    assert len(alts) == 1
    assert "measured" not in alts[0]
    assert "Predicted; not among what was held out" in page.text


def test_versions_seeds_and_columns_are_told(page, trained):
    run = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    facts = dict(zip(_texts(page, "dt"), _texts(page, "dd"), strict=True))
    assert facts["seed of training"] == "3"
    assert facts["seed of this report"] == "5"
    assert facts["screen"] == "screen.h5ad"
    assert f"perturbation: {run['columns']['perturbation']}" in facts["columns"]
    assert f"scvi-tools {run['versions']['scvi-tools']}" in facts["versions"]
    assert "max_epochs 1" in facts["options of training"]
    assert "raw counts: yes" in page.text


def _texts(page: Page, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page.source)


def test_the_numbers_of_each_condition_are_in_a_table(page):
    rows = [a for t, a, _ in page.elements if t == "th" and a["scope"] == "row"]
    assert len(rows) > 3
    assert f"{PAIR} | type_01" in page.words


def test_what_cannot_be_reported_is_one_line(trained, capsys, tmp_path):
    screen = trained.parent / "screen.h5ad"
    assert "There is no folder" in _fails(capsys, "absent", screen)
    assert "is a file; expected the folder" in _fails(capsys, screen, trained)
    assert "There is no file absent.h5ad" in _fails(capsys, trained, "absent.h5ad")
    assert "ends in .html" in _fails(capsys, trained, screen, "--out", "report.pdf")
    assert "make it first" in _fails(capsys, trained, screen, "--out", "absent/report.html")
    said = _fails(capsys, trained, screen, "--conditions", "pert_99", "--out", "a.html")
    assert "pert_99" in said
    assert "--features" in said
    assert not Path("a.html").exists()
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    (bare / "run.json").unlink()
    assert "study_report" in _fails(capsys, bare, screen)
    (bare / "run.json").write_text("{}")
    assert "not a record that this version of `train` wrote" in _fails(capsys, bare, screen)
    assert "it is a folder" in _fails(capsys, trained, tmp_path)


def test_another_screen_is_refused(trained, capsys, tmp_path):
    simulate(190, n_contexts=2).write_h5ad(tmp_path / "fewer.h5ad")
    assert "was trained on 200" in _fails(capsys, trained, tmp_path / "fewer.h5ad")
    changed = anndata.read_h5ad(trained.parent / "screen.h5ad")
    changed.X[0, 0] += 1
    changed.write_h5ad(tmp_path / "changed.h5ad")
    assert "made for other data" in _fails(capsys, trained, tmp_path / "changed.h5ad")


def test_a_smaller_screen_is_read_as_train_read_it(tmp_path):
    """Fewer cells and genes, library sizes of all; nothing held out."""
    simulate(220).write_h5ad(tmp_path / "screen.h5ad")
    model, out = tmp_path / "model", tmp_path / "page.html"
    cut = ["--max-cells", "200", "--max-genes", "40"]
    given = [str(tmp_path / "screen.h5ad"), "--out", str(model), *SHORT, *cut]
    assert main(["train", *given]) == 0
    asked = [str(model), given[0], "--out", str(out)]
    assert main(["report", *asked]) == 2
    assert main(["report", *asked, "--conditions", "pert_01"]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    check_page(page)
    assert "Nothing was held out" in page.text
    assert "200 cells, 40 genes" in page.text
