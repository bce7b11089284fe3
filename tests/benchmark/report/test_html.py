"""The report: one file, all of it, and nothing that could do harm."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files

import matplotlib.pyplot as plt
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark import Results, write_report
from scvi_perturb.benchmark.report._tables import one_metric
from scvi_perturb.benchmark.report._words import number
from tests.benchmark._small_study import TASK, small_results
from tests.benchmark.report._page import Page, check_page


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return small_results(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def written(results, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "sub" / "report.html"
    assert write_report(results, path) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written)


def test_the_page_holds_to_what_every_page_must(page):
    check_page(page)


def test_text_is_no_markup(written, page):
    assert "Simulated <screen>" in page.text
    assert "<script>alert(1)</script> & more" in page.text
    assert (
        "shy <i>model</i> refused in 2 of 2 trials: <b>seed 0</b> is unknown | to me" in page.text
    )
    assert "<script>" not in written


def test_undefined_numbers_are_hyphens(page):
    assert "-" in page.words


def test_figures_come_before_numbers_and_these_are_in_folds(page):
    for tag, attributes, around in page.elements:
        if tag == "table" and "scores" in attributes.get("class", ""):
            assert "details" in {one["tag"] for one in around}
    order = [tag for tag in page.tags if tag in {"img", "table"}]
    assert order[0] == "img"
    assert "table" in order


def test_values_scores_and_who_is_best(results, written):
    rows = one_metric(results.summary(), TASK, "nmse_vs_no_change").set_index("method")
    best = rows.loc["latent_additive"]
    assert f'<td class="best opponent"><span class="value">{number(best.u)}</span>' in written
    score = number(rows.loc["no_change", "s"])
    assert re.search(rf'<span class="minor">s {re.escape(score)}<br>\(', written)
    assert '<th scope="col" class="replicate">replicate</th>' in written


def test_the_page_says_what_was_held_out_and_with_what(page):
    assert "seen alone or in others" in page.text
    assert "scvi-perturb" in page.text
    assert "2 seeds (0, 1)" in page.text
    assert "6 methods" in page.text
    assert "conditions with a clear effect" in page.text


def test_figures_are_in_the_page_and_nothing_stays_open(results, page, tmp_path):
    shown = {value for name, value in page.attributes if name == "alt"}
    assert "Scores of methods: nmse / no change" in shown
    assert "Changes of genes by latent additive" in shown
    assert {"Calibration of cells", "Cost of methods"} <= shown
    assert not plt.get_fignums()


def test_the_glossary_names_all_metrics_shown(results, page):
    for name in set(results.summary()["metric"]):
        assert name in page.words


def test_results_alone_suffice(results, tmp_path):
    """Without a study; with a task whose methods all refused."""
    folder = tmp_path / "results"
    shutil.copytree(results.folder / "records" / TASK / "shy", folder / "records" / TASK / "shy")
    path = write_report(Results(folder), tmp_path / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "shy refused in 2 of 2 trials" in page.text
    assert "img" not in page.tags


def test_the_template_is_part_of_the_package():
    folder = files("scvi_perturb.benchmark.report") / "templates"
    base = (folder / "base.html.j2").read_text(encoding="utf-8")
    assert base.rstrip().endswith("</html>")
    for body in ("benchmark.html.j2", "study.html.j2"):
        assert 'extends "base.html.j2"' in (folder / body).read_text(encoding="utf-8")


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(SchemaError, match="no results"):
        write_report(Results(tmp_path), tmp_path / "report.html")
