"""The source as syntax trees, for the tests that read it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "scvi_perturb"


@dataclass(frozen=True, slots=True)
class Module:
    """A file of the package."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def where(self) -> str:
        """Path inside the package, as in `data/_table.py`."""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def part(self) -> str:
        """First name below the package: `data`, `cli`, `_errors`, or `__init__`."""
        return self.path.relative_to(PACKAGE).with_suffix("").parts[0]


@dataclass(frozen=True, slots=True)
class Import:
    """An imported module, by its absolute name."""

    module: Module
    line: int
    name: str
    top_level: bool

    def __str__(self) -> str:
        return f"{self.module.where}:{self.line} imports {self.name}"


@cache
def modules() -> tuple[Module, ...]:
    """All files of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Module(path, text, ast.parse(text)))
    return tuple(found)


def imports(module: Module) -> Iterator[Import]:
    """All imports of a file: those in functions and those for types only too."""
    top = {id(node) for node in _executed_on_import(module.tree)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(module, node.lineno, name, id(node) in top)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module.path.parent.relative_to(PACKAGE.parent).parts
    parent = package[: len(package) - node.level + 1]
    return ".".join([*parent, *([node.module] if node.module else [])])


def _executed_on_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run on import: all but functions' bodies and blocks for types only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
