"""Reports in a real browser engine: nothing runs off the page, all can be reached and read."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import scvi_perturb as svp
from scvi_perturb.benchmark import study_report, write_report
from tests.benchmark import _small_study
from tests.cli.conftest import simulate

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("PySide6") is None,
    reason="no browser engine here: pip install PySide6",
)
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[Path]:
    """The report of a benchmark, with many methods, and that of a study."""
    folder = tmp_path_factory.mktemp("pages")
    results = _small_study.small_results(folder / "study")
    adata = simulate(300, n_contexts=2)
    split = svp.data.split(adata, "unseen_combination", seed=0)
    svp.PerturbDiffusion.setup_anndata(adata, context_keys=["cell_type"])
    model = svp.PerturbDiffusion(adata)
    model.train(split=split, max_epochs=1, n_steps=5, enable_progress_bar=False)
    return [
        write_report(results, folder / "benchmark.html"),
        study_report(model, adata, path=folder / "study.html", split=split),
    ]


@pytest.fixture(scope="module", params=["light", "dark"])
def found(request, pages):
    """What the browser says of each page at each width."""
    asked = [str(part) for page in pages for width in WIDTHS for part in (page, width)]
    script = Path(__file__).with_name("_browser.py")
    done = subprocess.run(
        [sys.executable, str(script), request.param, *asked],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return request.param, json.loads(done.stdout.splitlines()[-1])


def test_nothing_runs_off_the_page(found):
    for one in found[1]:
        assert one["loaded"]
        assert one["overflow"] <= 0
        assert one["off"] == []


def test_wide_tables_scroll_with_their_first_column_in_place(found):
    assert [one["slipped"] for one in found[1]] == [0] * len(found[1])
    assert all(
        one["scrolling"] for one, width in zip(found[1], 2 * WIDTHS, strict=True) if width == 390
    )


def test_all_pictures_are_there_and_the_console_is_silent(found):
    for one in found[1]:
        assert one["images"] > 5
        assert one["broken"] == 0
        assert one["console"] == []


def test_text_can_be_read_in_light_and_in_dark(found):
    scheme, pages = found
    for one in pages:
        assert one["dark"] == (scheme == "dark")
        assert one["contrast"] >= 4.5  # WCAG 2.2, AA
    assert {one["ground"] for one in pages} == {
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 23, 26)"
    }


def test_the_keyboard_and_the_printer_are_served(found):
    for one in found[1]:
        assert one["focus"] == "skip"
        assert one["printed"] == "%PDF-"
