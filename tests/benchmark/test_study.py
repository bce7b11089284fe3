"""Studies in files: what they say, and what is said where they are wrong."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scvi_perturb import DiffusionConfig, FlowConfig, SchemaError
from scvi_perturb.benchmark import (
    TRIVIAL,
    Method,
    Setting,
    Task,
    get_method,
    model_method,
)
from scvi_perturb.benchmark import results as benchmark_results
from scvi_perturb.benchmark.results import fingerprint
from scvi_perturb.benchmark.study import FeatureFiles, ScreenFile, read_study
from scvi_perturb.data import ScreenKeys, SimulatorConfig, SplitOptions, simulate_screen
from scvi_perturb.pp import harmonize
from scvi_perturb.predictors import PREDICTORS, StackedMean

TASK = """
[[task]]
name = "sim"
file = "screen.h5ad"
split = "unseen_perturbation"
"""


@pytest.fixture(scope="module")
def simulated():
    config = SimulatorConfig(n_perturbations=4, n_combinations=2, n_contexts=2, n_unseen=0)
    return simulate_screen(n_cells=300, n_genes=30, config=config)


@pytest.fixture(autouse=True)
def screen(simulated):
    """Files beside the study, in the folder that tests run in."""
    simulated.write_h5ad("screen.h5ad")
    sets = "a\t\tpert_01\tpert_02\tx\ty\tz\nb\t\tpert_01\tx\ty\tz\tw\n"
    Path("sets.gmt").write_text(sets, encoding="utf-8")
    table = pd.DataFrame({"f": [1.0, 2.0, 3.0]}, index=["pert_01", "pert_03", "elsewhere"])
    table.to_csv("table.csv")
    return simulated


def write(text: str, path: str = "study.toml") -> Path:
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def read(text: str):
    return read_study(write(text))


def test_little_needs_to_be_said():
    file = read(TASK)
    assert file.study.seeds == (0, 1, 2, 3, 4)
    assert file.study.methods == TRIVIAL
    assert file.study.max_folds is None
    assert (file.out, file.workers) == (Path("results"), 1)
    (task,) = file.study.tasks
    assert (task.name, task.kind, task.values, task.n_folds) == (
        "sim",
        "unseen_perturbation",
        "counts",
        5,
    )
    assert task.keys.perturbation == "perturbation"
    assert task.features is None
    assert task.load().shape == (300, 30)


def test_everything_that_is_said_is_read():
    top = """
    out = "there"
    seeds = [7, 3]
    workers = 2
    max_folds = 2
    methods = ["no_change", "small", "trivial", "PerturbDiffusion"]
    """
    task = """
    title = "A simulated screen"
    note = "no real data"
    perturbation_key = "perturbation"
    control = "control"
    context_keys = ["cell_type"]
    values = "counts"
    n_folds = 3
    max_cells = 100
    features = { gene_sets = ["sets.gmt"], table = "table.csv" }
    """
    model = """
    [[model]]
    name = "small"
    title = "small diffusion"
    class = "PerturbDiffusion"
    options = { n_latent = 8, diffusion = { width = 16 } }
    train = { max_epochs = 2, accelerator = "cpu" }
    [[model]]
    name = "hybrid"
    class = "HybridResidualModel"
    options = { generator = { source = "noise", width = 8 } }
    """
    file = read(top + TASK + task + model)
    assert (file.out, file.workers) == (Path("there"), 2)
    assert (file.study.seeds, file.study.max_folds) == ((7, 3), 2)
    names = [method.name for method in file.study.methods]
    assert names == [m.name for m in TRIVIAL] + ["PerturbDiffusion", "small", "hybrid"]
    flow = FlowConfig(source="noise", width=8)
    assert file.study.methods[-1].make.keywords["model_options"] == {"generator": flow}
    made = file.study.methods[-2]
    assert made.title == "small diffusion"
    assert made.make.keywords["model_options"] == {
        "n_latent": 8,
        "diffusion": DiffusionConfig(width=16),
    }
    assert made.make.keywords["train_options"]["max_epochs"] == 2
    (task,) = file.study.tasks
    assert (task.title, task.n_folds, task.max_cells) == ("A simulated screen", 3, 100)
    assert task.keys.context == ("cell_type",)
    assert len(list(file.study.jobs())) == 4


def test_predictors_are_named_by_class_or_by_name():
    names = '"StackedMean", "no_change", "NoChange", "stacked_mean", "FeatureForest", "PerturbFlow"'
    methods = {m.name: m for m in read(f"methods = [{names}]\n{TASK}").study.methods}
    assert list(methods) == ["stacked_mean", "no_change", "feature_forest", "PerturbFlow"]
    assert methods["stacked_mean"] is get_method("stacked_mean")
    assert methods["no_change"] in TRIVIAL
    setting = Setting("unseen_perturbation", "counts", None, 3)
    assert isinstance(methods["stacked_mean"].make(setting), StackedMean)
    assert methods["feature_forest"].make(setting).seed == 3
    assert all(isinstance(get_method(name), Method) for name in PREDICTORS)
    assert all(get_method(cls.__name__).name == name for name, cls in PREDICTORS.items())


def test_a_predictor_has_options_of_its_own():
    table = '[[model]]\nname = "sharp"\nclass = "StackedMean"\noptions = { contrast = 2.0 }\n'
    (method,) = read(f'methods = ["sharp"]\n{TASK}{table}').study.methods
    assert (method.name, method.role, method.values) == ("sharp", "model", ("counts", "effects"))
    made = method.make(Setting("unseen_perturbation", "effects", None, 1))
    assert isinstance(made, StackedMean)
    assert made.contrast == 2.0
    with pytest.raises(SchemaError, match="option of StackedMean 'max_epochs' is not known"):
        read(f"{TASK}{table}train = {{ max_epochs = 2 }}")


#: What results were known by before their definitions moved: those kept then are still found.
FINGERPRINTS = {
    "None": "8830900e5fabc260",
    "no_change": "752858a100fcd8c4",
    "context_mean": "e4c340cb24b84a55",
    "mean_in_context": "3ca32170119824d0",
    "matching_mean": "36c73f5b40d48414",
    "additive": "4e49f434f3deafb3",
    "latent_additive": "04a7985645ee8c72",
    "latent_additive_features": "63be73e87db462e4",
    "dose_line": "c49ab1c5c590ceec",
    "dose_hill": "73822eb139e631fa",
    "pca_ridge": "b9c35ce6d4b6e632",
    "kernel_ridge": "e3c39e4be57e08c3",
    "nearest_perturbation": "1cca3e8e079a5d6f",
    "control_cells": "15b79e3a4a284846",
    "shifted_control": "e5e5844eb9a48a51",
    "negative_binomial_mean": "cf64af87c6f3a12b",
    "nearest_cells": "9d49364949929634",
    "stacked_mean": "79e4b0d3d9eaeb08",
    "condition_gp": "5ac08a9e32efe2a9",
    "stacked_mean_contrast": "d475fc7d214be22f",
    "small": "5b9f6b8bf227923e",
}


def test_results_of_earlier_layouts_are_found(monkeypatch):
    monkeypatch.setattr(benchmark_results, "__version__", "0")
    keys = ScreenKeys("perturbation")
    task = Task(
        name="file",
        load=ScreenFile(Path("a.h5ad"), "0123", "counts"),
        kind="unseen_context",
        keys=replace(keys, context=("cell_type",)),
        features=FeatureFiles(keys, smiles="smiles", content="4567"),
        fold_options=(SplitOptions(context={"cell_type": "B"}),),
    )
    named = [m.name for m in TRIVIAL] + ["stacked_mean", "condition_gp", "stacked_mean_contrast"]
    small = model_method(
        "PerturbDiffusion",
        name="small",
        model_options={"n_latent": 8, "diffusion": DiffusionConfig(width=16)},
        train_options={"max_epochs": 2},
    )
    methods = {None: None} | {name: get_method(name) for name in named} | {"small": small}
    found = {str(name): fingerprint(task, method, 0, 0) for name, method in methods.items()}
    assert found == FINGERPRINTS


def test_features_are_those_of_the_screen():
    sources = 'features = { gene_sets = ["sets.gmt"], table = "table.csv" }'
    (task,) = read(TASK + sources).study.tasks
    with pytest.warns(UserWarning, match="2 of 4 genes are in no set"):
        features = task.features(task.load())
    assert features.modalities == ("gene_sets", "table")
    assert set(features.names) == {"pert_01", "pert_02", "pert_03"}
    assert not features.has("pert_02", "table")


def test_smiles_are_a_column_of_single_perturbations(screen):
    pytest.importorskip("rdkit")
    label = screen.obs["perturbation"].astype(str)
    molecules = {"pert_01": "CCO", "pert_02": "c1ccccc1", "pert_01+pert_02": "not one"}
    adata = screen.copy()
    adata.obs["smiles"] = label.map(molecules).fillna("")
    adata.write_h5ad("screen.h5ad")
    (task,) = read(TASK + 'features = { smiles = "smiles" }').study.tasks
    assert task.features(adata).names == ("pert_01", "pert_02")
    first = adata.obs.index[label == "pert_01"][0]
    adata.obs["smiles"] = adata.obs["smiles"].astype(object)
    adata.obs.loc[first, "smiles"] = "CCC"
    with pytest.raises(SchemaError, match=r"different things of .'pert_01'.*one SMILES"):
        task.features(adata)


@pytest.mark.parametrize(
    ("split", "named", "options"),
    [
        ("unseen_context", '["type_01", "type_02"]', [{"cell_type": "type_01"}, "type_02"]),
        ("unseen_context", '[{ cell_type = "type_02" }]', [{"cell_type": "type_02"}]),
        ("unseen_perturbation", '["pert_01", "pert_02"]', [("pert_01", "pert_02")]),
        ("unseen_combination", '["pert_01+pert_02"]', [("pert_01+pert_02",)]),
    ],
)
def test_what_is_held_out_can_be_named(split, named, options):
    text = TASK.replace("unseen_perturbation", split)
    (task,) = read(f'{text}context_keys = ["cell_type"]\nhold_out = {named}').study.tasks
    assert len(task.folds) == len(options)
    for fold, expected in zip(task.folds, options, strict=True):
        made = task.fold_options[fold]
        if split == "unseen_context":
            label = expected if isinstance(expected, str) else expected["cell_type"]
            assert made.context == {"cell_type": label}
        else:
            assert made.held_out == expected


def test_columns_recorded_by_harmonize_are_found(screen):
    adata = screen.copy()
    adata.obs = adata.obs.rename(columns={"perturbation": "guide"})
    harmonize(adata, {"perturbation": "guide"}, control=["control"]).write_h5ad("screen.h5ad")
    (task,) = read(TASK).study.tasks
    assert task.keys.perturbation == "perturbation"


def test_a_task_can_be_sent_to_another_process():
    (task,) = read(TASK + 'features = { table = "table.csv" }').study.tasks
    sent = pickle.loads(pickle.dumps(task))
    assert sent == task
    assert sent.load().n_obs == 300


def test_results_belong_to_the_content_of_files_not_to_their_place(screen):
    text = TASK + 'features = { table = "table.csv" }'
    method = TRIVIAL[0]
    (here,) = read(text).study.tasks
    folder = Path("elsewhere")
    folder.mkdir()
    for name in ("screen.h5ad", "table.csv"):
        shutil.copy(name, folder / name)
    (moved,) = read_study(write(text, "elsewhere/study.toml")).study.tasks
    assert moved.load.path != here.load.path
    first = fingerprint(here, method, 0, 0)
    assert fingerprint(moved, method, 0, 0) == first
    Path("table.csv").write_text(",f\npert_01,5\n", encoding="utf-8")
    (other,) = read(text).study.tasks
    assert fingerprint(other, method, 0, 0) != first
    screen[:200].copy().write_h5ad("elsewhere/screen.h5ad")
    (changed,) = read_study(folder / "study.toml").study.tasks
    assert fingerprint(changed, method, 0, 0) != first


WRONG = {
    "unknown key": ("seed = [1]\n" + TASK, "key 'seed' is not known; did you mean 'seeds'"),
    "unknown key of a task": (TASK + "holdout = []", "'sim'|1: key 'holdout'.*'hold_out'"),
    "wrong type": ('workers = "two"\n' + TASK, r"workers = 'two' \(text\); expected a whole"),
    "no number": ("workers = true\n" + TASK, r"workers = True \(true or false\)"),
    "twice": ("seeds = [1, 1]\n" + TASK, "different whole numbers"),
    "nothing": ("seeds = [1]", "at least one table"),
    "no TOML": ("seeds = ", "study.toml is not a TOML file"),
    "no file": (TASK.replace("screen", "scren"), "file = 'scren.h5ad'.*a file that is there"),
    "no name": (TASK.replace('name = "sim"', ""), "'name' is missing; expected text"),
    "odd name": (TASK.replace('"sim"', '"my screen"'), "such as 'my_screen'"),
    "wrong kind": (TASK.replace("unseen_perturbation", "unseen"), "split = 'unseen'.*one of cells"),
    "no column": (TASK + 'perturbation_key = "perturbaton"', "did you mean 'perturbation'"),
    "no control": (TASK + 'control = "wt"', "no cell is 'wt'.*Most frequent are control"),
    "no layer": (TASK + 'layer = "umis"', "layer 'umis' is not known"),
    "no context": (TASK.replace("perturbation", "context"), "'context_keys' is missing"),
    "no dose": (TASK.replace("unseen_perturbation", "dose"), "'dose_key' is missing"),
    "unknown predictor": ('methods = ["StackdMean"]\n' + TASK, "did you mean 'StackedMean'"),
    "unknown method": ('methods = ["trivia"]\n' + TASK, "did you mean 'trivial'"),
    "unknown model": (
        TASK + '[[model]]\nclass = "Diffusion"',
        "one of CausalPerturbVAE, HybridResidualModel, PerturbDiffusion",
    ),
    "unknown option": (
        TASK + '[[model]]\nclass = "PerturbDiffusion"\noptions = { n_latents = 3 }',
        "option of PerturbDiffusion 'n_latents'.*did you mean 'n_latent'",
    ),
    "given by the study": (
        TASK + '[[model]]\nclass = "PerturbDiffusion"\ntrain = { seed = 3 }',
        "option of PerturbDiffusion 'seed' is not known",
    ),
    "unknown field": (
        TASK + '[[model]]\nclass = "PerturbDiffusion"\noptions = { diffusion = { with = 3 } }',
        "field 'with' is not known; did you mean 'width'",
    ),
    "models of one name": (
        TASK + '[[model]]\nclass = "PerturbDiffusion"\n' * 2,
        "Names of methods come twice",
    ),
    "no gene sets": (TASK + 'features = { gene_sets = ["a.gmt"] }', "features: gene_sets = "),
    "unknown context": (
        TASK.replace("perturbation", "context")
        + 'context_keys = ["cell_type"]\nhold_out = ["type_1"]',
        "hold_out in 'cell_type' 'type_1' is not known; did you mean 'type_0",
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=list(WRONG))
def test_messages(text, expected):
    with pytest.raises(SchemaError, match=expected) as error:
        read(text)
    assert "\n" not in str(error.value)
    assert "study.toml" in str(error.value)


def test_what_is_no_screen_is_said():
    Path("screen.h5ad").write_text("words", encoding="utf-8")
    with pytest.raises(SchemaError, match=r"screen\.h5ad could not be read"):
        read(TASK)
    with pytest.raises(SchemaError, match=r"There is no file absent\.toml"):
        read_study("absent.toml")


def test_values_must_be_counts_where_they_are_said_to_be(screen):
    adata = screen.copy()
    adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad("screen.h5ad")
    (task,) = read(TASK).study.tasks
    with pytest.raises(SchemaError, match=r"screen\.h5ad, X"):
        task.load()
    (task,) = read(TASK + 'values = "effects"').study.tasks
    assert task.load().n_obs == 300


def test_a_table_of_other_names_is_refused():
    Path("table.csv").write_text(",f\nTP53,5\n", encoding="utf-8")
    (task,) = read(TASK + 'features = { table = "table.csv" }').study.tasks
    with pytest.raises(SchemaError, match=r"no row of a perturbation.*'TP53'"):
        task.features(task.load())


def test_clusters_and_names_of_genes(screen):
    adata = screen.copy()
    label = adata.obs["perturbation"].astype(str)
    adata.obs["family"] = ["none" if "control" in x else "+".join(x.split("+")[:1]) for x in label]
    adata.obs["mixed"] = np.where(np.arange(adata.n_obs) % 2, "x", "y")
    adata.var["symbol"] = [f"S{i}" for i in range(adata.n_vars)]
    adata.write_h5ad("screen.h5ad")
    (task,) = read(TASK + 'groups = "family"\ngene_names = "symbol"\n').study.tasks
    assert task.gene_names == "symbol"
    assert task.options.groups["pert_02"] == "pert_02"
    with pytest.raises(SchemaError, match=r"groups.*one label a perturbation"):
        read(TASK + 'groups = "mixed"\n')
    with pytest.raises(SchemaError, match=r"gene_names.*column of var 'symbols'"):
        read(TASK + 'gene_names = "symbols"\n')
    with pytest.raises(SchemaError, match=r"shown.*context_transfer"):
        read(TASK + "shown = 0.1\n")


def test_a_share_of_what_is_held_out_is_shown():
    text = TASK.replace("unseen_perturbation", "context_transfer")
    (task,) = read(text + 'context_keys = ["cell_type"]\nshown = 0.3\n').study.tasks
    assert task.options.shown == 0.3
    with pytest.raises(SchemaError, match="a share, from 0 to below 1"):
        read(text + 'context_keys = ["cell_type"]\nshown = 2\n')
