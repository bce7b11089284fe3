"""Parts by name: models, predictors, metrics, commands and so on, ours and those of others.

Our own parts are listed here by where they are defined, and imported when they are first used. A
package that brings another names it in its `pyproject.toml`, and nothing here changes::

    [project.entry-points."scvi_perturb.models"]
    ShiftVAE = "my_package:ShiftVAE"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Generic, Literal, TypeVar

__all__ = ["KINDS", "Registry", "UnknownNameError", "registry"]

T = TypeVar("T")

Kind = Literal["commands", "generators", "methods", "metrics", "models", "predictors", "samplers"]

_PREDICTORS = "scvi_perturb.predictors"
#: Our own parts: `module:attribute` by name, or the module and attribute of a mapping of them.
_OWN: Final[dict[str, dict[str, str] | str]] = {
    "models": {
        "CausalPerturbVAE": "scvi_perturb.model.causal.model:CausalPerturbVAE",
        "HybridResidualModel": "scvi_perturb.model.hybrid.model:HybridResidualModel",
        "PerturbDiffusion": "scvi_perturb.model.diffusion:PerturbDiffusion",
        "PerturbFlow": "scvi_perturb.model.flow.model:PerturbFlow",
    },
    "generators": {
        "diffusion": "scvi_perturb.module.diffusion:DiffusionConfig",
        "flow": "scvi_perturb.module.flow:FlowConfig",
    },
    "samplers": {
        "heun": "scvi_perturb.generative.samplers:heun",
        "dpm++2m": "scvi_perturb.generative.samplers:dpm_solver_2m",
        "ddim": "scvi_perturb.generative.samplers:ddim",
        "euler-maruyama": "scvi_perturb.generative.samplers:euler_maruyama",
    },
    "predictors": {
        "additive": f"{_PREDICTORS}.baselines:Additive",
        "blended_kernel_ridge": f"{_PREDICTORS}.ridge:BlendedKernelRidge",
        "condition_gp": f"{_PREDICTORS}.gaussian_process.condition_gp:ConditionGP",
        "context_mean": f"{_PREDICTORS}.baselines:ContextMean",
        "dose_line": f"{_PREDICTORS}.baselines:DoseLine",
        "feature_forest": f"{_PREDICTORS}.forest:FeatureForest",
        "kernel_ridge": f"{_PREDICTORS}.ridge:KernelRidge",
        "latent_additive": f"{_PREDICTORS}.latent_additive:LatentAdditive",
        "matching_mean": f"{_PREDICTORS}.baselines:MatchingMean",
        "nearest_cells": f"{_PREDICTORS}.cells:NearestCells",
        "nearest_perturbation": f"{_PREDICTORS}.baselines:NearestPerturbation",
        "negative_binomial_mean": f"{_PREDICTORS}.cells:NegativeBinomialMean",
        "no_change": f"{_PREDICTORS}.baselines:NoChange",
        "pca_ridge": f"{_PREDICTORS}.ridge:PCARidge",
        "shifted_control": f"{_PREDICTORS}.cells:ShiftedControl",
        "stacked_mean": f"{_PREDICTORS}.stack.stacked_mean:StackedMean",
    },
    "commands": {
        "benchmark": "scvi_perturb.cli._app:benchmark",
        "check": "scvi_perturb.cli._app:check",
        "demo": "scvi_perturb.cli._app:demo",
        "predict": "scvi_perturb.cli._app:predict",
        "report": "scvi_perturb.cli._app:report",
        "shard": "scvi_perturb.cli._app:shard",
        "train": "scvi_perturb.cli._app:train",
    },
    "metrics": "scvi_perturb.metrics:OWN_METRICS",
    "methods": "scvi_perturb.benchmark.methods:OWN_METHODS",
}
KINDS: Final = tuple(sorted(_OWN))


class UnknownNameError(KeyError, ValueError):
    """A name that no part has; the message says which are close and which there are."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """Parts of one kind by name: ours, those of installed packages, and those registered here.

    `kind`: `"models"`, `"generators"`, `"predictors"`, `"metrics"`, `"samplers"`, `"methods"` or
    `"commands"` (of the command line). The entry points of other packages are those of the group
    `scvi_perturb.<kind>`.
    """

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            from scvi_perturb._checks import check_choice

            check_choice("kind", kind, KINDS)
        self.kind = kind
        self._loaded: dict[str, Any] = {}

    @property
    def group(self) -> str:
        """Group of the entry points by which other packages add parts."""
        return f"scvi_perturb.{self.kind}"

    def register(self, name: str, part: T, *, replace: bool = False) -> None:
        """Add a part for this session.

        Raises `ValueError`: If the name is taken, unless `replace` is true.
        """
        if name in self and not replace:
            msg = f"{self.kind} has {name!r} already; choose another name, or pass replace=True."
            raise ValueError(msg)
        self._loaded[name] = part

    def unregister(self, name: str) -> None:
        """Forget a part that was registered for this session."""
        self._loaded.pop(name, None)

    def __getitem__(self, name: str) -> T:
        """Return a part, imported when it is first asked for.

        Raises `UnknownNameError`: If there is none of this name. Raises `ImportError`: If the
        package that offers it does not load; the message names both.
        """
        if name not in self._loaded:
            found = self._places().get(name)
            if found is None:
                near = get_close_matches(str(name), list(self), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                msg = f"{self.kind} has no {name!r}.{hint} It has {', '.join(sorted(self))}."
                raise UnknownNameError(msg)
            self._loaded[name] = found if not isinstance(found, EntryPoint) else _load(found)
        part: T = self._loaded[name]
        return part

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._places(), *self._loaded))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._places()

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self)})"

    def _places(self) -> dict[str, Any]:
        """Return where each part is to be had; ours come before those of other packages."""
        own = _OWN[self.kind]
        listed: Mapping[str, Any]
        if isinstance(own, str):
            listed = EntryPoint(self.kind, own, self.group).load()
        else:
            listed = {name: EntryPoint(name, where, self.group) for name, where in own.items()}
        return {**{e.name: e for e in _installed(self.group)}, **listed}


@cache
def registry(kind: Kind) -> Registry[Any]:
    """Return the registry of a kind; the same one at every call.

    Raises `ValueError`: For another kind.
    """
    return Registry(kind)


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _load(entry: EntryPoint) -> Any:  # noqa: ANN401
    try:
        return entry.load()
    except Exception as error:
        package = "scvi_perturb" if entry.dist is None else entry.dist.name
        msg = f"{entry.group} {entry.name!r} of {package} ({entry.value}) does not load: {error!r}"
        raise ImportError(msg) from error
