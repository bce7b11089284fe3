"""Bad values for each argument of each public function, and what comes of them."""

from __future__ import annotations

import inspect
import linecache
import math
import re
import resource
import signal
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import scvi_perturb
from scvi_perturb.pp import ScreenReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.hostile.world import World

PACKAGE: Final = str(Path(scvi_perturb.__file__).parent)
#: Seconds that a call may take, and bytes that all may take together.
LIMIT_S, LIMIT_BYTES = 10, 48 * 2**30
OUTCOMES: Final = ("refused", "internal", "silent", "endless")
#: Packages whose public names are tried; models are tried by their verbs.
PARTS: Final = (
    "data", "features", "generative", "metrics", "module", "pl", "pp", "predictors", "tl", "train",
    "benchmark",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A callable of the public surface, and arguments with which it works."""

    verb: str
    call: Callable[..., Any]
    good: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One bad value of one argument of a target."""

    target: Target
    argument: str
    label: str
    value: Any


@dataclass
class Report:
    """Outcomes by verb, and what was not refused."""

    table: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of bad inputs that were tried."""
        return sum(self.table.values())

    def markdown(self) -> str:
        """Return the table of outcomes, with what went wrong below it."""
        verbs = sorted({verb for verb, _ in self.table})
        total = Counter(outcome for (_, outcome), n in self.table.items() for _ in range(n))
        lines = [f"| verb | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * len(OUTCOMES)]
        for verb in verbs:
            lines.append(f"| {verb} | {' | '.join(str(self.table[verb, o]) for o in OUTCOMES)} |")
        lines.append(f"| **all {self.n}** | {' | '.join(str(total[o]) for o in OUTCOMES)} |")
        rest = [*self.wrong, *(f"does not work with good arguments: {b}" for b in self.broken)]
        return "\n".join([*lines, *(["", *(f"- {line}" for line in rest)] if rest else [])]) + "\n"


class EndlessError(BaseException):
    """A call took longer than it may; no handler of the package catches it."""


# Values -----------------------------------------------------------------------------------------

#: Values, and the kinds of argument that may take them.
POOL: Final[tuple[tuple[str, Any, str], ...]] = (
    ("None", None, "none"),
    ("True", True, "truth"),
    ("5", 5, "whole number label"),
    ("1.5", 1.5, "number label"),
    ("nan", math.nan, "missing"),
    ("inf", math.inf, "missing"),
    ("10**400", 10**400, "label"),
    ("text", "nonsense", "text path"),
    ("bytes", b"x", ""),
    ("list of text", ["nonsense"], "texts"),
    ("list of fractions", [1.5], "numbers"),
    ("list of NaN", [math.nan], ""),
    ("mapping", {"nonsense": object()}, "mapping"),
    ("object", object(), ""),
    ("array of text", np.array(["a"]), "texts"),
    ("table", pd.DataFrame({"nonsense": [1]}), "table"),
    ("AnnData", AnnData(np.ones((2, 2))), "cells"),
    ("tensor", torch.zeros(2), "tensor"),
    ("function", print, "function"),
    ("class", int, "function"),
)
#: Parts of annotations, and the kinds that they mean.
KINDS: Final[tuple[tuple[str, str], ...]] = (
    (r"\bNone\b", "none"),
    (r"\bbool\b", "truth"),
    (r"\bint\b", "whole"),
    (r"\bfloat\b|Number|LibrarySize", "number whole"),
    (r"\bPath\b|PathLike", "path"),
    (r"(?<![\[\w.])str\b(?!\])", "text"),
    (r"Sequence\[str|list\[str|Iterable\[str|tuple\[str, \.|Conditions\b|object_", "texts"),
    (r"(Sequence|tuple)\[float", "numbers"),
    (r"Mapping|\bdict\b|Sums", "mapping"),
    (r"DataFrame|Conditions\b", "table"),
    (r"AnnData|MuData", "cells"),
    (r"\bTensor\b", "tensor"),
    (r"Callable|Field\b|Classifier|Denoiser|Divergence", "function"),
)
#: Values out of range, by the name of the argument.
OUT_OF_RANGE: Final[dict[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("interval", "level", "control_fraction"), (0, 1, -0.1, 1.5)),
    "fraction": (0, -0.1, 1.5),
    **dict.fromkeys(("dropout", "ema_decay", "shown"), (1.0, -0.1)),
    **dict.fromkeys(("null_fraction", "final_lr_fraction", "feature_r2"), (1.1, -0.1)),
    **dict.fromkeys(("library_size", "target_sum", "tolerance", "gamma"), (0, -1.0)),
    **dict.fromkeys(("guidance_scale", "weight_decay", "lr", "residual"), (-1.0,)),
    "seed": (-1, 2**70, np.int64(-5)),
    "seeds": ((-1,), (0.5,)),
    "indices": ([1.5], [10**9], [-(10**9)], [[0]], {0}, ["0"], [True]),
    "n_samples": (0, -1, 10**12),
    "n_cells": (0, -1, 10**12),
    "batch_size": (0, -1),
    "n_steps": (0, -1),
    "n_evaluations": (0, -1),
    "max_epochs": (0, -1),
    "n_boot": (0, -1, 10**12),
    "fold": (-1, 10**6),
    "context_keys": ("nobody", ["cell_type", "cell_type"], [1.5], [None]),
    "conditions": (
        [],
        [""],
        [None],
        ["pert_01++pert_02"],
        ["control+"],
        {"pert_01"},
        [["pert_01"]],
    ),
    "library_key": ("batch",),
    "separator": ("",),
    "times": ([], [0.5, 0.1], [-1.0], [2.0]),
    "doses": ((), (0.0,), (1.0, 1.0)),
    "penalties": ((), (0.0,), (-1.0,)),
    "metadata_keys": ({"nonsense": ["donor"]}, {"identity": ["nobody"]}, {"identity": [1.5]}),
    "conditioning": (["nonsense"], ["identity", "identity"]),
    "fields": (["nobody"], []),
    "names": (["nobody"],),
}
#: Arguments that may be 0 or less.
_FROM_ZERO: Final = re.compile(
    r"^(seed|fold|place|row|first|second|radius|min_cells|n_refits|n_unseen|n_combinations|"
    r"n_decoy_features|n_warmup_steps|n_steps_kl_warmup|n_factors|n_other|perturbation|version)$"
)


def bad_columns(adata: AnnData) -> AnnData:
    """Return data with two columns of one name."""
    made = adata.copy()
    made.obs = pd.concat([made.obs, made.obs[["batch"]]], axis=1)
    return made


def bad_cells(adata: AnnData, *, deep: bool) -> Iterator[tuple[str, AnnData]]:
    """Yield data that no verb can take; if `deep`, of other genes and not of counts as well."""
    yield "no cells", adata[:0].copy()
    yield "no genes", adata[:, :0].copy()
    yield "a column twice", bad_columns(adata)
    if not deep:
        return
    other = adata.copy()
    other.var_names = [f"other{i}" for i in range(other.n_vars)]
    yield "other genes", other
    negative = adata.copy()
    negative.X = -negative.X
    yield "negative counts", negative


def kinds_of(annotation: str) -> set[str]:
    """Return the kinds of value that an annotation allows."""
    found = {kind for part, kinds in KINDS if re.search(part, annotation) for kind in kinds.split()}
    if "texts" in found and "Conditions" not in annotation and "str |" not in annotation:
        found -= {"text"} if not re.search(r"(^|\| )str\b", annotation) else set()
    return found


def _bad_data(world: World, verb: str, name: str, kinds: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield data, tables and columns that cannot be taken."""
    if "cells" in kinds and not verb.startswith("pp."):
        deep = verb.partition(".")[0] in world.models or verb.endswith((".predict", ".sample"))
        yield from bad_cells(world.screen, deep=deep)
    if "table" in kinds:
        yield "empty table", pd.DataFrame()
        yield "a column twice", pd.DataFrame([["pert_01"] * 2], columns=["perturbation"] * 2)
    if name.endswith("_key") and verb.rsplit(".", maxsplit=1)[-1].startswith("setup_"):
        yield "no such column", "no such column"


def bad_values(world: World, verb: str, name: str, annotation: str) -> Iterator[tuple[str, Any]]:
    """Yield the bad values of an argument, with what they are."""
    kinds = kinds_of(annotation)
    if name in world.labels:
        kinds |= {"label"}
    if name in world.may_be_missing:
        kinds |= {"missing"}
    for label, value, allowed in POOL:
        if not kinds & set(allowed.split()):
            yield label, value
    if "whole" in kinds and "number" not in kinds:
        yield "-1", -1
        yield "numpy -1", np.int64(-1)
        if not _FROM_ZERO.match(name):
            yield "0", 0
    for value in OUT_OF_RANGE.get(name, ()):
        yield repr(value), value
    if "path" in kinds:
        yield "no name", ""
        yield "zero byte", "a\0b"
    yield from _bad_data(world, verb, name, kinds)
    if verb.startswith("metrics.") and re.search(r"Floats|Matrix", annotation):
        if name not in world.may_be_missing:
            yield "NaN", world.with_nan(verb, name)
        yield "three axes", np.zeros((2, 2, 2))


# Targets ----------------------------------------------------------------------------------------


def _good(world: World, verb: str, function: Callable[..., Any]) -> Callable[[], dict[str, Any]]:
    """Return what makes good arguments of a function, raising `KeyError` for one not known."""

    def make() -> dict[str, Any]:
        made = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            own = world.good(verb, name)
            if own is not None:
                made[name] = own
            elif parameter.default is parameter.empty:
                raise KeyError(name)
        return made

    return make


def _own(value: object) -> bool:
    return callable(value) and getattr(value, "__module__", "").startswith("scvi_perturb")


def targets(world: World) -> Iterator[Target]:
    """Yield the public surface: verbs of models, functions, constructors and their methods."""
    for name, model in world.models.items():
        yield Target(f"{name}.__init__", type(model), _good(world, f"{name}.__init__", type(model)))
        for verb, method in inspect.getmembers(model, inspect.ismethod):
            if verb.startswith("_") or not _own(method) or verb in world.skipped:
                continue
            label = f"{name}.{verb}"
            if label in world.refused:
                continue
            yield Target(label, method, _good(world, label, method))
    for part in PARTS:
        module = import_module(f"scvi_perturb.{part}")
        for name in module.__all__:
            value = getattr(module, name)
            if not _own(value) or name in world.skipped or inspect.isabstract(value):
                continue
            if isinstance(value, type) and issubclass(value, (torch.nn.Module, tuple)):
                continue
            if getattr(value, "_is_protocol", False):
                continue
            verb = f"{part}.{name}"
            yield Target(verb, value, _good(world, verb, value))
            made = world.instance(verb)
            for method, bound in inspect.getmembers(made, inspect.ismethod) if made else ():
                if not method.startswith("_") and _own(bound) and method not in world.skipped:
                    yield Target(f"{verb}.{method}", bound, _good(world, f"{verb}.{method}", bound))


def cases(world: World, chosen: list[Target]) -> Iterator[Case]:
    """Yield every bad value of every argument."""
    for target in chosen:
        for name, parameter in inspect.signature(target.call).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            annotation = str(parameter.annotation)
            if annotation in world.unchecked or name in world.skipped_arguments:
                continue
            for label, value in bad_values(world, target.verb, name, annotation):
                if not world.legal(target.verb, name, label, value):
                    yield Case(target, name, label, value)


# Running ----------------------------------------------------------------------------------------


def _late(*_: object) -> None:
    raise EndlessError


def run_call(call: Callable[..., Any], arguments: dict[str, Any], *, limit: float = LIMIT_S) -> Any:  # noqa: ANN401
    """Return what a call within a limit of time returns; what is yielded is taken too."""
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        made = call(**arguments)
        return list(made) if inspect.isgenerator(made) else made
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(error: BaseException) -> str:
    """Tell an error that a check of ours raises from one that came from within."""
    if isinstance(error, EndlessError):
        return "endless"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "internal"
    name, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    ours = name.startswith(PACKAGE) and linecache.getline(name, line).strip().startswith("raise")
    return "refused" if ours else "internal"


def try_case(case: Case) -> tuple[str, str]:
    """Return the outcome of a bad value, and the error if there was one."""
    arguments = {**case.target.good(), case.argument: case.value}
    try:
        made = run_call(case.target.call, arguments)
    except (Exception, EndlessError) as error:
        text = " ".join(str(error).split())
        return outcome(error), f"{type(error).__name__}: {text[:160]}"
    # A report tells what is wrong, and raises nothing.
    told = isinstance(made, ScreenReport) and made.problems
    return ("refused", made.problems[0]) if told else ("silent", "")


def limit_memory() -> None:
    """Let the process take no more memory than `LIMIT_BYTES`."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, hard))


def _works(target: Target, report: Report) -> bool:
    """Whether a target works with its good arguments, without which bad ones say nothing."""
    try:
        run_call(target.call, target.good(), limit=12 * LIMIT_S)
    except (Exception, EndlessError) as error:
        report.broken.append(f"{target.verb}: {type(error).__name__}: {str(error)[:150]}")
        return False
    return True


def run_surface(
    world: World,
    *,
    n: int | None = None,
    seed: int = 0,
    progress: Callable[[Case, str, str], None] | None = None,
) -> Report:
    """Try bad values of the whole surface: all, or `n` of them chosen at random.

    `progress` is told each case, its outcome and the error.
    """
    report, works = Report(), dict[str, bool]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = cases(world, list(targets(world)))
        if n is not None:
            every = list(tried)
            rows = np.random.default_rng(seed).choice(len(every), min(n, len(every)), replace=False)
            tried = iter([every[i] for i in np.sort(rows)])
        for case in tried:
            verb = case.target.verb
            if verb not in works:
                works[verb] = _works(case.target, report)
            if not works[verb]:
                continue
            found, message = try_case(case)
            report.table[verb, found] += 1
            if found != "refused":
                report.wrong.append(f"{found}: {verb}({case.argument}={case.label}) {message}")
            if progress is not None:
                progress(case, found, message)
    return report
