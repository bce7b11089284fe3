"""The models that every contract test runs on, each small enough to be trained in a second.

A new model is one entry here; no test is written for it.
"""

from __future__ import annotations

from dataclasses import replace

from scvi_perturb import (
    CausalConfig,
    CausalPerturbVAE,
    DiffusionConfig,
    FlowConfig,
    HybridResidualModel,
    PerturbDiffusion,
    PerturbFlow,
)
from scvi_perturb.generative import SAMPLERS, SOLVERS
from scvi_perturb.predictors import Additive
from scvi_perturb.testing import ModelCase, make_screen

__all__ = ["APART", "MODELS", "TRAINED", "make_searchable"]

CPU = {"accelerator": "cpu", "enable_progress_bar": False}
_NETWORK = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 5}

_SIZE = {"n_latent": 4, "n_hidden": 16, "n_layers": 1}
_GROUPS = {"n_identity": 3, "n_state": 3, "n_technical": 2}
_SHORT = {"max_epochs": 2, "n_steps": 10, "batch_size": 64, **CPU}
_LARGER = {"n_latent": 8, "n_hidden": 32}
_LONGER = {"max_epochs": 60, "n_steps": 400, "batch_size": 128, **CPU}

MODELS = (
    ModelCase(
        PerturbDiffusion,
        samplers=tuple(SAMPLERS),
        init={**_SIZE, "diffusion": DiffusionConfig(**_NETWORK)},
        train=_SHORT,
        stages=("representation", "generator"),
        selected=("representation",),
        accurate=({**_LARGER, "diffusion": DiffusionConfig(width=32, n_blocks=2)}, _LONGER),
        searched={"n_steps": None},
        variants={
            "log1p": {"space": "log1p"},
            "linear": {"decoder": "linear"},
            "zinb": {"likelihood": "zinb", "dispersion": "gene-cell"},
            "poisson": {"likelihood": "poisson", "dispersion": "gene-batch"},
            "population": {"diffusion": DiffusionConfig(reference="population", **_NETWORK)},
            "none": {"diffusion": DiffusionConfig(reference="none", **_NETWORK)},
            "counts": {"space": "counts", "diffusion": DiffusionConfig(n_bins=8, **_NETWORK)},
            "attention": {
                "diffusion": DiffusionConfig(
                    combine="attention", context_embedding=True, n_condition=8, width=16, n_blocks=1
                )
            },
        },
        units={"log1p": "log1p(counts per 10,000)"},
        without_likelihood=("counts",),
    ),
    ModelCase(
        HybridResidualModel,
        samplers=tuple(SAMPLERS),
        init={**_SIZE, "generator": DiffusionConfig(**_NETWORK)},
        train=_SHORT,
        stages=("representation", "generator"),
        selected=("representation",),
        accurate=({**_LARGER, "generator": DiffusionConfig(width=32, n_blocks=2)}, _LONGER),
        searched={"n_steps": None},
        variants={
            "normal": {"likelihood": "normal"},
            "zinb": {"likelihood": "zinb"},
            "refits": {"n_refits": 2},
            "flow": {"generator": FlowConfig(**_NETWORK)},
        },
        units={"normal": "log1p(counts per 10,000)"},
    ),
    ModelCase(
        PerturbFlow,
        init={**_SIZE, "flow": FlowConfig(**_NETWORK)},
        train=_SHORT,
        stages=("representation", "generator"),
        selected=("representation",),
        accurate=({**_LARGER, "flow": FlowConfig(width=32)}, _LONGER),
        searched={"n_steps": None},
        variants={
            "noise": {"flow": FlowConfig(source="noise", times="logit-normal", **_NETWORK)},
            "coupling": {
                "flow": FlowConfig(source="noise", kind="coupling", n_transforms=2, **_NETWORK)
            },
            "unbalanced": {"flow": FlowConfig(coupling="unbalanced", **_NETWORK)},
            "normal": {"likelihood": "normal"},
            "zinb": {"likelihood": "zinb"},
        },
        units={"normal": "log1p(counts per 10,000)"},
        samplers=("heun", *(name for name in SOLVERS if name != "heun")),
    ),
    ModelCase(
        CausalPerturbVAE,
        init={"n_hidden": 16, "n_layers": 1, "causal": CausalConfig(**_GROUPS)},
        train={"max_epochs": 2, "batch_size": 64, **CPU},
        stages=("representation",),
        selected=("representation",),
        accurate=({"n_hidden": 32}, {"max_epochs": 60, "batch_size": 128, **CPU}),
        variants={
            "normal": {"likelihood": "normal"},
            "linear": {"decoder": "linear"},
            "zinb": {"likelihood": "zinb", "dispersion": "gene-cell"},
            "poisson": {"likelihood": "poisson"},
            "mixture": {"causal": CausalConfig(prior="mixture", n_components=3, **_GROUPS)},
            "flow": {"causal": CausalConfig(prior="flow", **_GROUPS)},
            "adversary": {"causal": CausalConfig(independence="adversary", **_GROUPS)},
            "total correlation": {
                "causal": CausalConfig(
                    independence="total_correlation", free_bits=0.5, responders=False, **_GROUPS
                )
            },
        },
        units={"normal": "log1p(counts per 10,000)"},
        samplers=(),
    ),
)

#: All but `PerturbFlow`, which is trained as `PerturbDiffusion` is.
APART = tuple(case for case in MODELS if case.model is not PerturbFlow)
#: The same for tests that train again and again: one predictor of the mean stands for the stack.
TRAINED = tuple(
    replace(case, init=case.init | {"mean": Additive(profile="pseudobulk")})
    if case.model is HybridResidualModel
    else case
    for case in APART
)


def make_searchable():
    """Return a screen with combinations enough to hold some out, with cells enough each."""
    return make_screen(n_cells=360, n_perturbations=4, n_combinations=4, n_contexts=1)
