"""The versions of other packages: both ends that are tested, and what differs between them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import version

import anndata
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from scvi_perturb._compat import layer_names, quiet_lightning
from scvi_perturb._core import SchemaError
from scvi_perturb._version import versions
from scvi_perturb.cli import main
from scvi_perturb.data.reader import check_raw_counts
from tests._source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Files of pins, and the Python that each was made with.
CONSTRAINTS = {"constraints.txt": "3.11", "constraints-newest.txt": "3.13"}


def _pins(file):
    """Pinned versions by normalised name, in the order of the file."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {_plain(name): number for name, number in (line.split("==") for line in lines)}


def _plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _asked():
    """Requirements of the package, and of the extras and groups that `make` installs."""
    extras = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = PROJECT["project"]["optional-dependencies"]
    every = [*PROJECT["project"]["dependencies"]]
    every += [line for extra in extras[1].split(",") for line in named[extra]]
    groups = PROJECT["dependency-groups"].values()
    every += [line for group in groups for line in group if isinstance(line, str)]
    return [Requirement(line) for line in every]


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_constraints_pin_what_is_asked_for(file):
    pins = _pins(file)
    python = {"python_version": CONSTRAINTS[file]}
    asked = [one for one in _asked() if one.marker is None or one.marker.evaluate(python)]
    assert [r.name for r in asked if _plain(r.name) not in pins] == []
    assert [str(r) for r in asked if not r.specifier.contains(pins[_plain(r.name)])] == []
    assert list(pins) == sorted(pins)


def test_constraints_hold_both_ends():
    oldest, newest = (_pins(file) for file in CONSTRAINTS)
    ends = {"scvi-tools": ("1.4.2", "1.5"), "anndata": ("0.12", "0.13"), "pandas": ("2", "3")}
    for name, (low, high) in ends.items():
        assert SpecifierSet(f"=={low}.*").contains(oldest[name]), name
        assert SpecifierSet(f">={high}").contains(newest[name]), name


def test_only_the_next_scvi_tools_is_shut_out():
    bounded = [str(r) for r in _asked() if re.search(r"<|==|~=", str(r.specifier))]
    assert bounded == ["scvi-tools<2,>=1.4.2"]


def test_pythons_are_those_that_are_tested():
    listed = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"]]
    pythons = [name for name in listed if name.startswith("3.")]
    stable, pre = PROJECT["tool"]["hatch"]["envs"]["hatch-test"]["matrix"]
    assert stable["python"] == pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert pre == {"deps": ["pre"], "python": ["3.14"]}
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert str(pythons).replace("'", '"') in workflow


def test_every_extra_is_used():
    files = [p for part in ("src", "tests") for p in (ROOT / part).rglob("*.py")]
    source = "".join(
        path.read_text(encoding="utf-8") for path in files if path.name != "test_stack.py"
    )
    imported = {
        "pot": "ot",
        "cell-eval2": "cell_eval2",
        "sentence-transformers": "sentence_transformers",
    }
    extras = PROJECT["project"]["optional-dependencies"]
    for line in (line for lines in extras.values() for line in lines):
        name = _plain(Requirement(line).name)
        module = imported.get(name, name)
        assert re.search(rf"\b(import|from) {module}\b|\"{module}\"", source), line


def test_versions_are_those_in_use(capsys):
    found = versions()
    assert found["anndata"] == version("anndata")
    assert list(found)[:2] == ["scvi-perturb", "python"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == [f"{k} {v}" for k, v in found.items()]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_the_constraints_of_its_python(tmp_path):
    arguments = ["demo", f"PYTHON={sys.executable}", f"VENV={tmp_path}/new"]
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    oldest, newest = CONSTRAINTS
    file = oldest if sys.version_info < (3, 12) else newest
    assert f"{sys.executable} -m venv {tmp_path}/new" in done.stdout
    assert f"{tmp_path}/new/bin/python -m pip install" in done.stdout
    assert f"--constraint {file} --editable .\n" in done.stdout


def test_x_is_no_layer():
    halves = np.full((3, 2), 0.5, "f4")
    adata = anndata.AnnData(halves, layers={"b": halves, "a": halves})
    assert layer_names(adata) == ["a", "b"]
    with pytest.raises(SchemaError, match=r"None of the other matrices \(a, b\) holds counts"):
        check_raw_counts(halves, where="X", layers={None: halves, "a": halves + 1, "b": halves + 2})


def test_only_lightnings_own_deprecation_is_silenced():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_lightning():
            message = "`isinstance(treespec, LeafSpec)` is deprecated, use `is_leaf`."
            warnings.warn(message, FutureWarning, stacklevel=1)
            warnings.warn("`other` is deprecated", FutureWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["`other` is deprecated"]
