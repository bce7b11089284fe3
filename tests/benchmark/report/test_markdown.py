"""Tables in Markdown."""

from __future__ import annotations

import re
from typing import get_args

import numpy as np
import pytest

from scvi_perturb.benchmark import Results, markdown_table, markdown_tables
from scvi_perturb.benchmark.report._tables import (
    _KEY_COUNTS,
    _KEY_EFFECTS,
    key_metrics,
    one_metric,
    score_table,
)
from scvi_perturb.benchmark.report._words import HELD_OUT, anchors, bound, meaning, number
from scvi_perturb.data.split.kinds import Scenario
from scvi_perturb.metrics import METRICS
from tests.benchmark._small_study import TASK, small_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return small_results(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(results) -> str:
    return markdown_tables(results)


def rows(page: str, table: int = 0) -> dict[str, list[str]]:
    """Cells of a table, the first unless said, by method."""
    blocks = [part for part in page.split("\n\n") if part.startswith("| ")]
    lines = blocks[table].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {cells[0]: cells[1:] for cells in split}


def test_a_table_is_aligned_and_harmless():
    made = markdown_table(["a", "b|c"], [["1\n2", "x|y"], ["3", "4"]])
    assert made.splitlines() == [
        r"| a | b\|c |",
        "| --- | ---: |",
        r"| 1 2 | x\|y |",
        "| 3 | 4 |",
    ]
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        markdown_table(["a", "b"], [["1"]])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.1234, "0.123"),
        (-0.0001, "0.000"),
        (1.234, "1.23"),
        (-12.34, "-12.3"),
        (1234.5, "1,234"),
        (1.4e14, "1.4e+14"),
        (np.nan, "-"),
        (np.inf, "-"),
    ],
)
def test_numbers_have_three_digits(value, written):
    assert number(value) == written


def test_bounds_that_are_far_away_only_say_so():
    assert [bound(x) for x in (-1e14, 3.0, 1e3, np.nan)] == ["< -100", "3.00", "> 100", "-"]


def test_each_method_has_its_values_and_scores(results, page):
    table = one_metric(results.summary(), TASK, "nmse_vs_no_change").set_index("method")
    found = rows(page)
    worse = table.loc["no_change"]
    assert found["no change"][0].startswith(number(worse.u))
    assert f"<br>s {number(worse.s)} (" in found["no change"][0]
    best = table.loc["latent_additive"]
    assert best.best_trivial == "latent_additive"
    assert found["latent additive"][0].startswith(f"**{number(best.u)}**\\*")
    assert "<br>s" not in found["replicate"][0]


def test_means_and_cells_have_a_table_each(page):
    header = rows(page)["method"]
    assert not any(name.startswith("energy ratio") for name in header)
    cells = rows(page, 1)
    assert any(name.startswith("energy ratio") for name in cells["method"])
    assert "no change" not in cells  # it predicts no cells
    assert "control cells" in cells or "shifted control" in cells
    assert "nan" not in page.lower().split()
    assert "| nan" not in page


def test_the_page_says_what_was_done(page):
    assert page.startswith("# Leaderboard\n")
    assert "## Simulated &lt;screen>" in page
    assert HELD_OUT["unseen_combination"] in page
    assert "2 seeds" in page
    assert "scvi-perturb" in page
    assert "&lt;script>" in page
    assert not re.search("<(?!br>| )", page)
    assert (
        "- shy &lt;i>model&lt;/i> refused in 2 of 2 trials: &lt;b>seed 0&lt;/b> is unknown | to me"
        in page
    )


def test_without_a_study_names_are_titles(results):
    page = markdown_tables(Results(results.folder), title="Mine")
    assert page.startswith("# Mine\n")
    assert f"## {TASK}" in page
    assert "shifted control" in page


def test_a_method_judged_on_fewer_conditions_is_not_the_best(results):
    summary = one_metric(results.summary(), TASK, "nmse_vs_no_change")
    total = int(summary["n_conditions"].max())
    chosen = summary["method"] == "no_change"
    summary.loc[chosen, ["u", "n_conditions"]] = [0.0, 1]
    table = score_table(summary, TASK, ["nmse_vs_no_change"])
    lines = {row.method: row.entries[0] for row in table.rows}
    assert not lines["no_change"].best
    assert lines["no_change"].fewer == f"1 of {total}"
    assert lines["latent_additive"].best


def test_a_value_nearest_to_its_best_is_the_best(results):
    summary = one_metric(results.summary(), TASK, "variance_ratio")
    summary["u"] = np.where(summary["method"] == "control_cells", 0.95, 1.2)
    table = score_table(summary, TASK, ["variance_ratio"])
    lines = {row.method: row.entries[0] for row in table.rows}
    assert [name for name, cell in lines.items() if cell.best] == ["control_cells"]


def test_key_metrics_fit_the_task(results):
    summary = results.summary()
    assert set(key_metrics(summary, TASK)) <= set(_KEY_COUNTS)
    assert key_metrics(summary, TASK)[0] == "nmse_vs_no_change"
    without = summary[summary["role"] != "replicate"]
    assert set(key_metrics(without, TASK)) <= set(_KEY_EFFECTS)


def test_every_metric_and_kind_has_words():
    assert set(_KEY_COUNTS) | set(_KEY_EFFECTS) <= set(METRICS)
    assert not [name for name in METRICS if not meaning(name)]
    assert set(HELD_OUT) == set(get_args(Scenario))
    assert anchors("nmse") == "lower is better; perfect: 0"
    assert anchors("variance_ratio") == "best at 1"
