"""The methods to compare: trivial predictions, predictors and models, by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from scvi_perturb import predictors as p
from scvi_perturb._checks import checked
from scvi_perturb._core import NotTrainedError, SchemaError
from scvi_perturb.registry import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark.task import Task
    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.split.kinds import Scenario
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.model.base.model import PerturbationModel
    from scvi_perturb.predictors.base import MeanPredictor
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.request import Conditions, Predictor
    from scvi_perturb.registry import Registry

#: "mean": a trivial prediction of means; "cells": a trivial prediction of cells; "model": what is
#: judged; "replicate": the experiment repeated.
Role = Literal["mean", "cells", "model", "replicate"]

#: Name of the replicate of the experiment in results.
REPLICATE: Final = "replicate"
#: The method whose energy distance is the unit of `energy_ratio`.
SHIFTED_CONTROL: Final = "shifted_control"

#: Draws over which the likelihood of a cell is averaged.
_N_DRAWS: Final = 100


@checked
@dataclass(frozen=True, slots=True)
class Setting:
    """The information that a method gets before it sees the data.

    Parameters
    ----------
    kind, values
        Of the task.
    features
        What is known of perturbations beforehand, if anything is.
    seed
        Seed of the trial.
    """

    kind: Scenario
    values: Literal["counts", "effects"]
    features: PerturbationFeatures | None
    seed: int

    @property
    def profile(self) -> Profile:
        """What the mean of a population is in this task."""
        return "effects" if self.values == "effects" else "pseudobulk"


@checked
@dataclass(frozen=True, kw_only=True)
class Method:
    """A named way to predict.

    Parameters
    ----------
    name
        Name in code and files: letters, digits, "_" and "-".
    make
        Returns an unfitted predictor for a setting. For several processes it holds no open file or
        lock.
    title
        Name in tables for readers; the name if empty.
    role
        What it counts as.
    values
        Kinds of tasks' values that it takes.
    kinds
        Kinds of splits that it answers; None answers all.
    needs_features
        Whether it needs features of perturbations.
    """

    name: str
    make: Callable[[Setting], Predictor]
    title: str = ""
    role: Role = "model"
    values: tuple[Literal["counts", "effects"], ...] = ("counts",)
    kinds: tuple[Scenario, ...] | None = None
    needs_features: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            msg = f"Method name {self.name!r} must be of letters, digits, '_' and '-'."
            raise ValueError(msg)
        if self.name == REPLICATE:
            msg = f"{REPLICATE!r} is the name of the experiment repeated; choose another."
            raise ValueError(msg)
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))

    def applies(self, task: Task) -> bool:
        """Whether the method applies to a task."""
        return (
            task.values in self.values
            and (self.kinds is None or task.kind in self.kinds)
            and not (self.needs_features and task.features is None)
        )


@checked
class ModelPredictor:
    """A generative model with the interface of a predictor: `fit` registers and trains it.

    Parameters
    ----------
    cls
        Class of the model, from `scvi_perturb.model`.
    features
        What is known of perturbations beforehand.
    seed
        Seed of the model, of its training and of what it draws.
    model_options, train_options
        Passed on to the model and to `train`.
    """

    def __init__(
        self,
        cls: type[PerturbationModel],
        *,
        features: PerturbationFeatures | None = None,
        seed: int | None = 0,
        model_options: Mapping[str, Any] | None = None,
        train_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = cls.__name__
        self._cls, self._features, self._seed = cls, features, seed
        self._model_options = dict(model_options or {})
        self._train_options = {"enable_progress_bar": False} | dict(train_options or {})
        self._model: PerturbationModel | None = None

    @property
    def model(self) -> PerturbationModel:
        """The trained model.

        Raises
        ------
        NotTrainedError
            Before `fit`.
        """
        if self._model is None:
            msg = f"{self.name} has not seen data; call `fit(adata, split)` first."
            raise NotTrainedError(msg)
        return self._model

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(w.numel() for w in self.model.module.parameters() if w.requires_grad)

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ScreenKeys | None = None,
    ) -> Self:
        """Register the columns and train; as `Predictor.fit`."""
        columns = {} if keys is None else keys.columns
        context = () if keys is None else keys.context
        adata = adata.copy()
        self._cls.setup_anndata(
            adata,
            layer=None if keys is None else keys.layer,
            perturbation_key=columns.get("perturbation"),
            control=None if keys is None else keys.control,
            dose_key=columns.get("dose"),
            time_key=columns.get("time"),
            perturbation_type_key=columns.get("kind"),
            context_keys=list(context) or None,
            separator=None if keys is None else keys.separator,
        )
        options = {"features": self._features, "seed": self._seed} | self._model_options
        self._model = self._cls(adata, **options)
        self._model.train(split=split, seed=self._seed, **self._train_options)
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean of each condition, with its standard error; as the model's `predict`."""
        return self.model.predict(conditions, reference=reference, seed=self._seed)

    def sample(
        self,
        conditions: Conditions,
        *,
        reference: AnnData | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return integer counts of cells; as the model's `sample`."""
        return self.model.sample(conditions, reference=reference, n_samples=n_samples, seed=seed)

    def nll(self, cells: AnnData) -> NDArray[np.float64]:
        """Return the negative log-likelihood of cells, or its bound if the model has only a bound.

        Parameters
        ----------
        cells
            Cells with the columns of training, raw counts.

        Returns
        -------
        `(n_cells,)`, nats, the library size of each cell given; NaN if the model has none.
        """
        bound = getattr(self.model, "log_likelihood_bound", None)
        if bound is None or not getattr(self.model, "has_likelihood", True):
            return np.full(cells.n_obs, np.nan)
        # Draws from the model are many and cheap, those of an exact density few and dear.
        n_draws = None if getattr(self.model, "has_density", False) else _N_DRAWS
        return -np.asarray(bound(cells.copy(), n_samples=n_draws, seed=self._seed), np.float64)


# What the methods below make. Results are kept by the names of these functions: where one is
# renamed, `results._FORMER_MODULES` says what it was called.


def _best_mean(setting: Setting, profile: Profile) -> MeanPredictor:
    """Return the trivial mean around which trivial cells are put: a good one of its kind."""
    everywhere = p.ContextMean("perturbations", profile=profile)
    first: dict[str, MeanPredictor] = {
        "unseen_combination": p.FirstKnown(
            p.Additive(profile=profile), p.MatchingMean(profile=profile)
        ),
        "dose": p.FirstKnown(p.DoseLine(profile=profile), everywhere),
        # what is shown of it in its own context, else in the others
        "context_transfer": p.FirstKnown(p.Additive(profile=profile), everywhere),
        "unseen_context": p.ContextMean("contexts", profile=profile),
        "cells": p.Additive(profile=profile),
    }
    if setting.kind in first:
        return first[setting.kind]
    if setting.features is None:
        return everywhere
    return p.FirstKnown(p.LatentAdditive(setting.features, profile=profile), everywhere)


def _no_change(setting: Setting) -> Predictor:
    return p.NoChange(profile=setting.profile)


def _context_mean(setting: Setting) -> Predictor:
    if setting.values == "effects":
        return p.ContextMean("all", profile="effects")
    over_contexts = setting.kind in ("unseen_context", "context_transfer")
    return p.ContextMean("contexts" if over_contexts else "perturbations", profile=setting.profile)


def _mean_in_context(setting: Setting) -> Predictor:
    return p.ContextMean("perturbations", profile=setting.profile)


def _plain(setting: Setting, cls: type[Any]) -> Predictor:
    made: Predictor = cls(profile=setting.profile)
    return made


def _with_features(setting: Setting, cls: type[Any]) -> Predictor:
    made: Predictor = cls(setting.features, profile=setting.profile)
    return made


def _dose_line(setting: Setting, form: Literal["log_linear", "hill"]) -> Predictor:
    return p.DoseLine(form, profile=setting.profile)


def _unchanged_cells(setting: Setting) -> Predictor:
    del setting
    return p.ShiftedControl(p.NoChange(profile="cell_mean"))


def _shifted(setting: Setting) -> Predictor:
    return p.ShiftedControl(_best_mean(setting, "cell_mean"))


def _negative_binomial(setting: Setting) -> Predictor:
    return p.NegativeBinomialMean(_best_mean(setting, "pseudobulk"))


def _nearest_cells(setting: Setting) -> Predictor:
    return p.NearestCells(setting.features)


def _condition_gp(setting: Setting) -> Predictor:
    return p.ConditionGP(setting.features, profile=setting.profile)


def _stacked_mean(setting: Setting, contrast: float = 0.0) -> Predictor:
    return p.StackedMean(
        setting.features, seed=setting.seed, contrast=contrast, profile=setting.profile
    )


def _make(
    setting: Setting,
    *,
    model: str,
    model_options: Mapping[str, Any],
    train_options: Mapping[str, Any],
) -> Predictor:
    """Return a model or a predictor by its class, with options of its own."""
    cls: Any = method_class(model)
    if _is_predictor(cls):
        known = {"features": setting.features, "seed": setting.seed, "profile": setting.profile}
        taken = inspect.signature(cls).parameters
        own = {name: value for name, value in known.items() if name in taken}
        predictor: Predictor = cls(**own | dict(model_options))
        return predictor
    return ModelPredictor(
        cls,
        features=setting.features,
        seed=setting.seed,
        model_options=model_options,
        train_options=train_options,
    )


_BOTH: Final = ("counts", "effects")
_mean = partial(Method, role="mean", values=_BOTH)
_cells = partial(Method, role="cells")
_featured = partial(_mean, kinds=("unseen_perturbation", "unseen_combination"), needs_features=True)

#: The methods with a definition of their own, by name: trivial predictions of means, then of
#: cells, then what is judged. Other predictors and models are found by `get_method`.
OWN_METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        _mean(name="no_change", make=_no_change),
        _mean(
            name="context_mean",
            title="mean of training",
            make=_context_mean,
            kinds=(
                "unseen_context",
                "context_transfer",
                "unseen_perturbation",
                "unseen_combination",
                "dose",
            ),
        ),
        _mean(
            name="mean_in_context",
            title="mean of training in the context",
            make=_mean_in_context,
            kinds=("context_transfer",),
        ),
        _mean(
            name="matching_mean",
            make=partial(_plain, cls=p.MatchingMean),
            kinds=("unseen_combination",),
        ),
        _mean(
            name="additive",
            make=partial(_plain, cls=p.Additive),
            kinds=("unseen_combination", "context_transfer", "cells"),
        ),
        _mean(
            name="latent_additive",
            make=partial(_plain, cls=p.LatentAdditive),
            kinds=("unseen_combination",),
        ),
        _mean(
            name="latent_additive_features",
            title="latent additive, features",
            make=partial(_with_features, cls=p.LatentAdditive),
            kinds=("unseen_perturbation",),
            needs_features=True,
        ),
        _mean(name="dose_line", make=partial(_dose_line, form="log_linear"), kinds=("dose",)),
        _mean(
            name="dose_hill",
            title="Hill curve",
            make=partial(_dose_line, form="hill"),
            kinds=("dose",),
        ),
        _featured(
            name="pca_ridge", title="PCA ridge", make=partial(_with_features, cls=p.PCARidge)
        ),
        _featured(name="kernel_ridge", make=partial(_with_features, cls=p.KernelRidge)),
        _featured(
            name="nearest_perturbation", make=partial(_with_features, cls=p.NearestPerturbation)
        ),
        _cells(name="control_cells", make=_unchanged_cells),
        _cells(name=SHIFTED_CONTROL, title="shifted control cells", make=_shifted),
        _cells(name="negative_binomial_mean", title="NB around the mean", make=_negative_binomial),
        _cells(name="nearest_cells", title="nearest condition's cells", make=_nearest_cells),
        # The regression of means, judged as a model: it is no trivial prediction.
        Method(name="condition_gp", title="ConditionGP", make=_condition_gp, values=_BOTH),
        # The regression and the trivial predictions, weighed by their errors.
        Method(name="stacked_mean", title="StackedMean", make=_stacked_mean, values=_BOTH),
        # The same where a perturbation never seen is to be told from others. On one seed of LINCS,
        # 2 has a left-out error within a standard error of the least in all five folds.
        Method(
            name="stacked_mean_contrast",
            title="StackedMean, contrast 2",
            make=partial(_stacked_mean, contrast=2.0),
            values=_BOTH,
            kinds=("unseen_perturbation",),
            needs_features=True,
        ),
    )
}

#: Trivial predictions by what they predict: means, then cells.
TRIVIAL: Final = tuple(method for method in OWN_METHODS.values() if method.role != "model")

#: All methods, those of other packages too.
METHODS: Final[Registry[Method]] = registry("methods")
_MODELS: Final[Registry[type[PerturbationModel]]] = registry("models")


def class_names() -> list[str]:
    """Return the names of models, then those of the classes of predictors."""
    return [*sorted(_MODELS), *(cls.__name__ for cls in p.PREDICTORS.values())]


def method_class(name: str) -> type[Any]:
    """Return the class of a model or of a predictor by its name.

    Raises `ValueError`: If there is no such class.
    """
    if name in _MODELS:
        return _MODELS[name]
    found = next((cls for cls in p.PREDICTORS.values() if cls.__name__ == name), None)
    if found is None:
        msg = f"Model {name!r} is not known; choose one of {', '.join(class_names())}."
        raise ValueError(msg)
    return found


@checked
def get_method(name: str, *, others: Iterable[str] = ()) -> Method:
    """Return a method by its name, or by the class of a predictor or model, with its defaults.

    Parameters
    ----------
    name
        A method ("no_change", "stacked_mean"), a predictor by name or class ("feature_forest",
        "StackedMean"), or a model by class ("PerturbDiffusion").
    others
        Names that may be meant besides, for the message.

    Raises
    ------
    SchemaError
        If there is none, with the nearest name that is known.
    """
    key = next((key for key, cls in p.PREDICTORS.items() if cls.__name__ == name), name)
    if key in METHODS:
        return METHODS[key]
    if key in p.PREDICTORS:
        return model_method(p.PREDICTORS[key].__name__, name=key)
    refuse_unknown([name], {*METHODS, *p.PREDICTORS, *class_names(), *others}, what="method")
    return model_method(name)


@checked
def model_method(
    model: str,
    *,
    name: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    train_options: Mapping[str, Any] | None = None,
) -> Method:
    """Return a model of `scvi_perturb.model`, or a predictor, as a method.

    A model is set up with the columns of the task, given its features where it has any, and
    trained with its defaults but for the options given.

    Parameters
    ----------
    model
        Name of the class.
    name
        Name in results; that of the class if None.
    model_options, train_options
        Passed on to the class and to its `train`; a predictor is not trained.

    Raises
    ------
    ValueError
        If there is no such class, or `train_options` are given for a predictor.
    """
    cls = method_class(model)
    if _is_predictor(cls) and train_options:
        msg = f"{model} is fitted at once and has no options of training; got {train_options}."
        raise ValueError(msg)
    has_profile = "profile" in inspect.signature(cls).parameters
    return Method(
        name=name or model,
        title=name or model,
        make=partial(
            _make, model=model, model_options=model_options or {}, train_options=train_options or {}
        ),
        values=_BOTH if has_profile else ("counts",),
    )


def _is_predictor(cls: type[Any]) -> bool:
    return cls in p.PREDICTORS.values()


def refuse_unknown(
    given: Iterable[str], known: Iterable[str], *, what: str, where: str = ""
) -> None:
    """Raise for the first name that is not known, with the nearest one that is.

    Raises `SchemaError`: Naming it, and those that are known.
    """
    legal = sorted(known)
    for name in given:
        if name not in legal:
            near = get_close_matches(name, legal, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            before = f"{where}: " if where else ""
            msg = f"{before}{what} {name!r} is not known{hint} Known are {', '.join(legal)}."
            raise SchemaError(msg)
