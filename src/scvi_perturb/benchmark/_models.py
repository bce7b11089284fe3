"""The models of this package as methods."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from scvi_perturb.benchmark._method import Method
from scvi_perturb.benchmark._model import ModelPredictor
from scvi_perturb.predictors import ConditionGP, StackedMean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.benchmark._method import Setting
    from scvi_perturb.predictors import Predictor

__all__ = ["CONDITION_GP", "CONTRASTED_STACK", "STACKED_MEAN", "model_method", "model_names"]


def _condition_gp(setting: Setting) -> Predictor:
    return ConditionGP(setting.features, profile=setting.profile)


def _stacked_mean(setting: Setting, contrast: float = 0.0) -> Predictor:
    return StackedMean(
        setting.features, seed=setting.seed, contrast=contrast, profile=setting.profile
    )


#: The stack of means: the regression and the trivial predictions, by their errors.
STACKED_MEAN: Final = Method(
    name="stacked_mean",
    title="StackedMean",
    make=_stacked_mean,
    role="model",
    values=("counts", "effects"),
)


#: The same where a perturbation never seen is to be told from others. On one seed of LINCS, 2 has a
#: left-out error, in training, within a standard error of the least in all five folds.
CONTRASTED_STACK: Final = Method(
    name="stacked_mean_contrast",
    title="StackedMean, contrast 2",
    make=partial(_stacked_mean, contrast=2.0),
    role="model",
    values=("counts", "effects"),
    kinds=("unseen_perturbation",),
    needs_features=True,
)


#: The regression of means, judged as a model: it is no trivial prediction.
CONDITION_GP: Final = Method(
    name="condition_gp",
    title="ConditionGP",
    make=_condition_gp,
    role="model",
    values=("counts", "effects"),
)


def model_names() -> tuple[str, ...]:
    """Return the names of the models that can be judged."""
    from scvi_perturb import model

    return tuple(model.__all__)


def model_method(
    model: str,
    *,
    name: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    train_options: Mapping[str, Any] | None = None,
) -> Method:
    """Return a model of `scvi_perturb.model` as a method.

    It is set up with the columns of the task, given its features where it has any, and trained
    with its defaults but for the options given.

    Parameters
    ----------
    model
        Name of the class.
    name
        Name in results; that of the class if None.
    model_options, train_options
        Passed on to the class and to its `train`.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if model not in model_names():
        msg = f"Model {model!r} is not known; choose one of {', '.join(model_names())}."
        raise ValueError(msg)
    make = partial(
        _make, model=model, model_options=model_options or {}, train_options=train_options or {}
    )
    return Method(name=name or model, title=name or model, make=make, role="model")


def _make(
    setting: Setting,
    *,
    model: str,
    model_options: Mapping[str, Any],
    train_options: Mapping[str, Any],
) -> ModelPredictor:
    from scvi_perturb import model as models

    return ModelPredictor(
        getattr(models, model),
        features=setting.features,
        seed=setting.seed,
        model_options=model_options,
        train_options=train_options,
    )
