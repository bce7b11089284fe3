"""Imports run one way, optional dependencies wait, and importing changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests._source import imports, modules

BASE = {"_checks", "_core", "_version", "registry"}
#: What each part may import of the others. Parts of one line know nothing of each other.
NUMERICS = BASE | {"generative"}
LAYERS = NUMERICS | {"nn"}
TENSORS = LAYERS | {"_compat", "module"}
KNOWLEDGE = BASE | {"features"}
SCREENS = KNOWLEDGE | {"_compat", "data"}
CONDITIONS = SCREENS | {"similarity"}
MODELS = TENSORS | CONDITIONS | {"train", "predictors", "metrics"}
JUDGE = MODELS | {"model"}
VERBS = JUDGE | {"_plotting", "benchmark"}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "_compat": BASE,
    "_plotting": BASE,
    "generative": BASE,
    "nn": NUMERICS,
    "module": TENSORS - {"module"},
    "train": TENSORS,
    "features": BASE,
    "data": SCREENS - {"data"},
    "similarity": SCREENS,
    "predictors": CONDITIONS,
    "metrics": {"_checks", "_core", "registry"},
    "model": MODELS,
    "benchmark": JUDGE | {"_plotting"},
    "pp": VERBS,
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


def test_private_names_of_scvi_tools_stay_in_one_file():
    wrong = [
        str(found)
        for module in modules()
        if module.where != "_compat.py"
        for found in imports(module)
        if _below(found.name, "scvi") and any(x.startswith("_") for x in found.name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


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
    assert names - sys.stdlib_module_names == {"scvi_perturb"}
    late = {f"scvi_perturb.{part}" for part in ("benchmark", "cli", "pl")}
    assert not late & set(imported["added"])
