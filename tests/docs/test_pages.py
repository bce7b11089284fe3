"""The pages: their code can be read, names exist, links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

import scvi_perturb
from tests._source import ROOT
from tests.docs._blocks import python_blocks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
#: What names in the pages' code stand for.
STANDS_FOR = {
    "svp": scvi_perturb,
    "PerturbDiffusion": scvi_perturb.PerturbDiffusion,
    "model": scvi_perturb.PerturbDiffusion,
    "split": scvi_perturb.data.Split,
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def _nodes(page, kind):
    """Return the nodes of one kind in a page's code."""
    trees = [ast.parse(block) for block in python_blocks(page)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, kind)]


def _resolve(expression):
    """Return what a dotted name stands for; None where that is not known."""
    head, *rest = ast.unparse(expression).split(".")
    if not all(part.isidentifier() for part in rest):
        return None  # something is called or indexed on the way
    found = STANDS_FOR.get(head)
    for part in rest if found is not None else ():
        # Attributes of instances that no class holds are of no known type.
        if part in getattr(found, "__annotations__", {}) or part.endswith("_"):
            return None
        found = getattr(found, part)
    return found


@pages
def test_names_in_code_exist(page):
    missing = []
    for node in _nodes(page, ast.Attribute):
        try:
            _resolve(node)
        except AttributeError:
            missing.append(ast.unparse(node))
    assert not missing


@pages
def test_arguments_in_code_exist(page):
    wrong = []
    for node in _nodes(page, ast.Call):
        called = _resolve(node.func) if isinstance(node.func, ast.Attribute) else None
        if called is None:
            continue
        known = inspect.signature(called).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            wrong += [f"{node.func.attr}({k.arg}=)" for k in node.keywords if k.arg not in known]
    assert not wrong


@pages
def test_links_lead_to_files(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    local = [
        target for target in targets if "://" not in target and not target.startswith("mailto")
    ]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing
