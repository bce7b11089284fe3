"""A study written down in a file, so that a comparison can be repeated and passed on."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._models import model_method, model_names
from scvi_perturb.benchmark._study import Study
from scvi_perturb.benchmark._study_fields import Fields, refuse_unknown
from scvi_perturb.benchmark._study_tasks import read_task
from scvi_perturb.benchmark._trivial import TRIVIAL
from scvi_perturb.module import DiffusionConfig, FlowConfig
from scvi_perturb.train import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.benchmark._method import Method

__all__ = ["StudyFile", "read_study"]

_KEYS: Final = ("out", "seeds", "workers", "methods", "max_folds", "task", "model")
_MODEL_KEYS: Final = ("name", "title", "class", "options", "train")
#: Options that are configurations: their tables hold the configuration's fields.
_CONFIGURATIONS: Final[dict[str, Any]] = {
    "diffusion": DiffusionConfig,
    "flow": FlowConfig,
    "generator": DiffusionConfig,
    "config": TrainConfig,
}
#: What the study itself gives to models and to their training.
_GIVEN: Final = ("self", "adata", "registry", "features", "seed", "split", "checkpoint_dir")
_ALL_TRIVIAL: Final = "trivial"


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study, and how the file asks for it to be run.

    Parameters
    ----------
    study
        What is compared on what.
    out
        Folder of results.
    workers
        Number of processes.
    """

    study: Study
    out: Path
    workers: int = 1


def read_study(path: str | Path) -> StudyFile:
    """Read a study from a TOML file.

    Files are relative to its folder. Of screens the annotation is read, to find out at once whether
    they have what the file says; their values are read when the study is run.

    Parameters
    ----------
    path
        The file: at the top `out`, `seeds`, `workers`, `methods` and `max_folds`, a table
        `[[task]]` for each task and a table `[[model]]` for each model with options of its own.
        `methods` names trivial predictions, all of them by "trivial", and models with their
        defaults; what stands under `[[model]]` takes part without being named.

    Raises
    ------
    SchemaError
        If the file is not there or is not TOML, a key is unknown, missing or of the wrong type, or
        a screen does not have what a key names.

    Examples
    --------
    >>> file = read_study("study.toml")  # doctest: +SKIP
    >>> run(file.study, file.out, n_workers=file.workers)  # doctest: +SKIP
    """
    path = Path(path)
    folder = path.parent
    root = Fields(_parsed(path), where=path.name, folder=folder, known=_KEYS)
    tables = root.tables("task")
    if not tables:
        root.refuse("task", "at least one table [[task]]")
    tasks = [
        read_task(table, where=f"{path.name}, [[task]] {i}", folder=folder)
        for i, table in enumerate(tables, 1)
    ]
    try:
        study = Study(
            tasks=tuple(tasks),
            methods=_methods(root),
            seeds=root.wholes("seeds", range(5)),
            max_folds=root.whole("max_folds", None),
        )
    except SchemaError:
        raise
    except ValueError as error:  # names that come twice
        msg = f"{path.name}: {error}"
        raise SchemaError(msg) from None
    workers = root.whole("workers", 1)
    return StudyFile(study=study, out=folder / root.text("out", "results"), workers=workers)


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        msg = f"There is no file {path}."
        raise SchemaError(msg)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not a TOML file: {error}."
        raise SchemaError(msg) from None


def _methods(root: Fields) -> tuple[Method, ...]:
    """Return the methods that are named, then the models that are described, none twice."""
    own = [_model(table, root, i) for i, table in enumerate(root.tables("model"), 1)]
    described = {method.name for method in own}
    trivial = {method.name: method for method in TRIVIAL}
    named = root.texts("methods", (_ALL_TRIVIAL,))
    known = {_ALL_TRIVIAL, *trivial, *model_names(), *described}
    refuse_unknown(named, known, where=f"{root.where}, methods", what="method")
    chosen: dict[str, Method] = {}
    for name in named:
        if name == _ALL_TRIVIAL:
            chosen |= trivial
        elif name in trivial:
            chosen[name] = trivial[name]
        elif name not in described:
            chosen[name] = model_method(name)
    return (*chosen.values(), *own)


def _model(table: Mapping[str, Any], root: Fields, number: int) -> Method:
    fields = Fields(
        table, where=f"{root.where}, [[model]] {number}", folder=root.folder, known=_MODEL_KEYS
    )
    cls = fields.choice("class", model_names())
    name = fields.name("model") if "name" in fields else cls
    options, train = fields.table("options"), fields.table("train")
    _check_options(cls, options, train, where=fields.where)
    method = model_method(
        cls,
        name=name,
        model_options=_configured(options, where=f"{fields.where}, options"),
        train_options=_configured(train, where=f"{fields.where}, train"),
    )
    return replace(method, title=fields.text("title", name))


def _configured(options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return options with tables of configurations as these.

    Raises
    ------
    SchemaError
        If a configuration has no such field, or does not take its value.
    """
    made = dict(options)
    for key, cls in _CONFIGURATIONS.items():
        if isinstance(made.get(key), dict):
            if key == "generator" and "source" in made[key]:
                cls = FlowConfig  # noqa: PLW2901 - a flow is told by its source
            names = [field.name for field in fields_of(cls)]
            refuse_unknown(made[key], names, where=f"{where}, {key}", what="field")
            try:
                made[key] = cls(**made[key])
            except (TypeError, ValueError) as error:
                msg = f"{where}, {key}: {error}"
                raise SchemaError(msg) from None
    return made


def _check_options(
    cls: str, options: Mapping[str, Any], train: Mapping[str, Any], *, where: str
) -> None:
    """Refuse options that the model does not take: otherwise each of its runs would fail."""
    from scvi_perturb import model

    made = getattr(model, cls)
    for what, given, function in (("options", options, made), ("train", train, made.train)):
        parameters = inspect.signature(function).parameters
        taken = [name for name in parameters if name not in _GIVEN]
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            # The rest goes on to Lightning's trainer; what the study gives does not.
            taken += [name for name in given if name not in _GIVEN]
        refuse_unknown(given, taken, where=f"{where}, {what}", what=f"option of {cls}")
