"""Imports run one way, optional dependencies wait, and importing changes nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from tests._source import imports, modules

BASE = {"_checks", "_cluster", "_core", "_files", "_state", "_version", "registry"}
#: What each part may import of the others. Parts of one line know nothing of each other.
NUMERICS = BASE | {"_compat", "generative"}
LAYERS = NUMERICS | {"nn"}
TENSORS = LAYERS | {"module"}
SCREENS = BASE | {"_compat", "data"}
KNOWLEDGE = SCREENS | {"features"}
CONDITIONS = KNOWLEDGE | {"similarity"}
MODELS = TENSORS | CONDITIONS | {"train", "predictors", "metrics"}
JUDGE = MODELS | {"model"}
VERBS = JUDGE | {"_plotting", "benchmark"}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "_compat": BASE,
    "_plotting": BASE,
    "generative": BASE | {"_compat"},
    "nn": NUMERICS,
    "module": TENSORS - {"module"},
    "train": TENSORS,
    "data": SCREENS - {"data"},
    "features": SCREENS,
    "similarity": KNOWLEDGE,
    "predictors": CONDITIONS,
    "metrics": {"_checks", "_core", "registry"},
    "model": MODELS,
    "benchmark": JUDGE | {"_plotting", "pp"},
    "pp": JUDGE,
    "tl": VERBS,
    "pl": VERBS,
    "cli": VERBS | {"pp", "tl", "pl"},
    "testing": JUDGE,
}
OPTIONAL = {
    "annbatch",
    "cell_eval2",
    "decoupler",
    "ot",
    "pertpy",
    "pronto",
    "ray",
    "rdkit",
    "sentence_transformers",
    "zarr",
}
#: Parts that are tensors only.
NO_ANNDATA = {"generative", "nn"}
ANNDATA = ("anndata", "mudata", "scanpy", "scvi.data", "scvi.dataloaders", "scvi.model")


def _below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _part(name: str) -> str | None:
    """Part of this package that a name belongs to, if any."""
    head, _, rest = name.partition(".")
    if head != "scvi_perturb":
        return None
    part = rest.partition(".")[0]
    return "_version" if part == "__version__" else part or "__init__"


def test_every_part_has_a_place_in_the_order():
    parts = {module.part for module in modules()} - {"__init__", "__main__"}
    assert parts <= ALLOWED.keys(), "give the new part a line in ALLOWED"


def test_imports_run_one_way():
    wrong = [
        str(found)
        for module in modules()
        if module.part in ALLOWED
        for found in imports(module)
        if (part := _part(found.name)) is not None
        and part not in ALLOWED[module.part] | {module.part}
        # The package itself is complete when the outermost parts run.
        and not (part == "__init__" and module.part == "cli")
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_dependencies_are_imported_where_they_are_used():
    wrong = [
        str(found)
        for module in modules()
        for found in imports(module)
        if found.top_level and found.name.partition(".")[0] in OPTIONAL
    ]
    assert not wrong, "\n".join(wrong)


def test_tensor_code_knows_nothing_of_anndata():
    wrong = [
        str(found)
        for module in modules()
        if module.part in NO_ANNDATA
        for found in imports(module)
        if any(_below(found.name, package) for package in ANNDATA)
    ]
    assert not wrong, "\n".join(wrong)


def test_generative_needs_torch_and_numpy_only():
    external = {
        found.name.partition(".")[0]
        for module in modules()
        if module.part == "generative"
        for found in imports(module)
        if found.top_level
    }
    assert external - sys.stdlib_module_names <= {"numpy", "scipy", "scvi_perturb", "torch"}


#: Names with an underscore that their owners document: for subclasses of a model of scvi-tools,
#: of named tuples, of the interpreter.
DOCUMENTED = {
    *("_get_init_params", "_get_setup_method_args"),
    *("_asdict", "_fields", "_make", "_replace"),
    "_exit",
}


def test_private_names_of_other_packages_stay_in_one_file():
    others = [module for module in modules() if module.where != "_compat.py"]
    wrong = [
        str(found)
        for module in others
        for found in imports(module)
        if not _below(found.name, "scvi_perturb")
        and not found.name.startswith("__future__")
        and any(x.startswith("_") for x in found.name.split("."))
    ]
    nodes = [(module, node) for module in modules() for node in ast.walk(module.tree)]
    ours = {name for _, node in nodes for name in _defined(node)} | DOCUMENTED
    wrong += [
        f"{module.where}:{node.lineno} uses {ast.unparse(node)}"
        for module, node in nodes
        if module in others
        and isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in ours
    ]
    assert not wrong, "\n".join(wrong)


def _defined(node: ast.AST) -> list[str]:
    """Names that a node defines: of functions, classes, arguments, variables, attributes."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.id if isinstance(node, ast.Name) else node.attr]
    return [node.arg] if isinstance(node, ast.arg) else []


PROBE = """
import json, logging, os, random, sys, warnings
import numpy as np, torch, matplotlib
import scvi

def state():
    return {
        "warning filters": repr(warnings.filters),
        "numpy generator": repr(np.random.get_state()),
        "torch generator": repr(torch.get_rng_state().sum().item()),
        "random generator": hash(random.getstate()),
        "root handlers": repr(logging.getLogger().handlers),
        "scvi verbosity": logging.getLogger("scvi").level,
        "seed of scvi": scvi.settings.seed,
        "torch threads": torch.get_num_threads(),
        "torch dtype": str(torch.get_default_dtype()),
        "anomaly mode": torch.is_anomaly_enabled(),
        "matplotlib": hash(repr(sorted(dict.items(matplotlib.rcParams)))),
        "numpy errors": repr(np.geterr()),
        "environment": repr(sorted(os.environ.items())),
        "files": os.listdir(),
    }

before, loaded = state(), set(sys.modules)
import scvi_perturb
for name in set(dir(scvi_perturb)) - {"benchmark", "pl"}:
    getattr(scvi_perturb, name)
after, added = state(), set(sys.modules) - loaded
print(json.dumps({
    "changed": [name for name in before if before[name] != after[name]],
    "optional": sorted(set(json.loads(sys.argv[1])) & set(sys.modules)),
    "added": sorted(added),
}))
"""


def _probe() -> dict:
    # "zarr" comes with anndata.
    names = json.dumps(sorted(OPTIONAL - {"zarr"}))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, names],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"importing prints: {done.stdout}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def imported() -> dict:
    return _probe()


def test_importing_changes_nothing(imported):
    assert imported["changed"] == []
    assert imported["optional"] == []


def test_importing_is_light(imported):
    """What takes time is other packages, and parts that most sessions use late or never."""
    names = {name.partition(".")[0] for name in imported["added"]}
    assert names - sys.stdlib_module_names <= {"safetensors", "scvi_perturb"}
    late = {f"scvi_perturb.{part}" for part in ("benchmark", "cli", "pl")}
    assert not late & set(imported["added"])


def test_every_public_name_is_found():
    import scvi_perturb

    for name in scvi_perturb.__all__:
        found = getattr(scvi_perturb, name)
        owner = getattr(found, "__module__", "scvi_perturb")
        assert owner.startswith("scvi_perturb"), name
    assert set(dir(scvi_perturb)) == set(scvi_perturb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'PerturbDifusion'"):
        _ = scvi_perturb.PerturbDifusion


#: Imports that take longer than the command line may.
HEAVY = {"anndata", "lightning", "numpy", "pandas", "scanpy", "scipy", "scvi", "sklearn", "torch"}

HELP = """
import json, sys
from scvi_perturb.cli import main
from scvi_perturb.registry import registry

asked = [["--help"], ["--version"]]
asked += [[name, "--help"] for name in sys.argv[2:]]
for arguments in asked:
    assert main(arguments) == 0
    found = sorted(set(json.loads(sys.argv[1])) & set(sys.modules))
    assert not found, (arguments, found)
assert set(sys.argv[2:]) <= set(registry("commands"))
"""


def test_help_and_version_wait_for_nothing_heavy():
    from scvi_perturb.cli._app import OWN

    command = [sys.executable, "-c", HELP, json.dumps(sorted(HEAVY)), *OWN]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*OWN, "scvi-tools"))
