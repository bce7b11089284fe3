"""The page on extending: its code is run, and what it names exists.

The files that it includes are tested where they lie, in `examples`.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest

from scvi_perturb.registry import KINDS
from tests.docs._blocks import python_blocks


@pytest.fixture(scope="module")
def text(root):
    return (root / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def page(root):
    """The names that the page's code makes."""
    made = {}
    for block in python_blocks(root / "docs" / "extending.md"):
        exec(compile(block, "extending.md", "exec"), made)
    return made


def test_every_kind_of_part_is_named_with_its_group(text):
    assert set(re.findall(r"`scvi_perturb\.(\w+)` \|", text)) == set(KINDS)


def test_methods_of_the_tables_are_documented(text):
    tables = re.findall(r"<!-- methods: (\S+):(\w+) (.+?) -->", text)
    assert len(tables) == 4
    for module, name, methods in tables:
        cls = getattr(import_module(module), name)
        for method in methods.split():
            assert inspect.getdoc(inspect.getattr_static(cls, method)), f"{name}.{method}"


def test_included_files_exist(root, text):
    files = re.findall(r"literalinclude} \.\./(\S+)", text)
    assert len(files) == 7
    assert all((root / file).is_file() for file in files)


def test_features_mark_what_is_missing(page):
    features = page["features"]
    assert features.has("STAT2", "sequence")
    assert not features.has("STAT2", "pathways")


def test_task_loads_its_screen(page):
    assert page["task"].load().shape == (1000, 40)
