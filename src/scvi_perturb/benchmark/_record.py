"""What came of one method in one trial, on disk as one file."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Self

from scvi_perturb._errors import SchemaError
from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scvi_perturb.benchmark._method import Method, Role
    from scvi_perturb.benchmark._task import Task

__all__ = ["Record", "fingerprint", "record_path", "versions"]

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """Scores of one method in one fold of a task with one seed, and where they come from.

    Parameters
    ----------
    task, method, role, seed, fold
        What was scored.
    fingerprint
        Of the task's and the method's definition: a record of another definition is not reused.
    status, message
        "ok"; "partial": the method refused some conditions, of which it knows too little;
        "refused": all of them; "failed": it raised something else. The message says why.
    warnings
        What this package warned of while the method was fitted and asked.
    scores
        Columns of the table of scores: `condition`, `metric`, `numerator`, `denominator`.
    conditions
        One dict a condition, see `Case.about`.
    cost
        `train_seconds`, `predict_seconds`, `n_trained` and `n_predicted` cells, `peak_mib` above
        what was held before, and `n_parameters` where a method says it.
    curves
        For figures: `pit` (shares of ranks of single cells in equal bins), `effect_pit` (the
        same of effects), `predicted` and `observed` changes of the genes that change most.
    provenance
        Versions, the split and its data's fingerprint, units.
    """

    task: str
    method: str
    role: Role
    seed: int
    fold: int
    fingerprint: str
    status: Literal["ok", "partial", "refused", "failed"] = "ok"
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    scores: dict[str, list[Any]] = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the record; a run that is killed meanwhile leaves no half of it."""
        path = record_path(folder, self.task, self.method, self.seed, self.fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial")
        state = {"format": _FORMAT} | asdict(self)
        partial_path.write_text(json.dumps(state, allow_nan=True), encoding="utf-8")
        partial_path.replace(path)
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises
        ------
        SchemaError
            If the file is not one.
        """
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            known = state.pop("format") == _FORMAT
            record = cls(**state)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            known = False
        if not known:
            msg = f"{path} is not a record of a benchmark of this version; delete it."
            raise SchemaError(msg)
        return record


def record_path(folder: Path, task: str, method: str, seed: int, fold: int) -> Path:
    """Return where a record stands."""
    return folder / "records" / task / method / f"seed{seed}_fold{fold}.json"


def fingerprint(task: Task, method: Method | None, seed: int, fold: int) -> str:
    """Return a fingerprint of what defines a record: it changes when any of it does."""
    state = {name: _plain(value) for name, value in vars(task).items() if name not in _FOR_READERS}
    made = None if method is None else _plain(method.make)
    options = task.fold_options[fold] if task.fold_options else None
    state["fold_options"] = options and asdict(options)
    text = json.dumps([__version__, state, made, seed, fold], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions on which numbers may depend."""
    names = ("numpy", "scipy", "scikit-learn", "anndata", "torch", "scvi-tools")
    found = {name: version(name) for name in names}
    return {"scvi-perturb": __version__, "python": platform.python_version()} | found


_FOR_READERS = ("title", "note")


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a definition in plain types; a function is its name, with what is bound to it."""
    if isinstance(value, partial):
        bound = {key: _plain(one) for key, one in value.keywords.items()}
        return [_plain(value.func), [_plain(one) for one in value.args], bound]
    if callable(value):
        return _name(value)
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _name(function: Callable[..., Any]) -> str:
    """Return the name of a function; with its code where the name does not tell it from others."""
    name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
    code = getattr(function, "__code__", None)
    if code is None or not ("<lambda>" in name or "<locals>" in name):
        return name
    return f"{name}:{code.co_code.hex()}:{code.co_consts}:{code.co_names}"
