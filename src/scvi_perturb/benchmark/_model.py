"""A generative model in the protocol of predictors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scvi_perturb._errors import NotTrainedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data import ConditionKeys, Split
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.model._base import PerturbationModel
    from scvi_perturb.predictors._protocol import Conditions

__all__ = ["ModelPredictor"]

#: Draws over which the likelihood of a cell is averaged.
_N_DRAWS = 100


class ModelPredictor:
    """A model that is set up and trained by `fit`.

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
        seed: int = 0,
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
        return sum(p.numel() for p in self.model.module.parameters() if p.requires_grad)

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
    ) -> Self:
        """Register the columns and train; as `Predictor.fit`."""
        columns = {} if keys is None else keys.columns
        adata = adata.copy()
        self._cls.setup_anndata(
            adata,
            layer=layer,
            perturbation_key=columns.get("perturbation"),
            control=None if keys is None else keys.control,
            dose_key=columns.get("dose"),
            time_key=columns.get("time"),
            perturbation_type_key=columns.get("kind"),
            context_keys=list(context_keys) or None,
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
        """Return the negative log-likelihood of cells, its bound if the model has a bound only.

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
