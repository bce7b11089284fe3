"""Tables on disk."""

from __future__ import annotations

from benchmarks._results import Results


def test_rows_are_kept_and_found(tmp_path):
    results = Results(tmp_path / "new" / "table.csv", ("name", "seed"))
    assert not results.has("a", 0)
    results.add({"name": "a", "seed": 0, "value": 1.5})
    results.add({"name": "a", "seed": 1, "value": 2.5, "more": "x"})
    again = Results(results.path, ("name", "seed"))
    assert again.has("a", 0)
    assert again.has("a", 1)
    assert not again.has("b", 0)
    assert again.frame()["value"].tolist() == [1.5, 2.5]
    assert [path.name for path in results.path.parent.iterdir()] == ["table.csv"]
    again.clear()
    assert not again.has("a", 0)
