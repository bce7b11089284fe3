"""The measurement of the metrics' speed runs and adds up."""

from __future__ import annotations

import re

import pytest

from benchmarks import metrics


def test_table(tmp_path, capsys):
    seconds = metrics.main(
        ["--conditions", "3", "--cells", "30", "--genes", "60", "--out", str(tmp_path)]
    )
    text = (tmp_path / "metrics.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "3 conditions, 30 cells a side, 60 genes." in text
    total = sum(value for name, value in seconds.items() if not name.startswith("peak"))
    written = float(re.search(r"\*\*all\*\* \| \*\*(\d+)\*\*", text)[1])
    assert written == pytest.approx(total, abs=0.51)
    assert {"nmse_vs_no_change", "de_jaccard", "energy", "crps"} <= set(seconds)
