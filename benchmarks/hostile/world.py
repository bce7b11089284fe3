"""Small trained models and good arguments, from which bad ones are made."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scvi.model import SCVI

import scvi_perturb as svp
from scvi_perturb import benchmark, data, generative, metrics, predictors
from scvi_perturb.testing import PAIR, SETUP, SINGLE, make_features, make_screen, make_split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

_SMALL: Final = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 5}
_NETWORK: Final = {"n_latent": 4, "n_hidden": 16, "n_layers": 1}
QUICK: Final = {
    "max_epochs": 1, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False
}  # fmt: skip


_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "PerturbDiffusion": {"diffusion": svp.DiffusionConfig(**_SMALL), **_NETWORK},
    "PerturbFlow": {"flow": svp.FlowConfig(**_SMALL), **_NETWORK},
    "PerturbFlowFromNoise": {"flow": svp.FlowConfig(source="noise", **_SMALL), **_NETWORK},
    "HybridResidualModel": {"generator": svp.DiffusionConfig(**_SMALL), **_NETWORK},
    "CausalPerturbVAE": {
        "causal": svp.CausalConfig(n_identity=3, n_state=3, n_technical=2, n_components=2),
        "n_hidden": 16,
        "n_layers": 1,
    },
}


_EDGES: Final = pd.DataFrame({"a": list("abcd"), "b": list("bcda"), "weight": [1.0, 2, 1, 3]})


class World:
    """A screen, the four models trained on it, and all that public functions ask for."""

    #: Written by others, of scvi-tools, or for those who write models.
    skipped: Final = frozenset({
        "register_manager", "deregister_manager", "to_device", "history", "StageRunner",
        "StagePlan", "fit_stage", "Stage", "Request", "ModelPredictor", "Panel", "Terms",
        "reset_peak_memory", "peak_memory", "load_dataset", "Sampler", "Method", "Metric",
        "PCA", "fit_profiles", "Component", "Condition", "convert_legacy_save", "changes",
        "controls", "knows", "predict_changes", "refit", "ScreenReport", "OntologyTerm",
    })  # fmt: skip
    skipped_arguments: Final = frozenset({"registry", "ax", "axes", "progress", "external"})
    #: Verbs that a flow from controls, or one from noise, refuses whatever its arguments.
    refused: Final = frozenset({
        "PerturbFlow.anomaly_scores", "PerturbFlow.latent_log_density",
        "PerturbFlowFromNoise.trajectory",
    })  # fmt: skip
    #: Annotations of what may be anything.
    unchecked: Final = frozenset({"Any", "object", "Number", "Schedule"})
    #: Arguments that may be any label, and those in which NaN is "there is none".
    labels: Final = frozenset({"control", "control_label"})
    may_be_missing: Final = frozenset({
        "std", "effect_std", "pit", "value", "changes", "centre", "best", "nll",
        "observed_variance", "control_variance", "mean_variance",
    })  # fmt: skip

    def __init__(self, folder: Path, *, models: Sequence[str] = ()) -> None:
        self.folder, self._asked = folder, models
        self.screen = make_screen(n_cells=240, n_genes=20)
        self.features = make_features(self.screen)
        self.random = np.random.default_rng(0)

    @cached_property
    def models(self) -> dict[str, Any]:
        """The four models, trained for a few steps."""
        made = {name: self.made(name) for name in self._asked or _OPTIONS}
        for name, model in made.items():
            steps = {} if name == "CausalPerturbVAE" else {"n_steps": 4}
            model.train(**QUICK, **steps)
        return made

    def made(self, name: str) -> Any:  # noqa: ANN401
        """Return an untrained model of a class, on a screen of its own."""
        adata, model = self.screen.copy(), getattr(svp, name.removesuffix("FromNoise"))
        model.setup_anndata(adata, **SETUP)
        return model(adata, **_OPTIONS[name])

    # Good arguments ------------------------------------------------------------------------

    @cached_property
    def _by_name(self) -> dict[str, Any]:
        """Good values by the name of an argument."""
        draw = self.random.normal
        matrix = np.abs(draw(size=(12, 6)))
        return {
            "adata": self.screen,
            "conditions": [SINGLE, PAIR],
            "condition": SINGLE,
            "names": [SINGLE],
            "name": SINGLE,
            "among": [SINGLE, "pert_02"],
            "start": "control",
            "end": SINGLE,
            "n_samples": 4,
            "n_cells": 40,
            "sampler": svp.SamplerConfig("heun", n_evaluations=2),
            "perturbation": SINGLE,
            "kind": "unseen_perturbation",
            "features": self.features,
            "other": svp.PerturbationFeatures(
                {"more": pd.DataFrame({"a": [1.0, 2.0]}, index=[SINGLE, "pert_02"])}
            ),
            "modality": "embedding",
            "genes": ["a", "b"],
            "gene_sets": {"one": ["a", "b"], "two": ["b"]},
            "min_size": 1,
            "smiles": pd.Series({"ethanol": "CCO", "benzene": "c1ccccc1"}),
            "path": self.folder / "file",
            "cells": matrix,
            "counts": np.floor(10 * matrix),
            "control": matrix[:5],
            "predicted": matrix,
            "observed": matrix + 0.1,
            "reference": matrix[0],
            "k": 3,
            "pit": self.random.random((12, 6)),
            "level": 0.9,
            "predicted_change": draw(size=6),
            "observed_change": draw(size=6),
            "std": np.abs(draw(size=6)) + 0.1,
            "observed_variance": np.abs(draw(size=6)),
            "function": len,
            "energy": 1.0,
            "floor": 0.5,
            "shifted": 2.0,
            "mean": matrix[0],
            "comparison": self.comparison,
            "cases": [self.comparison],
            "truth": self.comparison.truth,
            "state": self.split.to_dict(),
            "header": ["a", "b"],
            "rows": [["1", "2"]],
            "table": self.effects,
            "scenario": "seen",
            "task": self.task,
            "study": self._by_study,
            "out": self.folder / "out",
            "fold": 0,
            "n_states": 3,
            "pca": metrics.fit_pca(matrix),
            "model": self.models["PerturbDiffusion"],
            "real": self.screen,
            "predicted_lfc": matrix[:2],
            "true_lfc": matrix[:2],
            "text": data.SimulatorConfig().to_json(),
            "label": "liver",
            "identifier": "A:1",
            "terms": [],
            "monitor": "loss",
            "times": [0.0, 0.5],
            "t": torch.full((4,), 0.3),
            "log_snr": torch.tensor([0.1]),
            "schedule": generative.CosineSchedule(),
            "x": torch.ones(4, 3),
            "x0": torch.ones(4, 3),
            "x1": torch.ones(4, 3),
            "x_0": torch.zeros(4, dtype=torch.int64),
            "x_t": torch.zeros(2, dtype=torch.int64),
            "data": torch.full((2, 3), 1 / 3),
            "s": 0.1,
            "noise": torch.ones(4, 3),
            "prediction": torch.ones(4, 3),
            "mu": torch.ones(4, 3),
            "theta": torch.ones(4, 3),
            "zi_logits": torch.ones(4, 3),
            "loc": torch.ones(4, 3),
            "scale": torch.ones(4, 3),
            "shape": (2,),
            "modalities": {"more": pd.DataFrame({"a": [1.0]}, index=[SINGLE])},
            "records": self.results.records(),
            "cost": self.results.cost(),
            "frame": self.results.frame(),
            "summary": self.results.summary(n_boot=5),
            "metric": "pearson_delta",
            "method": "no_change",
            "trial": benchmark.Trial.make(self.task, seed=0, fold=0),
            "generator": torch.Generator(),
            "results": self.results,
            "folder": self.folder / "results",
            "mdata": MuData({"rna": self.screen}),
            "title": "Results",
            "field": lambda t, x: -x,
            "classify": lambda x, t, own: torch.full((int(own.sum()), 3), 1 / 3),
            "n_evaluations": 2,
            "support": [0.5],
        }

    @cached_property
    def dosed(self) -> AnnData:
        """A screen with doses."""
        return make_screen(n_cells=240, n_genes=20, n_combinations=0, doses=(0.1, 0.3, 1.0))

    @cached_property
    def responded(self) -> AnnData:
        """A screen whose cells were asked whether they responded."""
        adata = self.screen.copy()
        svp.tl.escapers(adata)
        return adata

    @cached_property
    def _by_verb(self) -> dict[str, Any]:
        """Good values by a pattern of verb and argument."""
        profile = self._by_name["mean"]
        return {
            r".*\.train\.n_steps": 2,
            r".*\.save\.overwrite": True,
            r".*\.from_scvi_model\.scvi_model": self.scvi_model,
            r".*\.from_scvi_model\.adata": self.scvi_model.adata,
            r"benchmark\.run\.methods": None,
            r"benchmark\.Record\.read\.path": self.record_file,
            r"benchmark\.Record\.(?!write)\w+": None,
            r"benchmark\.Record\.(task|method|fingerprint)": "small",
            r"benchmark\.Record\.role": "model",
            r"benchmark\.Record\.(seed|fold)": 0,
            r"benchmark\.Trial\.make\.seed": 0,
            r".*\.train\.max_epochs": 1,
            r".*\.train\.batch_size": 64,
            r"(Perturb|Hybrid|Causal)\w+\.\w+\.reference": self.controls,
            r"CausalPerturbVAE\.transfer\.adata": self.controls,
            r"PerturbFlow\w*\.transport\.adata": self.controls,
            r"(Perturb|Hybrid|Causal)\w+\.setup_\w+\.(context_keys)": ["cell_type"],
            r"(Perturb|Hybrid|Causal)\w+\.setup_\w+\.(control|kind)": "control",
            r"(Perturb|Hybrid|Causal)\w+\.[a-z]\w+\.n_steps": 2,
            r"(Perturb|Hybrid|Causal)\w+\.__init__\.(?!adata).*": None,
            r"(Perturb|Hybrid|Causal)\w+\.\w+\.(path|features|kind|names|model)": None,
            r"predictors\..*\.reference": None,
            r"predictors\.\w+\.(?!features|table)\w+": None,
            r"predictors\.StackedMean\.weigh\.scenario": "seen",
            r"metrics\.(cosine|nmse|pearson|top_)\w*\.(predicted|observed|control)": profile,
            r"metrics\.pearson_delta\.k": None,
            r"metrics\.Comparison\.predicted": self.comparison.predicted,
            r"metrics\.GroundTruth\.(control|observed)": self.comparison.truth.control,
            r"metrics\.GroundTruth\.(name)": None,
            r"metrics\.Space\.fit\.n_states": 2,
            r"metrics\.score.*\.names": None,
            r"metrics\.chosen_genes\.genes": None,
            r"pl\.effect_scatter\.genes": None,
            r"module\..*": None,
            r"train\.(?!BestWeights|Checkpoint).*": None,
            r"data\.\w+\.(mean)": None,
            r"(pp|tl|data|benchmark)\.(?!Setting)\w+\.(control|features|conditions|kind)$": None,
            r"tl\.ask_many\.conditions": [SINGLE, PAIR],
            r"tl\.ask_many\.options": {"n_samples": 4},
            r"data\.split\.kind": "unseen_perturbation",
            r"data\.(ScreenKeys|SimulatorConfig|SplitOptions|ConditionTable)\.\w+": None,
            r"data\.SplitOptions\.check_kind\.kind": "cells",
            r"data\.ScreenKeys\.parse\.perturbation": SINGLE,
            r"data\.ConditionTable\.\w+\.(name)": SINGLE,
            r"data\.ConditionTable\.\w+\.(kind)": None,
            r"data\.ConditionTable\.\w+\.conditions": [data.Condition.parse(SINGLE)],
            r"data\.ConditionTable\.from_dict\.state": data.ConditionTable().to_dict(),
            r"data\.read_screen\.path": self.written,
            r"data\.open_shards\.path": self.shards,
            r"data\.write_shards\.path": self.folder / "new_shards",
            r"data\.write_shards\.overwrite": True,
            r"data\.Split\.\w+$": None,
            r"data\.Split\.(kind|seed|train|validation|test|held_out|parameters|data_hash)": _SPLIT,
            r"data\.Split\.from_json\.path": self.split_file,
            r"generative\.get_schedule\.name": "cosine",
            r"generative\.(SamplerConfig|LinearSchedule|DiscreteDiffusion)\.(?!n_states)\w+$": None,
            r"generative\.(DiscreteDiffusion)\.posterior\.t": 0.5,
            r"generative\.SamplerConfig\.of\.sampler": "heun",
            r"generative\.\w+\.times": None,
            r"generative\.couple\..*generator": None,
            r"features\.cluster_perturbations\.names": [SINGLE, "pert_02", "pert_03"],
            r"features\.read_gmt\.path": self.gmt,
            r"features\.network_embedding\.edges": _EDGES,
            r"features\.network_embedding\.score": "weight",
            r"features\.network_embedding\.min_score": 1.0,
            r"features\.network_embedding\.(names|direction|kind)": None,
            r"features\.target_features\.targets": {"drug": ["a", "b"], "other": ["b"]},
            r"features\.target_features\.(vectors|drug|target|separator)": None,
            r"features\.text_features\.texts": {"A": "a kinase", "B": "a kinase", "C": "other"},
            r"features\.text_features\.model": None,
            r"features\.from_signatures\.values": "counts",
            r"features\.rename_genes\.table": pd.DataFrame({"x": [1.0]}, index=["E1"]),
            r"features\.rename_genes\.names": {"E1": "A"},
            r"pp\.OntologyTerms\.read\.path": self.obo,
            r"tl\.\w+\.(by|keys|unit|signatures|min_count|threshold|reference)": None,
            r"tl\.\w+\.(block|donor)_key": "batch",
            r"tl\.power\.(n_cells|n_blocks)": [2, 20],
            r"tl\.\w+\.min_cells": 2,
            r"tl\.power\.effect": 0.5,
            r"tl\.(rank_)?effects\.predicted": self.models["PerturbDiffusion"].predict(
                [SINGLE], n_samples=4
            ),
            r"tl\.\w+\.data": self.screen,
            r"tl\.\w+\.(genes|level)": None,
            r"tl\.\w+\.n_boot": 10,
            r"tl\.\w+\.metric": "cosine",
            r"tl\.reverse\.(candidates|shift)": self.screen,
            r"tl\.next_experiments\.model": svp.predictors.ConditionGP(self.features).fit(
                self.screen
            ),
            r"tl\.next_experiments\.candidates": ["pert_01+pert_02", "pert_01+pert_03"],
            r"tl\.next_experiments\.n": 1,
            r"tl\.next_experiments\.signature": {"gene_01": 1.0},
            r"tl\.next_experiments\.budget": 2.0,
            r"tl\.dose_response\.data": self.dosed,
            r"tl\.dose_response\.genes": ["gene_01"],
            r"tl\.enrichment\.gene_sets": {"one": ["gene_01", "gene_02"]},
            r"pl\.dose_response\.curves": svp.tl.dose_response(self.dosed).iloc[:1],
            r"pl\.dose_response\.points": svp.tl.dose_response(self.dosed, points=True),
            r"pl\.responders\.adata": self.responded,
            r"pl\.responders\.key": None,
            r"pl\.interaction_map\.pairs": svp.tl.interactions(self.screen, n_boot=10),
            r"pl\.similarity_map\.similarity": svp.tl.perturbation_similarity(self.screen),
            r"pl\.similarity_map\.clusters": svp.tl.cluster_perturbations(self.screen),
            r"pl\.umap_real_and_predicted\.(real|predicted)": self.screen,
            r"benchmark\.evaluate\.predicted": self.predicted,
            r"benchmark\.Setting\.seed": 0,
            r"benchmark\.evaluate\.cells": False,
            r"predictors\.\w+\.fit\.keys": self.keys,
            r"pl\.calibration_curve\.level": None,
            r"pl\.\w+\.predicted": self.screen,
            r"pl\.effect_intervals\.predicted": self.models["PerturbDiffusion"].predict(
                [SINGLE], n_samples=4
            ),
            r"pl\.effect_intervals\.row": 0,
            r"benchmark\.study_report\.conditions": [SINGLE],
            r"metrics\.Space\.genes": None,
            r"generative\.couple\.method": None,
            r"features\.molecular_fingerprints\.counts": None,
            r"benchmark\.Setting\.values": "counts",
            r"benchmark\.read_study\.path": self.study_file,
            r"pl\.\w+\.task": "small",
            r"features\.molecular_fingerprints\.kind": "morgan",
            r"benchmark\.get_method\.name": "no_change",
            r"benchmark\.model_method\.model": "PerturbDiffusion",
            r"benchmark\.model_method\.name": None,
            r"benchmark\.to_cell_eval\.predicted": self.screen,
            r"benchmark\.Task\.(name)$": "small",
            r"benchmark\.Task\.(load)$": lambda: self.screen,
            r"benchmark\.Task\.(kind)$": "unseen_perturbation",
            r"benchmark\.Study\.tasks": (self.task,),
            r"benchmark\.Study\.methods": (benchmark.get_method("no_change"),),
            r"benchmark\.Task\.split\.seed": 0,
        }

    def good(self, verb: str, name: str) -> Any:  # noqa: ANN401
        """Return a good value of an argument; None to leave it out."""
        found: Any = self._by_name.get(name)
        for pattern, value in self._by_verb.items():
            if re.fullmatch(pattern, f"{verb}.{name}"):
                found = value
        if found is _SPLIT:
            return getattr(self.split, name)
        if verb == "benchmark.Trial":
            return self.features if name == "features" else getattr(self._by_name["trial"], name)
        if name == "adata" and verb.rpartition(".")[2].startswith(("setup_", "harmonize")):
            return self.screen.copy()
        if name == "dir_path":
            return self.saved(verb.partition(".")[0])
        if name == "adata" and verb.endswith("__init__"):
            return self.models[verb.split(".", maxsplit=1)[0]].adata
        return found

    def legal(self, verb: str, name: str, label: str, value: object) -> bool:
        """Whether a value of the tables is right for this argument."""
        return any(re.fullmatch(pattern, f"{verb}.{name}={label}") for pattern in _LEGAL)

    def with_nan(self, verb: str, name: str) -> np.ndarray:
        """Return the good array of an argument, with one NaN in it."""
        made = np.array(self.good(verb, name), dtype=float)
        made.flat[0] = np.nan
        return made

    def instance(self, verb: str) -> Any:  # noqa: ANN401
        """Return an object whose methods are tried too, or None."""
        part, name = verb.split(".")
        if part == "predictors" and name in _FITTED:
            asks = name in {"KernelRidge", "PCARidge", "ConditionGP", "StackedMean", "NearestCells"}
            made = getattr(predictors, name)(**({"features": self.features} if asks else {}))
            return made.fit(self.screen, keys=self.keys)
        return {
            "data.Split": lambda: make_split(self.screen),
            "data.SplitOptions": data.SplitOptions,
            "data.ScreenKeys": lambda: self.keys,
            "data.ConditionTable": lambda: data.ConditionTable.from_conditions(
                [data.Condition.parse(SINGLE)]
            ),
            "features.PerturbationFeatures": lambda: self.features,
            "generative.CosineSchedule": generative.CosineSchedule,
            "generative.LinearSchedule": generative.LinearSchedule,
            "generative.DiscreteDiffusion": lambda: generative.DiscreteDiffusion(3),
            "generative.SamplerConfig": svp.SamplerConfig,
            "benchmark.Task": lambda: self.task,
            "benchmark.Results": lambda: self.results,
            "benchmark.Trial": lambda: self._by_name["trial"],
            "benchmark.Record": lambda: self.results.records()[0],
        }.get(verb, lambda: None)()

    # Parts ---------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> data.ScreenKeys:
        """Where the screen holds what."""
        return data.ScreenKeys(context="cell_type", batch="batch")

    @cached_property
    def controls(self) -> AnnData:
        """Control cells."""
        return self.screen[self.screen.obs["perturbation"] == "control"].copy()

    @cached_property
    def effects(self) -> AnnData:
        """What a predictor says of three conditions."""
        mean = predictors.ContextMean().fit(self.screen, keys=self.keys)
        return mean.predict([SINGLE, PAIR, "pert_02"])

    @cached_property
    def comparison(self) -> metrics.Comparison:
        """A prediction beside the truth."""
        draw = np.random.default_rng(1).normal
        populations = [metrics.CellPopulation(np.abs(draw(size=6))) for _ in range(3)]
        return metrics.Comparison(populations[0], metrics.GroundTruth(*populations[1:]))

    @cached_property
    def split(self) -> data.Split:
        """A split of the screen."""
        return make_split(self.screen)

    @cached_property
    def task(self) -> benchmark.Task:
        """A task on the screen."""
        return benchmark.Task(
            name="small", load=lambda: self.screen, kind="unseen_perturbation", keys=self.keys
        )

    @cached_property
    def predicted(self) -> AnnData:
        """What a predictor says of all that the task asks."""
        trial = benchmark.Trial.make(self.task, seed=0, fold=0)
        mean = predictors.NoChange().fit(trial.visible, trial.visible_split, keys=self.keys)
        return mean.predict(trial.requests)

    @cached_property
    def results(self) -> benchmark.Results:
        """Results of a trivial method."""
        return benchmark.run(self._by_study, self.folder / "results")

    @cached_property
    def _by_study(self) -> benchmark.Study:
        methods = (benchmark.get_method("no_change"),)
        return benchmark.Study(tasks=(self.task,), methods=methods, seeds=(0,), max_folds=1)

    @cached_property
    def study_file(self) -> Path:
        """A study as a file."""
        path = self.folder / "study.toml"
        task = f'[[task]]\nname = "small"\nfile = "{self.written}"\nsplit = "cells"\n'
        path.write_text(task, encoding="utf-8")
        return path

    @cached_property
    def written(self) -> Path:
        """The screen as a file."""
        path = self.folder / "screen.h5ad"
        self.screen.write_h5ad(path)
        return path

    @cached_property
    def scvi_model(self) -> SCVI:
        """A trained model of scvi-tools, on data that are registered with ours as well."""
        adata = self.screen.copy()
        for kind in (svp.PerturbDiffusion, svp.PerturbFlow, svp.HybridResidualModel):
            kind.setup_anndata(adata, **SETUP)
        SCVI.setup_anndata(adata)
        model = SCVI(adata, n_latent=4, n_hidden=16)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        return model

    @cached_property
    def record_file(self) -> Path:
        """A record of a benchmark as a file."""
        return self.results.records()[0].write(self.folder / "records")

    def saved(self, name: str) -> Path:
        """Return the folder of a trained model."""
        path = self.folder / name
        if not path.exists():
            self.models[name].save(path)
        return path

    @cached_property
    def shards(self) -> Path:
        """The screen as shards."""
        data.write_shards(self.screen, self.folder / "shards")
        return self.folder / "shards"

    @cached_property
    def split_file(self) -> Path:
        """A split as a file."""
        path = self.folder / "split.json"
        make_split(self.screen).to_json(path)
        return path

    @cached_property
    def gmt(self) -> Path:
        """A file of gene sets."""
        path = self.folder / "sets.gmt"
        path.write_text("one\tnone\ta\tb\n", encoding="utf-8")
        return path

    @cached_property
    def obo(self) -> Path:
        """A file of an ontology."""
        path = self.folder / "terms.obo"
        path.write_text("format-version: 1.4\n\n[Term]\nid: A:1\nname: liver\n", encoding="utf-8")
        return path


_SPLIT: Final = object()
_FITTED: Final = {
    "ContextMean", "Additive", "KernelRidge", "ConditionGP", "StackedMean", "NegativeBinomialMean",
    "NearestCells", "PCARidge",
}  # fmt: skip
#: Values of the tables that some argument may have after all: `verb.argument=label`.
_LEGAL: Final = (
    r"data\.ConditionTable\.\w+\.conditions=(\[\]|None)",
    r"data\.ScreenKeys\.context=(None|text)",
    r"(train\.PlanConfig|\w+\.predict_metadata)\.(n_steps|fields)=(0|\[\])",
    r"HybridResidualModel\.__init__\.mean=(other genes|negative counts)",  # read by `train`
    r".*\.conditioning=\['identity', 'identity'\]",
    r".*\.setup_\w+\.adata=(other genes|negative counts)",  # negative: of signatures alone
    r"benchmark\.(get_method|to_cell_eval)\.(others|predicted)=(mapping|other genes)",
    r"data\.SplitOptions\.(context|groups)=(5|1\.5|mapping)",
    r"features\.m\w+\.smiles=mapping",
    r"data\.SplitOptions\.(context|held_out)=(text|list of text|list of fractions|array of text)",
    r"features\.PerturbationFeatures\.(nearest|table)\.(among|names)=(mapping|\['nobody'\])",
    r"generative\.integrate\w*\.times=(\[0\.5, 0\.1\]|list of fractions)",
    r"benchmark\.(Record|Trial)\.(fold|conditions)=(1000000|\[\])",  # which record what was done
    r"data\.SimulatorConfig\.times=(\[0\.5, 0\.1\]|\[2\.0\])",
)  # fmt: skip
