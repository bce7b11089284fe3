"""What the pages promise: each sentence of `promises.csv` stands there, and its test exists."""

from __future__ import annotations

import ast
import csv
import re
from collections import defaultdict
from functools import cache

import pytest

from tests._source import ROOT
from tests.docs.test_pages import PAGES

TABLE = ROOT / "tests" / "docs" / "promises.csv"
#: Pages that promise nothing: figures that benchmarks write, definitions, names of others.
NO_PROMISES = {
    "docs/api.md",
    "docs/benchmarks.md",
    "docs/changelog.md",
    "docs/contributing.md",
    "docs/glossary.md",
    "docs/index.md",
    "docs/leaderboard.md",
    "docs/references.md",
    "docs/samplers.md",
    "docs/uncertainty.md",
}


def _promises() -> dict[str, list[tuple[str, str]]]:
    """Sentences and the tests that hold them, by page."""
    found = defaultdict(list)
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["page"]].append((row["promise"], row["test"]))
    return dict(found)


@cache
def _tests(file: str) -> frozenset[str]:
    """Names of the tests in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


PROMISES = _promises()
pages = pytest.mark.parametrize("page", PROMISES)


def test_every_page_is_looked_through():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    without = {name for name in names if not name.startswith("docs/api/")} - NO_PROMISES
    assert without == PROMISES.keys()


@pages
def test_what_is_promised_is_still_written(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert [promise for promise, _ in PROMISES[page] if promise not in text] == []


@pages
def test_what_is_promised_is_tested(page):
    named = [test.split("::") for _, test in PROMISES[page]]
    assert [f"{file}::{name}" for file, name in named if name not in _tests(file)] == []


def test_tests_named_in_the_questions_exist():
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)` \|", text))
    files = (ROOT / "tests").rglob("test_*.py")
    known = {name for file in files for name in _tests(file.relative_to(ROOT).as_posix())}
    assert named
    assert named <= known
