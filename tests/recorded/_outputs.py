"""The outputs that are recorded: of every model, predictor, metric, split and sampler.

Small simulated screens, fixed seeds, public names only. `GROUPS` maps a name to a function that
returns outputs by name. An output that is refused is recorded as the name of the error.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import scvi_perturb as svp
from scvi_perturb import CausalConfig, DiffusionConfig, FlowConfig, PerturbationFeatures
from scvi_perturb.data import (
    ScreenKeys,
    SimulatorConfig,
    SplitOptions,
    expected_profile,
    perturbation_features,
    sample_truth,
    simulate_screen,
    split,
    state_shift,
    true_effect,
)
from scvi_perturb.data.condition import default_keys
from scvi_perturb.generative import (
    SAMPLERS,
    SOLVERS,
    SamplerConfig,
    couple,
    get_schedule,
    integrate,
    sample_counts,
)
from scvi_perturb.metrics import (
    OWN_METRICS,
    CellPopulation,
    Comparison,
    GroundTruth,
    Panel,
    Space,
    score_all,
)
from scvi_perturb.predictors import PREDICTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Outputs = dict[str, Any]

CONTEXT = ["cell_type"]
#: Measured alone, measured together, never measured together, never measured but with features.
SINGLE, PAIR, NEW_PAIR, FEATURED = "pert_01", "pert_02+pert_03", "pert_01+pert_03", "pert_06"
REFUSALS = (
    ValueError,
    svp.SchemaError,
    svp.NotTrainedError,
    svp.UnknownPerturbationError,
    svp.LeakError,
)


def keys_of(screen: AnnData) -> ScreenKeys:
    """Return where a simulated screen holds conditions and contexts."""
    return replace(default_keys(screen), context=tuple(CONTEXT))


def attempt(make: Callable[[], Any]) -> Any:
    """Return an output, or the name of the error with which it is refused."""
    try:
        return make()
    except REFUSALS as error:
        return f"refused: {type(error).__name__}"


# Screens ------------------------------------------------------------------------------------


@cache
def make_screen(**changes: Any) -> AnnData:
    """Return a small screen; whoever edits it copies it first."""
    config = {
        "n_perturbations": 5,
        "n_unseen": 1,
        "n_combinations": 4,
        "n_contexts": 2,
        "n_batches": 2,
        "library_size": 400.0,
        "control_fraction": 0.3,
        "interaction_strength": 0.3,
    }
    return simulate_screen(
        n_cells=300, n_genes=24, seed=0, config=SimulatorConfig(**{**config, **changes})
    )


def dosed_screen() -> AnnData:
    return make_screen(doses=(1.0, 3.0, 10.0), n_combinations=1, n_perturbations=4)


def timed_screen() -> AnnData:
    return make_screen(doses=(1.0, 10.0), times=(6.0, 24.0), n_combinations=1, n_contexts=1)


def features_of(adata: AnnData) -> PerturbationFeatures:
    return PerturbationFeatures({"embedding": perturbation_features(adata)["embedding"]})


def table_of_effects() -> AnnData:
    """Return changes of the conditions of a screen, two noisy rows each, as data."""
    screen = make_screen()
    labels = [name for name in screen.obs["perturbation"].unique() if name != "control"]
    labels = sorted(labels) * 2
    values = np.stack([true_effect(screen, name, n_cells=50) for name in labels])
    values = values + 0.1 * np.random.default_rng(0).standard_normal(values.shape)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"row{i}" for i in range(len(labels))])
    return AnnData(values, obs=obs, var=pd.DataFrame(index=screen.var_names))


def controls(adata: AnnData, n_cells: int = 20) -> AnnData:
    return adata[(adata.obs["perturbation"] == "control").to_numpy()][:n_cells].copy()


# Simulator and splits -----------------------------------------------------------------------


def simulator() -> Outputs:
    made: Outputs = {}
    for name, screen in (("plain", make_screen()), ("doses and times", timed_screen())):
        made |= {
            f"{name}.screen": screen,
            f"{name}.features": perturbation_features(screen)["embedding"],
            f"{name}.profile": expected_profile(screen, NEW_PAIR, n_cells=100),
            f"{name}.effect": true_effect(screen, FEATURED, n_cells=100),
            f"{name}.state": state_shift(screen, SINGLE),
            f"{name}.replicate": sample_truth(screen, SINGLE, context="type_01", n_cells=40),
        }
    decoys = make_screen(n_decoy_features=3, batch_effect=0.5, responder_fraction=0.6)
    return made | {"decoys.screen": decoys, "decoys.features": perturbation_features(decoys)}


SPLITS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cells": ("cells", {}),
    "unseen combination": ("unseen_combination", {}),
    "unseen combination, fold 1": ("unseen_combination", {"fold": 1, "fraction": 0.5}),
    **{
        f"unseen combination, {n} singles": (
            "unseen_combination",
            {"options": SplitOptions(singles_seen=n)},
        )
        for n in (0, 1, 2)
    },
    "unseen combination, named": (
        "unseen_combination",
        {"options": SplitOptions(held_out=[PAIR])},
    ),
    "unseen perturbation": ("unseen_perturbation", {}),
    "unseen perturbation, clusters": (
        "unseen_perturbation",
        {"options": SplitOptions(groups={f"pert_{i:02d}": str(i // 2) for i in range(1, 6)})},
    ),
    "context transfer": ("context_transfer", {}),
    "context transfer, shown": ("context_transfer", {"options": SplitOptions(shown=0.2)}),
    "unseen context": ("unseen_context", {}),
    "unseen context, named": ("unseen_context", {"options": SplitOptions(context="type_02")}),
    "inner dose": ("dose", {}),
    "top dose": ("dose", {"fraction": 0.5, "options": SplitOptions(dose="top")}),
}


def splits() -> Outputs:
    made: Outputs = {}
    for name, (kind, options) in SPLITS.items():
        screen = dosed_screen() if kind == "dose" else make_screen()
        for seed in (0, 1):
            one = attempt(partial(split, screen, kind, seed=seed, keys=keys_of(screen), **options))
            if isinstance(one, str):
                made[f"{name}.{seed}"] = one
                continue
            made |= {
                f"{name}.{seed}.labels": one.labels().codes,
                f"{name}.{seed}.held_out": ";".join(map(str, one.held_out)),
                f"{name}.{seed}.hash": one.data_hash,
            }
    return made


# Samplers -----------------------------------------------------------------------------------


def samplers() -> Outputs:
    random = torch.Generator().manual_seed(0)
    points = torch.randn(40, 3, generator=random, dtype=torch.float64)
    others = 0.5 * torch.randn(30, 3, generator=random, dtype=torch.float64) + 1

    def denoise(x_t: torch.Tensor, t: float) -> torch.Tensor:
        return torch.tanh(x_t) * (1 - 0.5 * t) + 0.1

    def field(t: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * (1 + t)

    made: Outputs = {}
    for name, sampler in SAMPLERS.items():
        for schedule in ("cosine", "linear", "path"):
            made[f"{name}.{schedule}"] = sampler(
                denoise,
                points,
                get_schedule(schedule),
                n_evaluations=7,
                generator=torch.Generator().manual_seed(1),
            )
    for solver in SOLVERS:
        path = integrate(field, points, times=(0.0, 0.4, 1.0), n_steps=6, solver=solver)
        made[f"flow.{solver}"] = torch.stack(list(path))
    for method in ("exact", "sinkhorn", "unbalanced", "random"):
        generator = torch.Generator().manual_seed(2)
        rows = couple(points, others, method=method, generator=generator)
        made |= {f"couple.{method}.{i}": row for i, row in enumerate(rows)}
    for name, theta in (("nb", 2.0), ("poisson", None)):
        counts = sample_counts(
            torch.exp(points),
            None if theta is None else torch.full((3,), theta, dtype=torch.float64),
            generator=torch.Generator().manual_seed(3),
        )
        made[f"counts.{name}"] = counts
    return made


# Metrics ------------------------------------------------------------------------------------


@cache
def _comparisons() -> dict[str, list[Comparison]]:
    """Return replicates of three conditions as predictions: of normalised cells, and of counts."""
    screen = make_screen()
    labels = [SINGLE, PAIR, FEATURED]
    draw = partial(sample_truth, screen, n_cells=60)
    read = {
        "cells": lambda adata: CellPopulation.from_cells(np.log1p(adata.X.toarray())),
        "counts": lambda adata: CellPopulation.from_counts(adata.X),
    }
    made = {}
    for name, population in read.items():
        control = population(draw("control", seed=1))
        real = [population(draw(label, seed=2)) for label in labels]
        predicted = [population(draw(label, seed=3)) for label in labels]
        targeted = np.zeros(screen.n_vars, bool)
        targeted[[2, 5]] = True
        truth = GroundTruth(
            control,
            control,
            space=Space.fit(control.cells, n_components=5, n_states=3, n_genes=12),
            panel=Panel(np.stack([one.mean - control.mean for one in real]), targeted),
            centre=0.3 * np.mean([one.mean - control.mean for one in real], axis=0),
            energy_scale=(0.1, 2.0),
            n_top=8,
            max_cells=40,
        )
        truths = [
            replace(truth, observed=one, name=label, place=i, own_genes=(2, 5)[: i % 3])
            for i, (label, one) in enumerate(zip(labels, real, strict=True))
        ]
        made[name] = [
            Comparison(replace(one, effect_std=np.sqrt(one.mean_variance) + 0.1, nll=50.0 + i), of)
            for i, (one, of) in enumerate(zip(predicted, truths, strict=True))
        ]
    return made


def metrics() -> Outputs:
    made: Outputs = {}
    for name, cases in _comparisons().items():
        scores = score_all(cases)
        ours = scores[scores["metric"].isin(list(OWN_METRICS))]
        for metric, rows in ours.groupby("metric"):
            columns = ["numerator", "denominator", "value"]
            made[f"{name}.{metric}"] = rows[columns].to_numpy(float)
        made[f"{name}.energy distance"] = np.array([case.energy for case in cases])
    return made


# Predictors ---------------------------------------------------------------------------------

#: Screens on which predictors are fitted: data, kind of split, and what is asked for.
SCENARIOS: Mapping[str, tuple[Callable[[], AnnData], str | None, dict[str, list[Any]]]] = {
    "unseen combination": (
        make_screen,
        "unseen_combination",
        {"perturbation": [SINGLE, NEW_PAIR], "cell_type": ["type_01", "type_02"]},
    ),
    "unseen perturbation": (
        make_screen,
        "unseen_perturbation",
        {"perturbation": [FEATURED, "pert_05"], "cell_type": ["type_01", "type_02"]},
    ),
    "unseen context": (
        make_screen,
        "unseen_context",
        {"perturbation": [SINGLE, PAIR], "cell_type": ["type_01", "type_02"]},
    ),
    "dose": (
        dosed_screen,
        "dose",
        {
            "perturbation": [SINGLE, SINGLE, "pert_02"],
            "dose": ["1", "2", "10"],
            "cell_type": ["type_01", "type_02", "type_01"],
        },
    ),
    "effects": (table_of_effects, None, {"perturbation": [PAIR, NEW_PAIR]}),
}
#: Other arguments of the constructor, and the scenario on which they are tried.
VARIANTS: Mapping[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "context_mean": (
        ("unseen context", {"over": "perturbations"}),
        ("unseen context", {"over": "all"}),
    ),
    "dose_line": (("dose", {"form": "hill"}),),
    "condition_gp": (
        ("unseen combination", {"n_components": 3}),
        ("unseen perturbation", {"leave_out": "perturbation"}),
    ),
    "stacked_mean": (("unseen perturbation", {"contrast": 2.0}),),
    "negative_binomial_mean": (("unseen combination", {"dispersion_from": "all"}),),
}


def predictor(name: str) -> Outputs:
    """Return what a predictor answers to each scenario, and its variants."""
    made: Outputs = {}
    for scenario in SCENARIOS:
        made |= _asked(name, scenario, {})
    for i, (scenario, options) in enumerate(VARIANTS.get(name, ())):
        found = _asked(name, scenario, options)
        made |= {f"variant {i}, {key}": value for key, value in found.items()}
    if "profile" in inspect.signature(PREDICTORS[name]).parameters:
        found = _asked(name, "unseen combination", {"profile": "cell_mean"})
        made |= {f"cell mean, {key}": value for key, value in found.items()}
    return made


def _asked(name: str, scenario: str, options: dict[str, Any]) -> Outputs:
    takes = inspect.signature(PREDICTORS[name]).parameters
    if "features" in takes:
        options = {"features": features_of(make_screen()), **options}
    if "n_folds" in takes:
        options = {"n_folds": 3, **options}
    if scenario == "effects":
        if "profile" not in takes:
            return {}
        options = {"profile": "effects", **options}
    fitted = attempt(lambda: _fitted(PREDICTORS[name](**options), scenario))
    return {f"{scenario}.fit": fitted} if isinstance(fitted, str) else _answers(fitted, scenario)


def _fitted(made: Any, scenario: str) -> Any:
    load, kind, _ = SCENARIOS[scenario]
    adata = load()
    if kind is None:
        return made.fit(adata)
    parts = split(adata, kind, seed=0, keys=keys_of(adata))
    return made.fit(adata, parts, keys=keys_of(adata))


def _answers(fitted: Any, scenario: str) -> Outputs:
    load, kind, columns = SCENARIOS[scenario]
    asked = pd.DataFrame(columns)
    made = {f"{scenario}.predict": _each(fitted.predict, asked)}
    if kind == "unseen_combination":
        reference = controls(load())
        made["reference.predict"] = _each(partial(fitted.predict, reference=reference), asked)
    if hasattr(fitted, "sample"):
        made[f"{scenario}.sample"] = _each(partial(fitted.sample, n_samples=30, seed=1), asked)
    for table in ("weights_", "calibration_", "hyperparameters_"):
        if hasattr(fitted, table):
            made[f"{scenario}.{table}"] = getattr(fitted, table)
    return made


def _each(verb: Callable[[pd.DataFrame], AnnData], asked: pd.DataFrame) -> Any:
    """Return what a verb answers to a request, row by row where it refuses the whole."""
    answer = attempt(lambda: verb(asked))
    if not isinstance(answer, str):
        return answer
    return {str(i): attempt(lambda i=i: verb(asked.iloc[[i]])) for i in range(len(asked))}


def other_predictors() -> Outputs:
    """Return answers of the predictors that are made of others, or of a table."""
    p = svp.predictors
    members = {"additive": p.Additive(), "matching_mean": p.MatchingMean()}
    made = {
        "first known": p.FirstKnown(p.Additive(), p.ContextMean("perturbations")),
        "stack of two": p.StackedMean(members=members, n_folds=3),
        "shifted": p.ShiftedControl(p.Additive(profile="cell_mean")),
        "negative binomial": p.NegativeBinomialMean(p.Additive()),
    }
    outputs: Outputs = {}
    for name, one in made.items():
        found = _answers(_fitted(one, "unseen combination"), "unseen combination")
        outputs |= {f"{name}.{key}": value for key, value in found.items()}
    given = p.ExternalMeans(given_table(make_screen())).fit(
        make_screen(), keys=ScreenKeys(context=CONTEXT)
    )
    outputs |= {f"given.{key}": value for key, value in _answers(given, "unseen context").items()}
    drawn = p.SampledSignatures(features_of(make_screen())).fit(table_of_effects())
    return outputs | {f"drawn.{key}": value for key, value in _answers(drawn, "effects").items()}


def given_table(screen: AnnData) -> AnnData:
    """Return a table of changes that somebody predicted: the true ones."""
    labels = ["control", SINGLE, PAIR, NEW_PAIR, FEATURED]
    changes = np.stack([true_effect(screen, name, n_cells=50) for name in labels])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"given{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=screen.var_names)
    return AnnData(np.zeros_like(changes), obs=obs, var=var, layers={"lfc": changes})


# Benchmark ----------------------------------------------------------------------------------


def _stack(setting: Any) -> Any:
    cls = PREDICTORS["stacked_mean"]
    return cls(setting.features, seed=setting.seed, profile=setting.profile)


def benchmark() -> Outputs:
    """Return the scores of the trivial methods and of the stack in a small study."""
    b = svp.benchmark
    tasks = tuple(
        b.Task(
            name=kind,
            load=make_screen,
            kind=kind,
            keys=ScreenKeys(context=tuple(CONTEXT)),
            n_folds=2,
        )
        for kind in ("unseen_combination", "context_transfer")
    )
    stack = b.Method(name="stacked_mean", title="StackedMean", make=_stack)
    methods = (*b.TRIVIAL, stack)
    with tempfile.TemporaryDirectory() as folder:
        results = b.run(b.Study(tasks=tasks, methods=methods, seeds=(0,), max_folds=1), folder)
        frame, status = results.frame(), results.status()
    made: Outputs = {"status": status[["task", "method", "status"]]}
    made["rows"] = frame[["task", "method", "condition", "metric"]]
    for metric, rows in frame.groupby("metric", sort=False):
        made[f"value.{metric}"] = rows["value"].to_numpy()
    for metric, rows in b.summarize(frame).groupby("metric", sort=False):
        made[f"summary.{metric}"] = rows.select_dtypes("floating").to_numpy()
    return made


# Models -------------------------------------------------------------------------------------

_NETWORK = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 5}
_SIZE = {"n_latent": 4, "n_hidden": 16, "n_layers": 1}
_CAUSAL = {"n_identity": 3, "n_state": 3, "n_technical": 2}
_CPU = {"accelerator": "cpu", "enable_progress_bar": False}
_METADATA = {"identity": ["tissue", "age"], "technical": "platform"}
_DIFFUSION, _FLOW, _HYBRID, _VAE = (
    "PerturbDiffusion",
    "PerturbFlow",
    "HybridResidualModel",
    "CausalPerturbVAE",
)


def _causal(**options: Any) -> dict[str, Any]:
    return {"causal": CausalConfig(**{**_CAUSAL, **options})}


#: Models and their variants: the class, and arguments of the constructor beside the small ones.
#: "setup" and "split" are not of the constructor: columns, and the kind of split trained on.
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "diffusion": (_DIFFUSION, {"split": "unseen_perturbation"}),
    "diffusion, log1p": (_DIFFUSION, {"space": "log1p"}),
    "diffusion, counts": (
        _DIFFUSION,
        {"space": "counts", "diffusion": DiffusionConfig(n_bins=8, **_NETWORK)},
    ),
    "diffusion, linear": (
        _DIFFUSION,
        {
            "decoder": "linear",
            "likelihood": "poisson",
            "dispersion": "gene-batch",
            "diffusion": DiffusionConfig(reference="population", schedule="linear", **_NETWORK),
        },
    ),
    "diffusion, attention": (
        _DIFFUSION,
        {
            "likelihood": "zinb",
            "dispersion": "gene-cell",
            "diffusion": DiffusionConfig(
                combine="attention",
                context_embedding=True,
                reference="none",
                parameterisation="eps",
                **_NETWORK,
            ),
        },
    ),
    "diffusion, doses and times": (_DIFFUSION, {"setup": {"dose_key": "dose", "time_key": "time"}}),
    "flow": (_FLOW, {}),
    "flow, noise": (
        _FLOW,
        {"flow": FlowConfig(source="noise", times="logit-normal", **_NETWORK)},
    ),
    "flow, coupling": (
        _FLOW,
        {"flow": FlowConfig(source="noise", kind="coupling", n_transforms=2, **_NETWORK)},
    ),
    "flow, unbalanced": (
        _FLOW,
        {"likelihood": "normal", "flow": FlowConfig(coupling="unbalanced", **_NETWORK)},
    ),
    "hybrid": (_HYBRID, {"split": "unseen_combination"}),
    "hybrid, refits": (
        _HYBRID,
        {"split": "unseen_combination", "n_refits": 2, "generator": FlowConfig(**_NETWORK)},
    ),
    "hybrid, given means": (_HYBRID, {"mean": "given", "likelihood": "normal"}),
    "hybrid, predictor": (_HYBRID, {"mean": "additive", "split": "unseen_combination"}),
    "causal": (_VAE, {"setup": {"metadata_keys": _METADATA}}),
    "causal, normal mixture": (
        _VAE,
        {"likelihood": "normal", **_causal(prior="mixture", n_components=3)},
    ),
    "causal, flow and adversary": (
        _VAE,
        {
            "likelihood": "zinb",
            "dispersion": "gene-cell",
            **_causal(prior="flow", independence="adversary"),
        },
    ),
    "causal, linear": (
        _VAE,
        {
            "decoder": "linear",
            "likelihood": "poisson",
            **_causal(independence="total_correlation", free_bits=0.5, responders=False),
        },
    ),
    "causal, doses and times": (_VAE, {"setup": {"dose_key": "dose", "time_key": "time"}}),
}


def model(name: str) -> Outputs:
    """Train a small model and return what each of its verbs gives."""
    class_name, options = MODELS[name]
    setup, adata = options.get("setup", {}), _screen_of(name)
    trained = _trained(class_name, adata, options)
    columns: dict[str, list[Any]] = {
        "perturbation": [SINGLE, PAIR, NEW_PAIR, FEATURED, "control"],
        "cell_type": ["type_01", "type_01", None, "type_01", "type_01"],
    }
    if "dose_key" in setup:
        columns |= {"dose": ["1", "10+10", "10+1", "5", None], "time": [6.0, 24.0, 6.0, 12.0, 24.0]}
    asked = pd.DataFrame(columns)
    if options.get("mean") == "additive":  # which has no use for features
        asked = asked[asked["perturbation"] != FEATURED].reset_index(drop=True)
    made = {"history": {key: table.to_numpy(float) for key, table in trained.history.items()}}
    for verb, call in VERBS.items():
        if hasattr(trained, verb.split(",")[0]):
            made[verb] = attempt(lambda call=call: call(trained, asked))
    return made | _tools(trained, asked)


def _screen_of(name: str) -> AnnData:
    setup = MODELS[name][1].get("setup", {})
    adata = (timed_screen() if "dose_key" in setup else make_screen()).copy()
    if "metadata_keys" in setup:
        random = np.random.default_rng(0)
        first = (adata.obs["cell_type"] == "type_01").to_numpy()
        tissue = pd.Series(np.where(first, "blood", "skin"), index=adata.obs_names)
        adata.obs["tissue"] = pd.Categorical(tissue.mask(random.random(len(tissue)) < 0.2))
        adata.obs["age"] = np.where(first, 30.0, 60.0) + random.standard_normal(len(first))
        adata.obs["platform"] = np.where(np.arange(len(first)) % 2, "10x", "drop")
    return adata


def _trained(class_name: str, adata: AnnData, options: dict[str, Any]) -> Any:
    cls = getattr(svp.model, class_name)
    cls.setup_anndata(adata, context_keys=CONTEXT, batch_key="batch", **options.get("setup", {}))
    small: dict[str, dict[str, Any]] = {
        _DIFFUSION: {**_SIZE, "diffusion": DiffusionConfig(**_NETWORK)},
        _FLOW: {**_SIZE, "flow": FlowConfig(**_NETWORK)},
        _HYBRID: {**_SIZE, "generator": DiffusionConfig(**_NETWORK)},
        _VAE: {"n_hidden": 16, "n_layers": 1, **_causal()},
    }
    init = {key: value for key, value in options.items() if key not in ("setup", "split")}
    if "mean" in init:
        own = {"given": given_table(adata), "additive": PREDICTORS["additive"]()}
        init["mean"] = own[init["mean"]]
    made = cls(adata, features=features_of(adata), **{**small[class_name], **init})
    train = {"max_epochs": 2, "batch_size": 64, **_CPU}
    if class_name != _VAE:
        train["n_steps"] = 10
    if "split" in options:
        train["split"] = split(adata, options["split"], seed=1, keys=keys_of(adata))
    made.train(**train)
    return made


#: What is asked of each model that has the verb, by the verb; after a comma, of what.
VERBS: Mapping[str, Callable[[Any, pd.DataFrame], Any]] = {
    "sample": lambda m, asked: m.sample(asked, n_samples=12, seed=1),
    "sample, new controls": lambda m, asked: m.sample(
        asked, reference=controls(m.adata), n_samples=None, library_size=500.0
    ),
    "predict": lambda m, asked: m.predict(asked, n_samples=30, seed=1),
    "predict, new controls": lambda m, asked: m.predict(
        asked, reference=controls(m.adata), n_samples=20, interval=0.5
    ),
    "predict_mean": lambda m, asked: m.predict_mean(asked, n_samples=20),
    "predict_with_confidence": lambda m, asked: _fields(
        m.predict_with_confidence(asked, level=0.8, n_samples=20)
    ),
    "mean_weights_": lambda m, _: m.mean_weights_,
    "calibration_": lambda m, _: m.calibration_,
    "get_latent_representation": lambda m, _: m.get_latent_representation(),
    "get_perturbation_representation": lambda m, _: m.get_perturbation_representation(),
    "get_loadings": lambda m, _: m.get_loadings(),
    "log_likelihood_bound": lambda m, _: m.log_likelihood_bound(_measured(m), n_samples=4, seed=1),
    "posterior_predictive_sample": lambda m, _: m.posterior_predictive_sample(
        n_samples=2, indices=range(20), seed=1
    ),
    "anomaly_scores": lambda m, _: m.anomaly_scores(_measured(m)),
    "latent_log_density": lambda m, _: m.latent_log_density(_measured(m), seed=1),
    "latent_log_density, control": lambda m, _: m.latent_log_density(
        _measured(m), condition="control", n_probes=2, seed=1
    ),
    "transport": lambda m, asked: m.transport(controls(m.adata), _two(asked), seed=1),
    "transport, mean": lambda m, asked: m.transport(
        controls(m.adata), _two(asked), output="mean", sampler="rk4"
    ),
    "invert": lambda m, _: m.invert(_measured(m), output="mean", seed=1),
    "trajectory": lambda m, asked: m.trajectory(_two(asked), [0.0, 0.5, 1.0], n_samples=10),
    "counterfactual": lambda m, asked: m.counterfactual(
        controls(m.adata), _anywhere(asked), seed=1
    ),
    "counterfactual, mean": lambda m, asked: m.counterfactual(
        _measured(m), _anywhere(asked), output="mean"
    ),
    "get_perturbation_effects": lambda m, _: m.get_perturbation_effects(),
    "get_perturbation_effects, contexts": lambda m, asked: m.get_perturbation_effects(
        _anywhere(asked), by_context=True, interval=0.5
    ),
    "interpolate": lambda m, _: m.interpolate("control", SINGLE, n_steps=3, n_samples=10),
    "transfer": lambda m, asked: m.transfer(controls(m.adata), _two(asked), n_samples=10),
    "predict_metadata": lambda m, _: m.predict_metadata(_measured(m)),
}


def _two(asked: pd.DataFrame) -> pd.DataFrame:
    return asked.iloc[[0, 2]].reset_index(drop=True)


def _anywhere(asked: pd.DataFrame) -> pd.DataFrame:
    return _two(asked).drop(columns="cell_type")


def _measured(trained: Any) -> AnnData:
    """Return some cells of a condition that was trained on, and some control cells."""
    adata = trained.adata
    label = adata.obs["perturbation"].to_numpy()
    chosen = [np.flatnonzero(label == name)[:8] for name in (SINGLE, "control")]
    return adata[np.concatenate(chosen)].copy()


def _fields(confidence: Any) -> Outputs:
    names = ("mean", "std", "lower", "upper", "cell_lower", "cell_upper")
    return {name: getattr(confidence, name) for name in names}


def _tools(trained: Any, asked: pd.DataFrame) -> Outputs:
    """Return what `tl` writes, and what only some models can be asked."""
    predicted = trained.predict(asked, n_samples=10)
    made: Outputs = {"tl.effects": attempt(lambda: svp.tl.effects(predicted, n_genes=5))}
    for name in ("score_cells", "response_score"):
        cells = _measured(trained)
        before = set(cells.obs)
        refused = attempt(partial(getattr(svp.tl, name), trained, cells, n_samples=4))
        made[f"tl.{name}"] = refused or cells.obs[sorted(set(cells.obs) - before)]
    if "sampler" in inspect.signature(trained.sample).parameters and "time" not in asked:
        for method in dict.fromkeys((*SAMPLERS, *SOLVERS)):
            made[f"sample, {method}"] = attempt(partial(_drawn_by, trained, asked, method))
    if "metadata" in inspect.signature(trained.sample).parameters:
        rows = pd.DataFrame({"cell_type": ["type_01", None], "perturbation": [SINGLE, None]})
        made["sample, metadata"] = attempt(lambda: trained.sample(metadata=rows, n_samples=8))
    return made


def _drawn_by(trained: Any, asked: pd.DataFrame, method: str) -> Any:
    config = SamplerConfig(method, n_evaluations=5, guidance_scale=1.3)
    return trained.sample(_two(asked), n_samples=8, sampler=config).X


def signatures() -> Outputs:
    """Return what the causal model says of a table of changes, which has no cells."""
    adata = table_of_effects()
    adata.X = adata.X.astype(np.float32)
    cls = svp.model.CausalPerturbVAE
    cls.setup_signatures(adata)
    trained = cls(adata, n_hidden=16, n_layers=1, **_causal())
    trained.train(2, batch_size=8, **_CPU)
    return {
        "predict": trained.predict([SINGLE, NEW_PAIR]),
        "latent": trained.get_latent_representation(),
        "effects": trained.get_perturbation_effects(),
    }


def from_scvi() -> Outputs:
    """Return what a model says whose representation is a trained scVI."""
    import scvi

    adata = make_screen().copy()
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    own = scvi.model.SCVI(adata, n_latent=4, n_hidden=16, n_layers=1)
    own.train(2, batch_size=64, **_CPU)
    # Other tests find no seed, nor do the processes that they start.
    scvi.settings.seed = None
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
    svp.model.PerturbDiffusion.setup_anndata(adata, context_keys=CONTEXT, batch_key="batch")
    config = DiffusionConfig(**_NETWORK)
    made = svp.model.PerturbDiffusion.from_scvi_model(own, adata=adata, diffusion=config)
    made.train(n_steps=10, batch_size=64, **_CPU)
    asked = [SINGLE, NEW_PAIR]
    return {
        "latent": made.get_latent_representation(),
        "predict": made.predict(asked, n_samples=20),
        "sample": made.sample(asked, n_samples=8),
    }


#: Every group of outputs by name.
GROUPS: Mapping[str, Callable[[], Outputs]] = {
    "simulator": simulator,
    "splits": splits,
    "samplers": samplers,
    "metrics": metrics,
    **{f"predictor {name}": partial(predictor, name) for name in PREDICTORS},
    "predictors of others": other_predictors,
    "benchmark": benchmark,
    **{f"model {name}": partial(model, name) for name in MODELS},
    "model causal, signatures": signatures,
    "model diffusion, from scVI": from_scvi,
}
