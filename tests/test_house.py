"""The bars of `benchmarks.house`, and sizes, arguments, annotations and names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from benchmarks.house import BARS, Source, figures
from tests._source import PACKAGE, ROOT, modules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_FUNCTION, MAX_ARGUMENTS, MAX_MODEL_ARGUMENTS = 50, 8, 12
MIN_ANNOTATED = 0.95
#: `(part, function)` that may take any arguments.
PASS_ON = {
    # to Lightning's Trainer
    ("model", "train"),
    ("model", "run"),
    # from scvi-tools' `load`, which adds arguments of its own
    ("model", "setup_anndata"),
    ("model", "setup_mudata"),
    ("model", "setup_signatures"),
    ("model", "_register"),
    # to what is wrapped
    ("_checks", "entry"),
    ("train", "run"),
    ("train", "call"),
    # to `json.dumps` and `adata.write`
    ("_state", "_dumps"),
    ("model", "save"),
    # of the class, whose signatures differ
    ("model", "from_scvi_model"),
    ("testing", "fit"),
    ("testing", "make_model"),
    ("testing", "make_screen"),
    # signatures of scvi-tools' that are overridden
    ("data", "transfer_field"),
    ("module", "_get_inference_input"),
    ("module", "_get_generative_input"),
    ("module", "loss"),
    ("module", "on_load"),
    ("module", "sample"),
}
SETUP = {"__init__", "setup_anndata", "setup_mudata", "setup_signatures"}


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method of the package."""

    where: str
    part: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def lines(self) -> int:
        """Lines without the docstring, which may be as long as it needs to be."""
        lines = self.node.end_lineno - self.node.lineno + 1
        if ast.get_docstring(self.node) is not None:
            docstring = self.node.body[0]
            lines -= docstring.end_lineno - docstring.lineno + 1
        return lines

    @property
    def arguments(self) -> list[ast.arg]:
        listed = self.node.args
        every = [*listed.posonlyargs, *listed.args, *listed.kwonlyargs]
        return [argument for argument in every if argument.arg not in {"self", "cls"}]

    @property
    def limit(self) -> int:
        """Arguments it may have: a model registers and configures more than a function."""
        of_model = self.part == "model" and self.name in SETUP
        return MAX_MODEL_ARGUMENTS if of_model else MAX_ARGUMENTS

    def __str__(self) -> str:
        return f"{self.where}:{self.node.lineno} {self.name}"


def _functions() -> Iterator[Function]:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(module.where, module.part, node)


FUNCTIONS = list(_functions())


@pytest.fixture(scope="module")
def measured():
    return figures(ROOT / "src")


@pytest.mark.parametrize("figure", BARS)
def test_house_keeps_its_bars(measured, figure):
    assert measured[figure] <= BARS[figure]


def test_no_class_name_stands_for_two_things():
    assert Source(PACKAGE).repeated_classes() == []


def test_private_modules_stay_in_their_folder():
    assert Source(PACKAGE).private_imports() == []


def test_functions_are_short():
    wrong = [f"{f}: {f.lines} lines" for f in FUNCTIONS if f.lines > MAX_FUNCTION]
    assert not wrong, "\n".join(wrong)


def test_functions_have_few_arguments():
    wrong = [f"{f}: {len(f.arguments)}" for f in FUNCTIONS if len(f.arguments) > f.limit]
    assert not wrong, "\n".join(wrong)


def test_arguments_are_annotated():
    arguments = [argument for f in FUNCTIONS for argument in f.arguments]
    annotated = sum(argument.annotation is not None for argument in arguments)
    assert annotated >= MIN_ANNOTATED * len(arguments)


def test_no_function_swallows_arguments():
    wrong = [str(f) for f in FUNCTIONS if f.node.args.kwarg and (f.part, f.name) not in PASS_ON]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_printed():
    wrong = [
        f"{module.where}:{node.lineno}"
        for module in modules()
        if module.part != "cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not wrong, "\n".join(wrong)


def test_warning_filters_are_left_alone():
    setters = re.compile(r"warnings\.(filterwarnings|simplefilter)\(")
    wrong = [
        f"{module.where}: {line.strip()}"
        for module in modules()
        for line in module.text.splitlines()
        # Indented calls are in functions, where `catch_warnings` restores the filters.
        if setters.match(line)
    ]
    assert not wrong, "\n".join(wrong)


PACKAGES = sorted(path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize("folder", PACKAGES, ids=str)
def test_public_names_exist_and_are_documented(folder: Path):
    package = importlib.import_module(".".join(["scvi_perturb", *folder.parts]))
    names = getattr(package, "__all__", None)
    if names is None:  # an inner room, of which nothing is imported but modules
        assert not [name for name in vars(package) if name[0].isupper()]
        names = []
    objects = {name: getattr(package, name) for name in names}
    documented = {n: x for n, x in objects.items() if isinstance(x, type) or hasattr(x, "__code__")}
    wrong = [name for name, x in documented.items() if not (x.__doc__ or "").strip()]
    assert not wrong, "\n".join(wrong)


def _tracked() -> list[Path]:
    """Files of the repository: what git knows or would add."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        pytest.skip("not a git repository")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


# In pieces, so that this file does not hold what it looks for.
FORBIDDEN = re.compile(
    "|".join(
        (
            r"py" r"pi\.(org|io)",
            r"python" r"hosted",
            r"registry\.np" r"mjs",
            r"conda\.an" r"aconda",
            r"(?<![\w.~-])/(" r"wo" r"rk|ro" r"ot|ho" r"me|Us" r"ers|t" r"mp)/",
        )
    )
)


def test_no_file_names_a_registry_or_a_place_on_somebodys_machine():
    wrong = []
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}:{i}: {found[0]}"
            for i, line in enumerate(text.splitlines(), 1)
            if (found := FORBIDDEN.search(line))
        ]
    assert not wrong, "\n".join(wrong)


def test_no_data_and_no_large_file_is_tracked():
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in _tracked()
        if path.suffix in {".h5ad", ".h5mu", ".pt", ".ckpt"} or path.stat().st_size > 500_000
    ]
    assert not wrong, "\n".join(wrong)
