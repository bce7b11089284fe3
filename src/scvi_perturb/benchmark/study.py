"""A study: methods and tasks to compare, defined in Python or in a file."""

from __future__ import annotations

import hashlib
import inspect
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, TypeVar, get_args

import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb._files import is_file, read_text
from scvi_perturb.benchmark.methods import (
    TRIVIAL,
    class_names,
    get_method,
    method_class,
    model_method,
    refuse_unknown,
)
from scvi_perturb.benchmark.results import CONDITION_KEYS
from scvi_perturb.benchmark.task import Task, matrix_of
from scvi_perturb.data.condition import ScreenKeys, as_labels, default_keys
from scvi_perturb.data.fields import read_annotation
from scvi_perturb.data.reader import check_raw_counts, read_screen
from scvi_perturb.data.split.kinds import Scenario
from scvi_perturb.data.split.record import SplitOptions
from scvi_perturb.features.genes import gene_set_membership
from scvi_perturb.features.molecules import molecular_fingerprints
from scvi_perturb.features.store import PerturbationFeatures
from scvi_perturb.module.causal import CausalConfig
from scvi_perturb.registry import registry
from scvi_perturb.train.plan import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from anndata import AnnData

    from scvi_perturb.benchmark.methods import Method


@dataclass(frozen=True, slots=True)
class Job:
    """One trial, with the methods to run in it."""

    task: Task
    seed: int
    fold: int
    methods: tuple[Method, ...]
    replicate: bool = True


@checked
@dataclass(frozen=True, kw_only=True)
class Study:
    """Tasks, methods and seeds; each method runs on each task that it applies to.

    Parameters
    ----------
    tasks, methods
        What is compared on what; names must differ.
    seeds
        Seeds of splits and methods.
    max_folds
        At most this many folds of each task, for a quick look; None takes all.

    Raises
    ------
    ValueError
        If there is nothing to do, or names come twice.
    """

    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_folds: int | None = None

    def __post_init__(self) -> None:
        for what in ("tasks", "methods", "seeds"):
            object.__setattr__(self, what, tuple(getattr(self, what)))
            if not getattr(self, what):
                msg = f"The study has no {what}; give at least one."
                raise ValueError(msg)
        for what in ("tasks", "methods"):
            counts = Counter(one.name for one in getattr(self, what))
            twice = [name for name, n in counts.items() if n > 1]
            if twice:
                msg = f"Names of {what} come twice: {twice}; results are kept by name."
                raise ValueError(msg)

    def jobs(self) -> Iterator[Job]:
        """Yield every trial with its methods."""
        for task in self.tasks:
            methods = tuple(method for method in self.methods if method.applies(task))
            for seed in self.seeds:
                for fold in list(task.folds)[: self.max_folds]:
                    yield Job(task, seed, fold, methods, replicate=task.values == "counts")


@checked
@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """A study, with the run settings of its file.

    Parameters
    ----------
    study, out
        As for :func:`run`.
    workers
        Number of processes.
    """

    study: Study
    out: Path
    workers: int = 1


@dataclass(frozen=True, repr=False)
class ScreenFile:
    """Loads a screen from a file.

    What it is printed as, by which records tell whether they still hold, is its content: a file
    that was moved is the same screen, one that was changed is another.

    `path`: The file. `content`: Fingerprint of its content. `layer`: Layer of the counts; None is
    `X`. `has_counts`: Whether the values must be raw counts.
    """

    path: Path
    content: str
    layer: str | None = None
    has_counts: bool = True

    def __call__(self) -> AnnData:
        """Return the screen.

        Raises `SchemaError`: If the file cannot be read, or does not hold counts where it should.
        """
        adata = read_screen(self.path)
        if self.has_counts:
            where = "X" if self.layer is None else f"layer {self.layer!r}"
            check_raw_counts(matrix_of(adata, self.layer), where=f"{self.path.name}, {where}")
        return adata

    def __repr__(self) -> str:
        return f"ScreenFile({self.content}, {self.layer}, {self.has_counts})"


@dataclass(frozen=True, repr=False)
class FeatureFiles:
    """Makes features of a screen's perturbations from files and from a column of SMILES.

    `keys`: Where the screen names its perturbations. `gene_sets`: GMT files. `table`: File of a
    table, one row a perturbation. `smiles`: Column of `obs`. `content`: Fingerprint of the content
    of the files.
    """

    keys: ScreenKeys
    gene_sets: tuple[Path, ...] = ()
    table: Path | None = None
    smiles: str | None = None
    content: str = ""

    def __call__(self, adata: AnnData) -> PerturbationFeatures:
        """Return what is known of the perturbations of a screen.

        Raises `SchemaError`: If a source says nothing about any of them, or cannot be read. Raises
        `ImportError`: If SMILES are given and RDKit is not installed.
        """
        annotation = read_annotation(adata, self.keys)
        names = sorted(set[str]().union(*annotation.names))
        made: dict[str, pd.DataFrame] = {}
        if self.gene_sets:
            made["gene_sets"] = gene_set_membership(self.gene_sets, names)
        if self.table is not None:
            made["table"] = _rows_of(self.table, names)
        if self.smiles is not None:
            made["fingerprint"] = molecular_fingerprints(self._molecules(adata, self.smiles))
        return PerturbationFeatures(made)

    def __repr__(self) -> str:
        # Results are known by this text, which names the keys as they were called once.
        keys = ", ".join(f"{n}={getattr(self.keys, n)!r}" for n in CONDITION_KEYS)
        return f"FeatureFiles({self.content}, {self.smiles}, ConditionKeys({keys}))"

    def _molecules(self, adata: AnnData, column: str) -> dict[str, str]:
        """Return the SMILES of each perturbation that has one."""
        annotation = read_annotation(adata, self.keys)
        conditions = [annotation.conditions[group] for group in annotation.group]
        single = [len(c.components) == 1 for c in conditions]
        names = [c.names[0] for c, alone in zip(conditions, single, strict=True) if alone]
        written = adata.obs.loc[single, column].astype(object)
        pairs = pd.DataFrame({"name": names, "smiles": written.to_numpy()}).dropna()
        pairs["smiles"] = pairs["smiles"].astype(str).str.strip()
        pairs = pairs[~pairs["smiles"].isin(["", "nan"])].drop_duplicates()
        twice = pairs.loc[pairs["name"].duplicated(), "name"].unique().tolist()
        if twice or pairs.empty:
            what = f"says different things of {twice[:3]}" if twice else "is empty throughout"
            msg = f"obs[{column!r}] {what}; expected one SMILES for each perturbation."
            raise SchemaError(msg)
        return dict(zip(pairs["name"], pairs["smiles"], strict=True))


def _rows_of(path: Path, names: list[str]) -> pd.DataFrame:
    """Return the rows of a table that are those of perturbations in the screen."""
    has_tabs = path.name.endswith((".tsv", ".txt", ".tsv.gz", ".txt.gz"))
    try:
        table: Any = pd.read_csv(path, index_col=0, sep="\t" if has_tabs else ",")
    except (ValueError, OSError) as error:
        msg = f"{path.name} could not be read as a table, first column the names: {error}."
        raise SchemaError(msg) from error
    table.index = table.index.astype(str)
    found = table[table.index.isin(names)]
    if found.empty:
        some = table.index[:3].tolist()
        msg = (
            f"{path.name} has no row of a perturbation of the screen; its first names are {some}, "
            f"the screen's {names[:3]}. Use the same names."
        )
        raise SchemaError(msg)
    return pd.DataFrame(found)


# Values of a study file. What is expected is what a validator raises, or else the description.


def _file_name(name: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.strip())
    if kept != name.replace("-", "_"):
        msg = (
            f"letters, digits, '_' and '-' only, such as {kept!r}, since it names files; "
            "`title` may say more"
        )
        raise ValueError(msg)
    return name


def _existing(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {})["folder"]
    if not is_file(folder / path):
        msg = f"a file that is there, from {folder.resolve()}"
        raise ValueError(msg)
    return (folder / path).resolve()


def _class_name(name: str) -> str:
    if name not in class_names():
        msg = f"one of {', '.join(class_names())}"
        raise ValueError(msg)
    return name


def _all_different(numbers: list[int]) -> list[int]:
    if len(set(numbers)) < len(numbers):
        msg = "a list of different whole numbers"
        raise ValueError(msg)
    return numbers


_Text = Annotated[str, StringConstraints(pattern=r"\S"), Field(description="text")]
_Name = Annotated[_Text, AfterValidator(_file_name)]
_Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
_Share = Annotated[float, Field(ge=0, lt=1, description="a share, from 0 to below 1")]
_Texts = Annotated[
    list[str], Field(min_length=1, description="a list of texts, such as ['a', 'b']")
]
_Seeds = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=1, description="a list of different whole numbers"),
    AfterValidator(_all_different),
]
_Options = Annotated[dict[str, Any], Field(description="a table")]
_File = Annotated[Path, Field(strict=False, description="text"), AfterValidator(_existing)]
_Files = Annotated[list[_File], Field(description="a list of texts, such as ['a', 'b']")]


class StudyTable(BaseModel):
    """A table of a study file, which accepts only known keys and values of the right type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RootTable(StudyTable):
    """The top level of a study file."""

    out: _Text = "results"
    seeds: _Seeds = [0, 1, 2, 3, 4]
    workers: _Count = 1
    methods: _Texts = ["trivial"]
    max_folds: _Count | None = None
    task: Annotated[
        list[dict[str, Any]], Field(min_length=1, description="at least one table [[task]]")
    ]
    model: Annotated[list[dict[str, Any]], Field(description="tables under [[model]]")] = []


class ModelTable(StudyTable):
    """A table `[[model]]`."""

    name: _Name | None = None
    title: _Text | None = None
    cls: Annotated[_Text, Field(alias="class"), AfterValidator(_class_name)]
    options: _Options = {}
    train: _Options = {}


class FeaturesTable(StudyTable):
    """The table `features` of a task."""

    gene_sets: _Files = []
    table: _File | None = None
    smiles: _Text | None = None


class TaskTable(StudyTable):
    """A table `[[task]]`."""

    name: _Name
    title: _Text = ""
    note: _Text = ""
    file: _File
    split: Scenario
    values: Literal["counts", "effects"] = "counts"
    layer: _Text | None = None
    n_folds: _Count = 5
    hold_out: Annotated[
        list[str | dict[str, Any]],
        Field(min_length=1, description="a list of labels, such as ['a', 'b']"),
    ] = []
    perturbation_key: _Text | None = None
    dose_key: _Text | None = None
    time_key: _Text | None = None
    perturbation_type_key: _Text | None = None
    control: _Text | None = None
    separator: _Text | None = None
    context_keys: _Texts = []
    features: _Options = {}
    max_cells: Annotated[int, Field(ge=4, description="a whole number of at least 4")] = 1000
    shown: _Share = 0.0
    groups: _Text | None = None
    gene_names: _Text | None = None


_Table = TypeVar("_Table", bound=StudyTable)


def _validated(cls: type[_Table], table: Mapping[str, Any], *, where: str, folder: Path) -> _Table:
    """Return a table whose keys and values are those it may have."""
    known = {info.alias or name: info for name, info in cls.model_fields.items()}
    refuse_unknown(table, known, where=where, what="key")
    try:
        return cls.model_validate(table, context={"folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        expected = first.get("ctx", {}).get("error") or _expected(known[key])
        _refuse(table, key, str(expected), where=where)


def _expected(info: Any) -> str:  # noqa: ANN401
    """Return what a field takes, in words."""
    nested = [m for part in get_args(info.annotation) for m in getattr(part, "__metadata__", ())]
    words = [one.description for one in (info, *nested) if getattr(one, "description", None)]
    return words[0] if words else f"one of {', '.join(sorted(get_args(info.annotation)))}"


_TYPES: Final[dict[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
}


def _refuse(table: Mapping[str, Any], key: str, expected: str, *, where: str) -> NoReturn:
    """Raise for a key that has the wrong value, or none."""
    if key not in table:
        msg = f"{where}: {key!r} is missing; expected {expected}."
        raise SchemaError(msg)
    value = table[key]
    kind = _TYPES.get(type(value), type(value).__name__)
    msg = f"{where}: {key} = {value!r} ({kind}); expected {expected}."
    raise SchemaError(msg)


@checked
def read_study(path: str | Path) -> StudyFile:
    """Read a study from a TOML file.

    Files are relative to its folder. Of screens the annotation is read, to find out at once whether
    they have what the file says; their values are read when the study is run.

    Parameters
    ----------
    path
        The file: at the top `out`, `seeds`, `workers`, `methods` and `max_folds`, a table
        `[[task]]` for each task and a table `[[model]]` for each model with options of its own.
        `methods` names trivial predictions, all of them by "trivial", and predictors and models
        with their defaults (see `get_method`); what stands under `[[model]]` takes part without
        being named.

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
    root = _validated(RootTable, _parsed(path), where=path.name, folder=folder)
    tasks = tuple(
        _TaskReader(table, where=f"{path.name}, [[task]] {i}", folder=folder).task()
        for i, table in enumerate(root.task, 1)
    )
    methods = _methods(root, where=path.name, folder=folder)
    try:
        study = Study(
            tasks=tasks, methods=methods, seeds=tuple(root.seeds), max_folds=root.max_folds
        )
    except ValueError as error:  # names that come twice
        msg = f"{path.name}: {error}"
        raise SchemaError(msg) from None
    return StudyFile(study=study, out=folder / root.out, workers=root.workers)


#: Of the file of a study.
_MOST_BYTES: Final = 1 << 24


def _parsed(path: Path) -> dict[str, Any]:
    if not is_file(path):
        msg = f"There is no file {path}."
        raise SchemaError(msg)
    try:
        return tomllib.loads(read_text(path, kind="a TOML file", most=_MOST_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        msg = f"{path.name} is not a TOML file: {error}."
        raise SchemaError(msg) from None


_ALL_TRIVIAL: Final = "trivial"


def _methods(root: RootTable, *, where: str, folder: Path) -> tuple[Method, ...]:
    """Return the methods that are named, then the models that are described, none twice."""
    own = [
        _model(table, where=f"{where}, [[model]] {i}", folder=folder)
        for i, table in enumerate(root.model, 1)
    ]
    described = {method.name for method in own}
    chosen: dict[str, Method] = {}
    for name in root.methods:
        if name == _ALL_TRIVIAL:
            chosen |= {method.name: method for method in TRIVIAL}
        elif name not in described:
            try:
                method = get_method(name, others=(_ALL_TRIVIAL, *described))
            except SchemaError as error:
                msg = f"{where}, methods: {error}"
                raise SchemaError(msg) from None
            chosen[method.name] = method
    return (*chosen.values(), *own)


def _model(raw: Mapping[str, Any], *, where: str, folder: Path) -> Method:
    table = _validated(ModelTable, raw, where=where, folder=folder)
    made = method_class(table.cls)
    for what, given, function in (
        ("options", table.options, made),
        ("train", table.train, getattr(made, "train", None)),
    ):
        _check_options(given, function, where=f"{where}, {what}", cls=table.cls)
    method = model_method(
        table.cls,
        name=table.name,
        model_options=_configured(table.options, where=f"{where}, options"),
        train_options=_configured(table.train, where=f"{where}, train"),
    )
    return replace(method, title=table.title or method.name)


#: What the study itself gives to methods and to their training.
_GIVEN: Final = {
    *("self", "adata", "registry", "features", "seed", "profile", "split", "checkpoint_dir")
}


def _check_options(
    given: Mapping[str, Any], function: Callable[..., Any] | None, *, where: str, cls: str
) -> None:
    """Refuse options that the class does not take: otherwise each of its runs would fail."""
    parameters = {} if function is None else inspect.signature(function).parameters
    taken = set(parameters) - _GIVEN
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # The rest goes on to Lightning's trainer; what the study gives does not.
        taken |= set(given) - _GIVEN
    refuse_unknown(given, taken, where=where, what=f"option of {cls}")


def _configured(options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return options with tables of configurations as these.

    An option of the name of a generator is its configuration. `generator` itself says which by
    `name`; without one it is a diffusion, or a flow if it has a source.
    """
    generators = registry("generators")
    kinds: dict[str, Any] = {"causal": CausalConfig, "config": TrainConfig}
    made = dict(options)
    for key, table in options.items():
        if not isinstance(table, dict) or key not in {"generator", *kinds, *generators}:
            continue
        fields, name = dict(table), key
        if key == "generator":
            name = fields.pop("name", "flow" if "source" in fields else "diffusion")
            refuse_unknown([name], generators, where=f"{where}, {key}", what="generator")
        cls = kinds.get(name) or generators[name]
        names = [field.name for field in fields_of(cls)]
        refuse_unknown(fields, names, where=f"{where}, {key}", what="field")
        try:
            made[key] = cls(**fields)
        except (TypeError, ValueError) as error:
            msg = f"{where}, {key}: {error}"
            raise SchemaError(msg) from None
    return made


#: Keys that name where a screen says what was done to its cells, and what they name.
_KEY_ROLES: Final = {
    "perturbation_key": "perturbation",
    "dose_key": "dose",
    "time_key": "time",
    "perturbation_type_key": "kind",
    "control": "control",
    "separator": "separator",
}
_IN_CONTEXTS: Final = ("unseen_context", "context_transfer")


class _TaskReader:
    """Reads a table `[[task]]` beside the annotation of its screen."""

    def __init__(self, raw: Mapping[str, Any], *, where: str, folder: Path) -> None:
        name = raw.get("name")
        self.where = f"{where} {name!r}" if isinstance(name, str) else where
        self.raw, self.folder = raw, folder
        self.table = _validated(TaskTable, raw, where=self.where, folder=folder)
        self.adata, self.layers = _read_annotations(self.table.file)

    def task(self) -> Task:
        """Return the task."""
        table = self.table
        if table.layer is not None:
            where = f"{self.where}, {table.file.name}"
            refuse_unknown([table.layer], self.layers, where=where, what="layer")
        keys = self._keys()
        for column in table.context_keys:
            self._check_column("context_keys", column)
        if table.split in _IN_CONTEXTS and not table.context_keys:
            self._refuse("context_keys", f"columns of obs, such as cell type, for {table.split!r}")
        if table.split == "dose" and keys.dose is None:
            self._refuse("dose_key", "the column of doses")
        content = _content_hash(table.file)
        return Task(
            name=table.name,
            title=table.title,
            note=table.note,
            load=ScreenFile(table.file, content, table.layer, table.values == "counts"),
            kind=table.split,
            keys=keys,
            values=table.values,
            n_folds=table.n_folds,
            options=self._options(keys),
            fold_options=self._folds(),
            gene_names=self._gene_names(),
            features=self._features(replace(keys, context=())),
            max_cells=table.max_cells,
        )

    def _refuse(self, key: str, expected: str) -> NoReturn:
        _refuse(self.raw, key, expected, where=self.where)

    def _check_column(self, key: str, column: str) -> None:
        where = f"{self.where}, {key}"
        refuse_unknown([column], map(str, self.adata.obs), where=where, what="column of obs")

    def _keys(self) -> ScreenKeys:
        """Return where the screen says what was done: as named, or as `pp.harmonize` writes it."""
        given = {role: self.raw[key] for key, role in _KEY_ROLES.items() if key in self.raw}
        for key, role in _KEY_ROLES.items():
            if key.endswith("_key") and role in given:
                self._check_column(key, given[role])
        given |= {"context": tuple(self.table.context_keys), "layer": self.table.layer}
        if "perturbation" in given:
            keys = ScreenKeys(**given)
        else:
            try:
                keys = replace(default_keys(self.adata), **given)
            except SchemaError as error:
                msg = f"{self.where}: {error} Or name it: perturbation_key = COLUMN."
                raise SchemaError(msg) from None
        column = self.adata.obs[keys.perturbation]
        if self.table.values == "counts" and keys.control not in set(as_labels(column)):
            some = ", ".join(column.value_counts().index[:5].astype(str))
            msg = (
                f"{self.where}, column {keys.perturbation!r}: no cell is {keys.control!r}; name "
                f"the control: control = LABEL. Most frequent are {some}."
            )
            raise SchemaError(msg)
        return keys

    def _options(self, keys: ScreenKeys) -> SplitOptions:
        """Return what all folds have in common."""
        kind, column, shown = self.table.split, self.table.groups, self.table.shown
        if shown and kind != "context_transfer":
            self._refuse("shown", "no such key but for 'context_transfer'")
        if column is None:
            return SplitOptions(shown=shown)
        if kind != "unseen_perturbation" or self.table.hold_out:
            self._refuse("groups", "no such key but for 'unseen_perturbation' without hold_out")
        self._check_column("groups", column)
        obs = self.adata.obs
        treated = obs[obs[keys.perturbation].astype(str) != keys.control]
        pairs = treated[[keys.perturbation, column]].astype(str).drop_duplicates()
        twice = pairs[keys.perturbation][pairs[keys.perturbation].duplicated()].unique().tolist()
        if twice:
            expected = f"a column with one label a perturbation; {twice[:3]} have several"
            self._refuse("groups", expected)
        return SplitOptions(groups=pairs.set_index(keys.perturbation)[column])

    def _gene_names(self) -> str | None:
        column = self.table.gene_names
        if column is not None:
            where = f"{self.where}, gene_names"
            refuse_unknown([column], map(str, self.adata.var), where=where, what="column of var")
        return column

    def _folds(self) -> tuple[SplitOptions, ...]:
        """Return what each fold holds out, where it is named."""
        kind, named = self.table.split, self.table.hold_out
        if not named:
            return ()
        if kind in _IN_CONTEXTS:
            return tuple(SplitOptions(context=self._context(one)) for one in named)
        labels = [label for label in named if isinstance(label, str)]
        if len(labels) < len(named):
            self._refuse("hold_out", "a list of texts for this kind of split")
        if kind == "dose":
            refuse_unknown(labels, ("inner", "top"), where=self.where, what="hold_out")
            return tuple(SplitOptions(dose=label) for label in labels)  # type: ignore[arg-type]
        if kind == "cells":
            expected = "no such key for 'cells', which holds out a share of all cells"
            self._refuse("hold_out", expected)
        return (SplitOptions(held_out=tuple(labels)),)

    def _context(self, named: str | dict[str, Any]) -> dict[str, str]:
        """Return the labels of a context that is to be held out."""
        contexts = self.table.context_keys
        if isinstance(named, str):
            if len(contexts) > 1:
                expected = f"tables, as there are several keys: {{ {contexts[0]} = ... }}"
                self._refuse("hold_out", expected)
            named = {contexts[0]: named}
        refuse_unknown(named, contexts, where=f"{self.where}, hold_out", what="context key")
        for column, label in named.items():
            known = set(as_labels(self.adata.obs[column])) - {None}
            what = f"hold_out in {column!r}"
            refuse_unknown([str(label)], known, where=self.where, what=what)
        return {column: str(label) for column, label in named.items()}

    def _features(self, keys: ScreenKeys) -> FeatureFiles | None:
        if not self.table.features:
            return None
        where = f"{self.where}, features"
        sources = _validated(FeaturesTable, self.table.features, where=where, folder=self.folder)
        if sources.smiles is not None:
            self._check_column("features, smiles", sources.smiles)
        files = (*sources.gene_sets, *([sources.table] if sources.table else []))
        content = " ".join(map(_content_hash, files))
        return FeatureFiles(keys, tuple(sources.gene_sets), sources.table, sources.smiles, content)


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read_annotations(path: Path) -> tuple[AnnData, tuple[str, ...]]:
    """Return a screen without its values, and the names of its layers."""
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
            uns = read_elem(file["uns"]) if "uns" in file else {}
            layers = tuple(file["layers"]) if "layers" in file else ()
    except (OSError, KeyError, ValueError) as error:
        msg = (
            f"{path.name} could not be read as .h5ad: it may be cut off or not be an AnnData file; "
            f"copy or download it again. The reason given: {error}"
        )
        raise SchemaError(msg) from error
    return AnnData(obs=obs, var=var, uns=uns), layers
