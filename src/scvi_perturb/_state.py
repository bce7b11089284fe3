"""Values as JSON and arrays: what a model or a checkpoint holds, without pickle.

Numbers, text, containers, arrays, tables and instances of a closed list of classes can be packed.
An instance comes back with its attributes set and none of its methods called, so that reading a
file runs no code of its writer's choice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, Final, NoReturn

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from anndata import AnnData
from pandas.api.types import pandas_dtype
from safetensors import SafetensorError
from scipy import sparse

from scvi_perturb._core import SchemaError
from scvi_perturb.registry import registry

__all__ = ["digest_of", "from_bytes", "pack", "read_sealed", "sealed", "to_bytes", "unpack"]

#: Packages whose classes may be in a file, and single classes.
_PACKAGES: Final = ("scvi_perturb.predictors", "scvi_perturb.similarity")
_MODULES: Final = ("data.condition", "data.condition_table", "data.request", "features.store")
_CLASSES: Final = (
    "scvi_perturb.module.causal:CausalConfig",
    "scvi_perturb.module.diffusion:DiffusionConfig",
    "scvi_perturb.module.flow:FlowConfig",
    "scvi_perturb.model.base.reference:ControlSums",
    "scvi_perturb.model.base.reference:Reference",
    "scvi_perturb.model.causal.effects:OperatorErrors",
)
#: Subclasses of these may be in a file too, once the program that reads it has defined them.
_BASES: Final = (
    "scvi_perturb.module.generator:GeneratorConfig",
    "scvi_perturb.predictors.base:MeanPredictor",
)
_SPARSE: Final = {
    name: getattr(sparse, name) for name in ("csr_matrix", "csr_array", "csc_matrix", "csc_array")
}
_ANNDATA: Final = ("X", "obs", "var", "uns", "layers", "obsm", "varm", "obsp", "varp")
#: Types of columns that are listed value by value.
_LISTED: Final = ("object", "str", "string", "boolean", "bool", "Int64", "Float64")
_DIGEST_BYTES: Final = 32


def pack(value: object) -> tuple[str, dict[str, torch.Tensor]]:
    """Return a value as JSON, and the arrays that the JSON refers to.

    Raises `TypeError`: For what has no form without pickle; the message says where it is.
    """
    packer = _Packer()
    tree = packer.value(value, "")
    return _dumps({"nodes": packer.nodes, "value": tree}), packer.arrays


def unpack(text: str, arrays: Mapping[str, torch.Tensor], *, where: object) -> Any:  # noqa: ANN401
    """Return the value that `pack` made text and arrays of; `where` is named in errors.

    Raises `SchemaError`: If it is none, or holds an instance of a class that is not known here.
    """
    try:
        state = json.loads(text)
        unpacker = _Unpacker(arrays, where)
        for node in state["nodes"]:
            unpacker.done.append(unpacker.node(node))
        return unpacker.value(state["value"])
    except SchemaError:
        raise
    except Exception as error:  # whatever a file that was made up leads to
        msg = f"{where} does not hold what this package writes: {error!r}. Write it anew."
        raise SchemaError(msg) from error


def to_bytes(value: object) -> bytes:
    """Return a value as the content of one file, with its digest."""
    text, arrays = pack(value)
    content: bytes = safetensors.torch.save(arrays, {"state": text})
    return hashlib.sha256(content).digest() + content


def from_bytes(content: bytes, *, where: object) -> Any:  # noqa: ANN401
    """Return the value that `to_bytes` made a file of.

    Raises `SchemaError`: If the file is not what was written.
    """
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        msg = (
            f"{where} is damaged, or was not written by this version of the package: its digest "
            "differs. Remove it, or restore it from a copy."
        )
        raise SchemaError(msg)
    try:
        # The header is a length of eight bytes and JSON, which holds the text.
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        text = header["__metadata__"]["state"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{where} is no file of this package. Remove it."
        raise SchemaError(msg) from error
    return unpack(text, tensors_of(body, where=where), where=where)


def tensors_of(content: bytes, *, where: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of safetensors, or raise `SchemaError`."""
    try:
        found: dict[str, torch.Tensor] = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        msg = f"{where} is no file of safetensors: {error}. Write it anew."
        raise SchemaError(msg) from error
    return found


def sealed(value: Mapping[str, Any]) -> str:
    """Return plain types as JSON that holds its own digest."""
    return _dumps({**value, "sha256": _text_digest(value)}, indent=1)


def read_sealed(text: str, *, where: object) -> dict[str, Any]:
    """Return what `sealed` made JSON of, or raise `SchemaError` if it is not as it was written."""
    try:
        value = json.loads(text)
        found = value.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        msg = f"{where} is damaged or no file of this package: {error!r}. Restore it from a copy."
        raise SchemaError(msg) from error
    if found != _text_digest(value) or text != sealed(value):
        msg = f"{where} was changed after it was written: its digest differs. Restore it."
        raise SchemaError(msg)
    return dict(value)


def digest_of(value: object) -> str:
    """Return a hash of a value's content; of its type alone where it cannot be packed."""
    try:
        return hashlib.sha256(to_bytes(value)).hexdigest()[:16]
    except TypeError:
        return f"{type(value).__module__}.{type(value).__qualname__}"


def _dumps(value: object, **options: Any) -> str:  # noqa: ANN401
    return json.dumps(value, separators=(",", ":"), **options)


def _text_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dumps(value).encode()).hexdigest()


# Classes ------------------------------------------------------------------------------------


def _class_name(of: type) -> str:
    return f"{of.__module__}:{of.__qualname__}"


class _Classes:
    """The classes that a file may hold, by name; nothing is imported by a name in a file."""

    def __init__(self) -> None:
        self._known: dict[str, type] = {}

    def get(self, name: str) -> type | None:
        """Return a class; None if there is none of this name."""
        if not self._known:
            self._known = _own_classes()
        if name not in self._known:
            parts = [*registry("predictors").values(), *registry("generators").values()]
            self._known |= {_class_name(one): one for one in parts if isinstance(one, type)}
        return self._known.get(name)


def _own_classes() -> dict[str, type]:
    """Return the classes of this package that may be in a file, and those derived from them."""
    modules = [import_module(f"scvi_perturb.{name}") for name in _MODULES]
    for name in _PACKAGES:
        package = import_module(name)
        listed = walk_packages(package.__path__, f"{name}.")
        modules += [import_module(one.name) for one in listed]
    classes = [
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type) and found.__module__ == module.__name__
    ]
    classes += [_attribute(name) for name in _CLASSES]
    derived = [_attribute(name) for name in _BASES]
    for one in derived:  # which grows; the class that was made last is that of a name
        derived += one.__subclasses__()
    return {_class_name(one): one for one in (*derived, *classes)}


def _attribute(name: str) -> type:
    module, _, attribute = name.partition(":")
    found: type = getattr(import_module(module), attribute)
    return found


def _slots(of: type) -> list[str]:
    """Return the names of the attributes that have a slot."""
    listed: list[str] = []
    for one in of.__mro__:
        slots = vars(one).get("__slots__", ())
        listed += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in listed if not name.startswith("__")]


# Packing ------------------------------------------------------------------------------------


class _Packer:
    """Write values as plain types; what is met twice, such as shared profiles, is written once.

    `nodes`: Instances, arrays and tables, what they hold before themselves. `arrays`: By name.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.arrays: dict[str, torch.Tensor] = {}
        self._place: dict[int, int | None] = {}
        self._kept: list[object] = []  # so that an id stays that of its object
        self._classes = _Classes()

    def value(self, value: Any, at: str) -> Any:  # noqa: ANN401, PLR0911 - one line a type
        """Return plain types for a value; `at` says where it is."""
        if isinstance(value, np.str_ | str):
            return str(value)
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, np.bool_ | np.integer | np.floating):
            plain = float(value) if isinstance(value, np.floating) else value.item()
            return {"~scalar": [value.dtype.str, self.value(plain, at)]}
        if value is pd.NA:
            return {"~na": None}
        if isinstance(value, float):
            return value if math.isfinite(value) else {"~float": str(value)}
        if type(value) in (list, tuple, set, frozenset):
            listed = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            packed = [self.value(one, f"{at}[{i}]") for i, one in enumerate(listed)]
            return packed if type(value) is list else {f"~{type(value).__name__}": packed}
        if isinstance(value, Mapping) and all(
            isinstance(key, str) and not key.startswith("~") for key in value
        ):
            return {str(key): self.value(one, _below(at, key)) for key, one in value.items()}
        return {"~": self._node(value, at)}

    def _node(self, value: object, at: str) -> int:
        if id(value) in self._place:
            place = self._place[id(value)]
            if place is None:
                msg = f"{at} refers to itself and cannot be written to a file."
                raise TypeError(msg)
            return place
        self._place[id(value)] = None
        self._kept.append(value)
        made = self._described(value, at)
        self.nodes.append(made)
        self._place[id(value)] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def _described(self, value: Any, at: str) -> list[Any]:  # noqa: ANN401, PLR0911
        """Return the kind of a value, and what it is made of."""
        if isinstance(value, Mapping):
            pairs = [
                [self.value(k, f"{at}.keys"), self.value(v, _below(at, k))]
                for k, v in value.items()
            ]
            return ["dict", pairs]
        if isinstance(value, torch.Tensor):
            return ["tensor", self._stored(value.detach().cpu().contiguous().clone())]
        if isinstance(value, np.ndarray):
            return self._array(value, at)
        if sparse.issparse(value) and type(value).__name__ in _SPARSE:
            parts = [self.value(getattr(value, k), at) for k in ("data", "indices", "indptr")]
            return ["sparse", type(value).__name__, list(value.shape), parts]
        if isinstance(value, pd.DataFrame):
            columns = [self._column(value.iloc[:, i], at) for i in range(value.shape[1])]
            index, names = (self.value(axis, at) for axis in (value.index, value.columns))
            return ["frame", index, names, columns]
        if isinstance(value, pd.Series):
            return [
                "series",
                *(self.value(x, at) for x in (value.index, value.name)),
                self._column(value, at),
            ]
        if isinstance(value, pd.Index) and not isinstance(value, pd.MultiIndex):
            column = self._column(value.to_series(), at)
            return ["index", self.value(value.name, at), column]
        if isinstance(value, AnnData):
            held = {key: self._part(getattr(value, key)) for key in _ANNDATA}
            return ["anndata", self.value(held, at)]
        return self._instance(value, at)

    @staticmethod
    def _part(value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {k: v for k, v in value.items() if k is not None}  # newer anndata lists X as layer

    def _array(self, value: np.ndarray, at: str) -> list[Any]:
        if value.dtype.kind in "OU":
            listed = [self.value(one, at) for one in value.ravel().tolist()]
            return ["objects", value.dtype.str, list(value.shape), listed]
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            self._refuse(value.dtype, at)
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return ["array", self._stored(torch.from_numpy(native))]

    def _stored(self, tensor: torch.Tensor) -> str:
        name = str(len(self.arrays))
        self.arrays[name] = tensor
        return name

    def _column(self, value: pd.Series[Any], at: str) -> list[Any]:
        kind = value.dtype
        if isinstance(kind, pd.CategoricalDtype):
            codes = self.value(value.cat.codes.to_numpy(), at)
            return ["category", codes, self.value(kind.categories, at), bool(kind.ordered)]
        if isinstance(kind, np.dtype) and kind.kind in "biuf":
            return ["numbers", self.value(value.to_numpy(), at)]
        if str(kind) not in _LISTED:
            self._refuse(kind, at)
        return ["listed", str(kind), self.value(value.tolist(), at)]

    def _instance(self, value: Any, at: str) -> list[Any]:  # noqa: ANN401
        of = type(value)
        name = _class_name(of)
        if self._classes.get(name) is not of:
            self._refuse(f"{of.__module__}.{of.__qualname__}", at)
        if isinstance(value, tuple):
            return ["record", name, [self.value(one, at) for one in value]]
        held = {key: getattr(value, key) for key in _slots(of) if hasattr(value, key)}
        held |= getattr(value, "__dict__", {})
        state = {key: self.value(one, _below(at, key)) for key, one in held.items()}
        return ["instance", name, state]

    def _refuse(self, what: object, at: str) -> NoReturn:
        msg = (
            f"{at or 'It'} holds a {what}, which cannot be written without pickle, so nothing was "
            "written. Register its class with `scvi_perturb.registry`, derive it from "
            "MeanPredictor or GeneratorConfig, or give its predictions as a table."
        )
        raise TypeError(msg)


def _below(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)


class _Unpacker:
    """Read what `_Packer` wrote; `done` are the nodes so far."""

    def __init__(self, arrays: Mapping[str, torch.Tensor], where: object) -> None:
        self.arrays, self.where = arrays, where
        self.done: list[Any] = []
        self._classes = _Classes()

    def value(self, packed: Any) -> Any:  # noqa: ANN401, PLR0911
        """Return the value of plain types."""
        if isinstance(packed, list):
            return [self.value(one) for one in packed]
        if not isinstance(packed, dict):
            return packed
        tag = next(iter(packed), "")
        if not tag.startswith("~"):
            return {key: self.value(one) for key, one in packed.items()}
        held = packed[tag]
        if tag == "~":
            if not 0 <= held < len(self.done):
                msg = f"no value {held}"
                raise ValueError(msg)
            return self.done[held]
        if tag == "~na":
            return pd.NA
        if tag == "~float":
            return float(held)
        if tag == "~scalar":
            return np.dtype(held[0]).type(self.value(held[1]))
        kinds = {"~tuple": tuple, "~set": set, "~frozenset": frozenset}
        return kinds[tag](self.value(held))

    def node(self, node: list[Any]) -> Any:  # noqa: ANN401, PLR0911 - one line a kind
        """Return the value of a node."""
        kind, *parts = node
        if kind == "dict":
            return {self.value(key): self.value(one) for key, one in parts[0]}
        if kind == "tensor":
            return self.arrays[parts[0]]
        if kind == "array":
            return self.arrays[parts[0]].numpy()
        if kind == "objects":
            made = np.empty(len(parts[2]), dtype=object)
            made[:] = self.value(parts[2])
            return made.astype(np.dtype(parts[0])).reshape(parts[1])
        if kind == "sparse":
            data, indices, indptr = self.value(parts[2])
            made = _SPARSE[parts[0]]((data, indices, indptr), shape=tuple(parts[1]))
            made.check_format(full_check=True)
            return made
        if kind == "record":
            return tuple.__new__(self._class(parts[0]), self.value(parts[1]))
        if kind == "instance":
            return self._instance(self._class(parts[0]), parts[1])
        return self._table(kind, parts)

    def _table(self, kind: str, parts: list[Any]) -> Any:  # noqa: ANN401
        if kind == "series":
            index = self.value(parts[0])
            return pd.Series(self._column(parts[2]), index=index, name=self.value(parts[1]))
        if kind == "index":
            column = self._column(parts[1])
            return pd.Index(column, dtype=column.dtype, name=self.value(parts[0]))
        if kind == "frame":
            index, names = self.value(parts[0]), self.value(parts[1])
            made = pd.DataFrame({i: self._column(c) for i, c in enumerate(parts[2])}, index=index)
            return made.set_axis(names, axis=1)
        if kind == "anndata":
            return AnnData(**self.value(parts[0]))
        msg = f"no kind {kind!r}"
        raise ValueError(msg)

    def _column(self, packed: list[Any]) -> Any:  # noqa: ANN401
        kind, *parts = packed
        if kind == "numbers":
            return self.value(parts[0])
        if kind == "category":
            codes, categories = self.value(parts[0]), self.value(parts[1])
            return pd.Categorical.from_codes(codes, categories=categories, ordered=parts[2])
        if kind != "listed" or parts[0] not in _LISTED:
            msg = f"no column of kind {packed[:2]}"
            raise ValueError(msg)
        # Text has a type of its own from pandas 3 on.
        old_text = parts[0] == "str" and pd.Index(["text"]).dtype == object
        kind = pandas_dtype("object" if old_text else parts[0])
        return pd.Series(self.value(parts[1]), dtype=kind).array

    def _class(self, name: str) -> type:
        found = self._classes.get(name)
        if found is None:
            msg = (
                f"{self.where} holds a {name}, which is not known here. Import or register it "
                "first, if it is yours."
            )
            raise SchemaError(msg)
        return found

    def _instance(self, of: type, state: dict[str, Any]) -> Any:  # noqa: ANN401
        made: Any = object.__new__(of)
        for key, one in state.items():
            if key.startswith("__"):
                msg = f"no attribute {key!r}"
                raise ValueError(msg)
            object.__setattr__(made, key, self.value(one))
        return made
