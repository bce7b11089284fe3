"""Checks of arguments: one set, at the entry of every public function.

`checked` reads from the annotation what an argument may be, and from `BOUNDS` how large: a name
means the same everywhere in the package.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import json
import math
import os
import pathlib
import re
import sys
import types
import typing
from numbers import Integral, Real
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

import numpy as np
import pandas as pd
import psutil
import torch
from scipy import sparse

from scvi_perturb._core import SchemaError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

T = TypeVar("T")

#: Intervals of numbers, and the arguments that lie in them; `Owner.name` goes before `name`.
_INTERVALS: Final = {
    "[0, 4294967295]": "seed seeds",  # what NumPy, torch and scikit-learn all take
    "(0, 1)": "interval level fdr control_fraction",
    "(0, 1]": "fraction",
    "[0, 1]": "null_fraction final_lr_fraction feature_r2 gene_share program_share t s "
    "condition_dropout "
    "responder_fraction escapers.threshold",
    "[0, 1)": "shown dropout identity_dropout modality_dropout metadata_dropout ema_decay",
    "(0, inf)": "library_size target_sum tolerance gamma min_snr_gamma max_frequency dose doses "
    "beta_max pseudocount penalty penalties dispersion gradient_clip SimulatorConfig.times "
    "dose_response.slope budget",
    "[0, inf)": "lr weight_decay max_kl_weight residual additivity classification contrast "
    "context_shrinkage control_invariance independence_weight operator_shrinkage sparsity "
    "free_bits guidance_scale time times beta_min effect_size batch_effect interaction_strength "
    "context_modulation context_distance identity_sd state_sd library_sd n_warmup_steps fold place "
    "row first second perturbation min_cells n_other PlanConfig.n_steps n_steps_kl_warmup "
    "rank_effects.threshold strength_sd",
    "[0, 100]": "sharpnesses",
    "(-inf, inf)": "min_control_cpm",
    "[2, inf)": "n_tuning differential_expression.min_cells compare_donors.min_cells "
    "power.n_blocks power.n_cells",
    "[-1, 1]": "cluster_perturbations.threshold",
    "[10, 1000000]": "interactions.n_boot perturbation_similarity.n_boot "
    "cluster_perturbations.n_boot enrichment.n_boot "
    "reverse.n_boot",  # a spread of few draws is none
    "[1, inf)": "ConditionGP.n_tuning buffer",
    # Sizes and repeats: beyond, nothing ends or fits into memory.
    "[1, 1000000]": "n_hidden n_latent n_condition width n_blocks n_layers n_gene head "
    "n_transforms n_neighbours n_components n_identity n_state n_technical n_evaluations n_probes "
    "n_boot n_trees n_states n_genes n_features n_perturbations n_contexts n_batches n_workers "
    "workers n_bits n_steps",
    "[0, 1000000]": "n_combinations n_unseen n_decoy_features n_refits radius n_factors",
    "[2, 1000000]": "n_folds n_bins",
    "[2, 32]": "DiffusionConfig.n_bins",  # a mean over more bins is not exact
}
#: Bounds by the name of an argument, or by function and name.
BOUNDS: Final = {name: ends for ends, names in _INTERVALS.items() for name in names.split()}

#: Numbers and arrays in which NaN stands for a missing value.
MAY_BE_MISSING: Final = {
    "std",
    "effect_std",
    "pit",
    "value",
    "changes",
    "centre",
    "best",
    "nll",
    "observed_variance",
    "control_variance",
    "mean_variance",
}

#: Text that may be empty.
MAY_BE_EMPTY: Final = {"kind", "message", "value", "dose", "paper", "fingerprint"}

#: What else an argument may be, where the function converts it or checks it with advice of its own.
GIVEN_AS: Final[dict[str, Any]] = {
    "ScreenKeys.context": "str | Sequence[str] | None",
    "SplitOptions.context": "float | Mapping | Sequence[str | float | Mapping]",
    "SplitOptions.groups": "Mapping",  # names the one whose value is missing
    **dict.fromkeys(
        (
            "molecular_descriptors.smiles",
            "molecular_fingerprints.smiles",
            "murcko_scaffolds.smiles",
        ),
        "Mapping",
    ),
    "Results.folder": "str | Path",
    "OperatorMixin.counterfactual.conditions": "Mapping",  # checks the weights
    "OperatorMixin.get_perturbation_effects.names": "Mapping",
    # Their own error names the model to use.
    **dict.fromkeys(
        ("PerturbDiffusion.diffusion", "PerturbFlow.flow", "HybridResidualModel.generator"),
        "object",
    ),
    "SplitOptions.held_out": "str | Sequence[str | float] | None",
    **dict.fromkeys(("Split.train", "Split.validation", "Split.test"), "Sequence[int]"),
    "Split.held_out": "Sequence[dict]",
    "Checkpoint.path": "str | Path",
    **dict.fromkeys(("Record.cost", "Record.curves", "Record.scores"), "dict"),
    **dict.fromkeys(("fit_stage.model", "StageRunner.model"), "object"),
    **dict.fromkeys(
        (
            "training_history.model",
            "training_curves.model",
            "study_report.model",
            "response_score.model",
            "score_cells.model",
        ),
        "PerturbationModel",
    ),
    **dict.fromkeys(("control", "control_label"), "str | float"),  # labels may be numbers
}


def _named(name: str) -> type:
    """Return a stand-in for a class of which only the name is known."""
    return type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls), "by_name": True})


#: Where names of annotations are looked up that a module imports for types only.
_NAMES: Final[dict[str, Any]] = {
    **vars(builtins),
    **{name: getattr(typing, name) for name in typing.__all__},
    **{name: getattr(collections.abc, name) for name in collections.abc.__all__},
    "Path": pathlib.Path,
    "PathLike": os.PathLike,
    "NDArray": np.ndarray,
    "np": np,
    "pd": types.SimpleNamespace(DataFrame=pd.DataFrame, Series=_named("Series")),
    "torch": torch,
    "Tensor": torch.Tensor,
    "sparse": sparse,
}
_SEQUENCES: Final = (list, tuple, collections.abc.Sequence, collections.abc.Collection)
_ITERABLES: Final = (*_SEQUENCES, collections.abc.Iterable)
#: Of what holds cells, by the names of its classes: AnnData may also be a collection of files.
_CELLS: Final = {"AnnData": {"AnnData", "AnnCollection", "CollectionAdapter"}}


class _Namespace(dict[str, Any]):
    """Names in annotations: of the module, of types, of the package, or only the name itself."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        found = _NAMES["pd"] if name == "pd" else super().__getitem__(name)
        alias = isinstance(found, str) and name[:1].isupper() and not name.isupper()
        return _hint(found, self) if alias else found

    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        if name in _NAMES:
            return _NAMES[name]
        folder = str(self.get("__name__")).rpartition(".")[0]
        loaded = [m for key, m in sys.modules.items() if key.startswith("scvi_perturb")]
        for module in sorted(loaded, key=lambda m: not m.__name__.startswith(folder)):
            if vars(module).get(name, Any) is not Any:
                return vars(module)[name]
        return _named(name)


def _hint(annotation: Any, names: Mapping[str, Any], *, also: Any = None) -> Any:  # noqa: ANN401
    """Return the type that an annotation stands for; Any where it cannot be told."""
    for _ in range(3):  # aliases may be text themselves
        if not isinstance(annotation, str):
            break
        try:
            annotation = eval(annotation, {}, _Namespace(names))
        except (AttributeError, NameError, TypeError):
            return Any
    return annotation if also is None else Union[annotation, _hint(also, names)]  # noqa: UP007


def _is_bool(value: object) -> bool:
    return isinstance(value, bool | np.bool_)


#: File systems take names of up to 255 characters.
_LONGEST_NAME: Final = 255


def _is_path(value: object) -> bool:
    if not isinstance(value, str | os.PathLike):
        return False
    longest = max(map(len, pathlib.PurePath(str(value)).parts), default=0)
    return str(value) != "" and "\0" not in str(value) and longest <= _LONGEST_NAME


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not _is_bool(value) and abs(int(value)) < 2**63


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, Real) and not _is_bool(value) and math.isfinite(value)
    except OverflowError:  # whole numbers may be larger than any float
        return False


def _is_number(value: object) -> bool:
    return _is_finite(value) or (isinstance(value, float | np.floating) and math.isnan(value))


_SIMPLE: Final[dict[Any, tuple[Callable[[Any], bool], str, str]]] = {
    bool: (_is_bool, "True or False", "truth values"),
    int: (_is_whole, "a whole number", "whole numbers"),
    float: (_is_finite, "a finite number", "finite numbers"),
    Real: (_is_number, "a number", "numbers"),
    str: (lambda value: isinstance(value, str), "text", "text"),
    types.NoneType: (lambda value: value is None, "None", "None"),
    pathlib.Path: (lambda value: isinstance(value, pathlib.Path), "a Path", "Paths"),
    os.PathLike: (_is_path, "a path", "paths"),
}


def _members(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return the alternatives of a union; text or a Path is one of them, a path."""
    if get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    flat = tuple(m for part in get_args(hint) for m in _members(part))
    paths = {pathlib.Path, os.PathLike} & {get_origin(m) or m for m in flat}
    if not paths:
        return flat
    return (*(m for m in flat if (get_origin(m) or m) not in {*paths, str}), os.PathLike)


def _fits_sequence(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:  # noqa: ANN401, PLR0911
    loose = origin in (collections.abc.Iterable, collections.abc.Collection)
    others = (str, bytes, pd.DataFrame, *(() if loose else (collections.abc.Mapping,)))
    if isinstance(value, others) or not isinstance(value, collections.abc.Iterable):
        return False
    if isinstance(value, collections.abc.Set) or not hasattr(value, "__len__"):
        known = isinstance(value, collections.abc.Set) and inner
        return loose and (not known or all(_fits(one, inner[0]) for one in value))
    if getattr(value, "ndim", 1) != 1 or isinstance(value, torch.Tensor):
        return False
    if origin is tuple and inner[1:] and inner[-1] is not Ellipsis:
        pairs = zip(value, inner, strict=False)
        return len(cast("Any", value)) == len(inner) and all(_fits(o, h) for o, h in pairs)
    element = inner[0] if inner else Any
    kinds = {int: "iub", float: "iuf"}
    if isinstance(value, np.ndarray) and element in kinds and value.dtype.kind != "O":
        return value.dtype.kind in kinds[element] and bool(np.isfinite(value).all())
    if element is int and len(cast("Any", value)) and all(map(_is_bool, value)):
        return True  # a mask
    return element is Any or all(_fits(one, element) for one in value)


def _fits_array(value: Any, inner: tuple[Any, ...]) -> bool:  # noqa: ANN401
    kinds = {"bool_": "b", "object_": "OUS"}
    wanted = next((kind for key, kind in kinds.items() if key in repr(inner)), "iufb")
    return isinstance(value, np.ndarray) and value.dtype.kind in wanted


def _same(value: object, choice: object) -> bool:
    """Whether a value is a choice: text or a whole number, of whatever type."""
    if _is_bool(choice):
        return value is choice
    alike = isinstance(value, str) if isinstance(choice, str) else _is_whole(value)
    return alike and value == choice


def _is_loose(kind: type) -> bool:
    """Whether a class is a protocol that cannot be asked for at run time."""
    return getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)


def _fits(value: Any, hint: Any) -> bool:  # noqa: ANN401, PLR0911 - a case a kind of type
    """Whether a value is what an annotation says."""
    members = _members(hint)
    if members[1:]:
        return any(_fits(value, member) for member in members)
    hint = members[0]
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint is None or hint in (Any, object):
        return value is None or hint is not None
    if origin in _SIMPLE:
        return _SIMPLE[origin][0](value)
    if origin is Literal:
        return any(_same(value, one) for one in inner)
    if origin in _ITERABLES:
        return _fits_sequence(value, origin, inner)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, collections.abc.Mapping):
            return False
        key, item = inner or (Any, Any)
        return all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if origin is np.ndarray:
        return _fits_array(value, inner)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is type:
        return isinstance(value, type)
    if not isinstance(origin, type) or _is_loose(origin):
        return True
    if getattr(origin, "by_name", False) or origin.__name__ in _CELLS:
        names = _CELLS.get(origin.__name__, {origin.__name__})
        return bool(names & {base.__name__ for base in type(value).__mro__})
    return isinstance(value, origin)


def _words(hint: Any, *, many: bool = False) -> str:  # noqa: ANN401, PLR0911
    """Return what an annotation expects, in words."""
    members = _members(hint)
    if members[1:]:
        said = list(dict.fromkeys(_words(member, many=many) for member in members))
        return " or ".join((", ".join(said[:-1]), said[-1])) if said[1:] else said[0]
    hint = members[0]
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in _SIMPLE:
        return str(_SIMPLE[origin][2 if many else 1])
    if hint is None:
        return "None"
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in _ITERABLES:
        return f"a sequence of {_words(inner[0], many=True)}" if inner else "a sequence"
    if origin in (dict, collections.abc.Mapping):
        if not inner:
            return "a mapping"
        held = "anything" if inner[1] is Any else _words(inner[1], many=True)
        return f"a mapping of {_words(inner[0], many=True)} to {held}"
    if origin is np.ndarray:
        return "a NumPy array of numbers" if "object_" not in repr(inner) else "a NumPy array"
    if origin is collections.abc.Callable:
        return "a function"
    name = getattr(origin, "__name__", str(origin))
    return name if many else f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


#: How to turn what is no .h5ad file into one.
CONVERSIONS = {
    ".h5mu": 'mudata.read_h5mu("{path}").mod["rna"].write_h5ad("screen.h5ad")',
    ".h5": 'scanpy.read_10x_h5("{path}").write_h5ad("screen.h5ad")',
    ".loom": 'anndata.io.read_loom("{path}").write_h5ad("screen.h5ad")',
    ".mtx": 'scanpy.read_10x_mtx("{path.parent}").write_h5ad("screen.h5ad")',
    ".csv": 'anndata.AnnData(pandas.read_csv("{path}", index_col=0)).write_h5ad("screen.h5ad")',
    ".tsv": 'anndata.AnnData(pandas.read_csv("{path}", sep="\\t", index_col=0))'
    '.write_h5ad("screen.h5ad")',
    ".rds": 'zellkonverter::writeH5AD(readRDS("{path}"), "screen.h5ad")',
}
CONVERSIONS |= {".txt": CONVERSIONS[".tsv"], ".h5seurat": CONVERSIONS[".rds"]}
_TEN_X = 'scanpy.read_10x_mtx("{path}").write_h5ad("screen.h5ad")'


def how_to_read(path: pathlib.Path) -> str:
    """Return what to do with a path that is no AnnData, in words."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.is_dir() and any(path.glob("matrix.mtx*")):
        return f"convert it once: {_TEN_X.format(path=path)}"
    if path.is_dir() and path.suffix != ".zarr":
        return "it is a folder: name the file in it"
    if line := CONVERSIONS.get(suffix.lower()):
        return f"convert it once, with its annotation in obs: {line.format(path=path)}"
    reader = "read_zarr" if path.suffix == ".zarr" else "read_h5ad"
    return f'read it first: adata = anndata.{reader}("{path}")'


def how_to_pass(data: object) -> str:
    """Return how to make AnnData of what was passed in its place, in words."""
    if hasattr(getattr(data, "mod", None), "keys"):
        modality = next(iter(data.mod), "rna")  # type: ignore[attr-defined]
        return (
            f"pass one modality, mdata.mod[{modality!r}], or set the model up with "
            f"setup_mudata(mdata, rna_modality={modality!r})"
        )
    if isinstance(data, str | os.PathLike):
        return how_to_read(pathlib.Path(data))
    if hasattr(data, "shape"):
        return "make one: adata = anndata.AnnData(X, obs=obs), with a row of obs for each cell"
    return "read the screen first: adata = anndata.read_h5ad(path)"


def check_bounds(argument: str, value: float, bounds: str) -> None:
    """Raise `ValueError` unless a number lies in an interval, such as "(0, 1]"."""
    low, high = (float(end) for end in bounds[1:-1].split(","))
    above = value > low if bounds[0] == "(" else value >= low
    if above and (value < high if bounds[-1] == ")" else value <= high):
        return
    start = f"above {low:.10g}" if bounds[0] == "(" else f"at least {low:.10g}"
    end = (
        f" and {'below' if bounds[-1] == ')' else 'at most'} {high:.10g}" if high < math.inf else ""
    )
    msg = f"{argument}={shown(value)} is out of range; it must be {start}{end}."
    raise ValueError(msg)


def _also(function: Callable[..., Any], name: str, annotation: object) -> object:
    """Return what an argument may be besides its annotation, or None."""
    if name in MAY_BE_MISSING and "float" in str(annotation):
        return Real
    own = GIVEN_AS.get(f"{function.__qualname__.removesuffix('.__init__')}.{name}")
    return own or (GIVEN_AS.get(name) if str(annotation).startswith("str") else None)


class Asked(NamedTuple):
    """What is asked of an argument.

    `hint`: Its type. `bounds`: Range of numbers. `measured`: Whether arrays have one or two axes
    and no NaN. `genes`: Whether cells must have genes. `blank`: Whether text may be empty.
    `several`: Whether each of `*args` is checked.
    """

    hint: Any
    bounds: str | None
    measured: bool
    genes: bool
    blank: bool
    several: bool


#: Bytes that one of them takes at the very least: its place in a plan, its name, its labels.
_BYTES: Final = {"n_samples": 100, "n_cells": 100}
#: Names of whole numbers that are at least 1, where they are not in `BOUNDS`; others are from 0.
_COUNTED: Final = re.compile(
    r"(n|max|min|every)_|k$|n$|.*(_size|_steps|_epochs|patience)$|.*_every_"
)


def _bounds(function: str, name: str, hint: object) -> str | None:
    """Return the bounds of an argument: of the function's own, of the name, or of its kind."""
    members = _members(hint)
    inside = [part for member in members for part in (member, *get_args(member))]
    if not {int, float} & {part for part in inside if isinstance(part, type)}:
        return None
    owner = function.removesuffix(".__init__")
    own = BOUNDS.get(f"{owner}.{name}", BOUNDS.get(name))
    if own is not None or int not in members:
        return own
    return "[1, inf)" if _COUNTED.match(name) else "[0, inf)"


def check_cells(argument: str, data: Any, *, genes: bool = True) -> None:  # noqa: ANN401
    """Raise `SchemaError` unless AnnData or MuData has cells, genes, and columns of one name."""
    shape = getattr(data, "shape", None)
    if shape is not None and 0 in shape[: 1 + genes]:
        msg = f"{argument} has no {'genes' if shape[0] else 'cells'}; expected at least one."
        raise SchemaError(msg)
    check_columns(f"{argument}.obs", getattr(data, "obs", None))


def check_columns(argument: str, table: object) -> None:
    """Raise `SchemaError` if a table has two columns of one name."""
    if isinstance(table, pd.DataFrame) and not table.columns.is_unique:
        twice = sorted({str(c) for c in table.columns[table.columns.duplicated()]})
        msg = f"{argument} has several columns named {', '.join(map(repr, twice))}; rename or drop."
        raise SchemaError(msg)


def check_table(argument: str, table: object) -> None:
    """Raise `SchemaError` if a table has no columns, or two of one name."""
    if isinstance(table, pd.DataFrame) and not len(table.columns):
        msg = f"{argument} is a table without columns; expected at least one."
        raise SchemaError(msg)
    check_columns(argument, table)


def check_array(argument: str, values: Any, *, finite: bool) -> None:  # noqa: ANN401
    """Raise `ValueError` unless an array has one or two axes and finite values."""
    if values.ndim not in (1, 2):
        msg = f"{argument} is of shape {values.shape}; expected one or two axes."
        raise ValueError(msg)
    stored = np.asarray(values.data if sparse.issparse(values) else values)
    n_bad = int((~np.isfinite(stored)).sum()) if finite and stored.dtype.kind == "f" else 0
    if n_bad:
        msg = f"{argument} has {n_bad} values that are not finite; drop or fill them."
        raise ValueError(msg)


def check_choice(argument: str, value: object, legal: Iterable[Any]) -> None:
    """Raise `ValueError` unless `value` is one of `legal`, naming both."""
    options = sorted(legal)
    if not any(_same(value, option) for option in options):
        legal = ", ".join(map(repr, options))
        msg = f"{argument}={shown(value)} is not known; choose one of {legal}."
        raise ValueError(msg)


def check_type(argument: str, value: object, expected: type, advice: str) -> None:
    """Raise `TypeError` unless `value` is of the expected type, with advice on what to do."""
    if not isinstance(value, expected):
        msg = f"{argument} is a {type(value).__name__}; expected a {expected.__name__}. {advice}"
        raise TypeError(msg)


def check_fields(what: str, state: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raise `SchemaError` unless a record has these fields and no others."""
    wanted = set(fields)
    if set(state) != wanted:
        absent, unknown = sorted(wanted - set(state)), sorted(map(str, set(state) - wanted))
        msg = f"This is not {what}: missing {absent[:8]}, unknown {shown(unknown)}."
        raise SchemaError(msg)


def parse_json(text: str, what: str) -> dict[str, Any]:
    """Return the mapping that JSON holds; raise `SchemaError` if it holds none."""
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"This is not {what}: {error}."
        raise SchemaError(msg) from error
    if not isinstance(state, dict):
        msg = f"This is not {what}: found a {type(state).__name__}, expected a mapping."
        raise SchemaError(msg)
    return state


def check_memory(what: str, n_bytes: float) -> None:
    """Raise `ValueError` if something needs more memory than there is."""
    available = psutil.virtual_memory().available
    if n_bytes > available:
        msg = (
            f"{what} needs about {n_bytes / 1e9:.3g} GB of memory, and {available / 1e9:.3g} GB "
            "are available. Ask for less at once."
        )
        raise ValueError(msg)


def check_argument(argument: str, value: Any, asked: Asked) -> None:  # noqa: ANN401
    """Raise `TypeError`, `ValueError` or `SchemaError` unless a value is what is asked for."""
    empty = isinstance(value, str) and not value and not asked.blank
    if empty or not _fits(value, asked.hint):
        members = _members(asked.hint)
        inside = [part for m in members for part in (m, *get_args(m))]
        choices = [c for m in inside if get_origin(m) is Literal for c in get_args(m)]
        for one in value if isinstance(value, list | tuple) else (value,):
            alike = [c for c in choices if isinstance(one, type(c)) and not _is_bool(one)]
            if alike:
                check_choice(argument, one, alike)
        found = "" if value is None else f" is of type {type(value).__name__}"
        msg = f"{argument}={shown(value)}{found}; expected {_words(asked.hint)}"
        msg += ", not empty." if empty else "."
        if "AnnData" in {getattr(m, "__name__", "") for m in members}:
            msg = f"{msg} To mend this, {how_to_pass(value)}."
        nothing = isinstance(value, str | list | tuple) and not value
        infinite = isinstance(value, float) and not _is_finite(value)
        raise (ValueError if nothing or infinite else TypeError)(msg)
    if asked.bounds is not None:
        many = isinstance(value, list | tuple | np.ndarray | pd.Series)
        for one in value if many else (value,):
            if isinstance(one, Real) and not _is_bool(one):
                check_bounds(argument, cast("float", one), asked.bounds)
    if argument == "indices" and value is not None and (all(map(_is_bool, value)) > any(value)):
        msg = "No cells were given: indices is empty. Name at least one, or leave it out for all."
        raise SchemaError(msg)
    if argument in _BYTES and _is_whole(value):
        check_memory(f"{argument}={value}", value * _BYTES[argument])
    if hasattr(value, "obs_names"):
        check_cells(argument, value, genes=asked.genes)
    if asked.measured and (isinstance(value, np.ndarray) or sparse.issparse(value)):
        check_array(argument, value, finite=argument not in MAY_BE_MISSING)
    check_table(argument, value)


def _entries(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Asked]:
    """Return what is asked of each argument that has an annotation."""
    function = inspect.unwrap(function)
    module = function.__module__
    found = {}
    for name, parameter in signature.parameters.items():
        annotation, kind = parameter.annotation, parameter.kind
        if annotation is parameter.empty or kind is parameter.VAR_KEYWORD:
            continue
        also = _also(function, name, annotation)
        hint = _hint(annotation, function.__globals__, also=also)
        found[name] = Asked(
            hint,
            _bounds(function.__qualname__, name, hint),
            module.startswith("scvi_perturb.metrics"),
            not module.startswith("scvi_perturb.pp"),  # which also reads obs alone
            str(parameter.default) == "" or name in MAY_BE_EMPTY,
            kind is parameter.VAR_POSITIONAL,
        )
    return found


def _refuse_overwriting(given: Mapping[str, Any]) -> None:
    """Raise `SchemaError` if a result would be written over a column that a model reads."""
    key = given.get("key_added")
    if not isinstance(key, str):
        return
    registry = getattr(given.get("self", given.get("model")), "registry", None) or {}
    for argument, columns in registry.get("setup_args", {}).items():
        read = [columns] if isinstance(columns, str) else columns
        if argument.endswith(("_key", "_keys")) and read and key in read:
            msg = (
                f"key_added={key!r} is the column that the model was set up with as {argument}, "
                "and would be written over; choose another."
            )
            raise SchemaError(msg)


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    entries: dict[str, Asked] = {}

    @functools.wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python says best what is missing or unknown
            return function(*args, **kwargs)
        if not entries:
            entries.update(_entries(function, signature))
        for name, value in given.items():
            if name not in entries or value is signature.parameters[name].default:
                continue
            asked = entries[name]
            for one in value if asked.several else (value,):
                check_argument(name, one, asked)
        if not function.__name__.startswith("get_"):  # these write to obsm or layers
            _refuse_overwriting(given)
        return function(*args, **kwargs)

    return entry


def _public(owner: type) -> Iterator[str]:
    """Yield the names of what a class defines and others call."""
    # Of networks and of what Lightning calls, nobody calls the methods.
    if issubclass(owner, torch.nn.Module) or hasattr(owner, "on_train_start"):
        yield "__init__"
        return
    own = (name for name in vars(owner) if not name.startswith("_"))
    yield from (*own, *(name for name in ("__init__", "__call__") if name in vars(owner)))


def checked(target: T) -> T:
    """Check the arguments of a function, or of a class's constructor and public methods.

    Their annotations say what they may be and `BOUNDS` how large. AnnData must have cells and
    genes, and tables no two columns of one name.
    """
    if not isinstance(target, type):
        return typing.cast("T", _checked(typing.cast("Callable[..., Any]", target)))
    for name in list(_public(target)):
        member = vars(target).get(name)
        if isinstance(member, classmethod | staticmethod):
            setattr(target, name, type(member)(_checked(member.__func__)))
        elif inspect.isfunction(member):
            setattr(target, name, _checked(member))
    return target
