"""Signatures drawn around a mean: for data whose rows are changes already, and not cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb._checks import checked
from scvi_perturb._core import UNS_KEY, SchemaError
from scvi_perturb.predictors.base import EFFECT_UNITS, learned, provenance
from scvi_perturb.predictors.request import read_request
from scvi_perturb.predictors.stack.stacked_mean import StackedMean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.request import Conditions

    Floats = NDArray[np.float64]


@checked
class SampledSignatures:
    """Predict signatures, bulk changes or z-scores, and how they may turn out together.

    The mean, its standard deviation and intervals are those of :class:`StackedMean` with
    `profile="effects"`. Around it stands a Normal law whose standard deviations are those, and
    whose correlations between genes are those of the errors that were made on what was left out of
    training: leading components, and what is left for each gene alone. So a drawn signature is one
    that a new experiment may show, with genes that go up and down together.

    Parameters
    ----------
    features
        What is known about perturbations, or None.
    mean
        A stack in place of the usual one; its `profile` is "effects".
    n_factors
        Number of components of the correlations; 0 takes genes for independent.
    seed
        Seed of the stack.

    Raises
    ------
    SchemaError
        If `mean` has another profile.
    ValueError
        If `n_factors` is negative.
    """

    name: ClassVar[str] = "sampled_signatures"

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        mean: StackedMean | None = None,
        n_factors: int = 20,
        seed: int | None = 0,
    ) -> None:
        self.mean = StackedMean(features, seed=seed, profile="effects") if mean is None else mean
        if self.mean.profile != "effects":
            msg = f"The mean predicts {self.mean.profile!r} profiles; signatures need 'effects'."
            raise SchemaError(msg)
        self.n_factors = n_factors
        self._loadings: Floats | None = None

    @property
    def loadings(self) -> Floats:
        """Components of the correlations between genes, `(n_factors, n_genes)`.

        Raises
        ------
        NotTrainedError
            Before `fit`.
        """
        return learned(self._loadings, self)

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Learn the mean, and how its errors go together; as `MeanPredictor.fit`.

        Errors are those of the scenarios that the stack was made for, or of the likeliest one.

        Raises
        ------
        SchemaError
            As `MeanPredictor.fit`, and if nothing could be left out of training.
        """
        self.mean.fit(adata, split, keys=keys)
        likely = self.mean.likely_scenario()
        asked = self.mean.scenarios or ([] if likely is None else [likely])
        found = [self.mean.weigh(scenario).standard_errors() for scenario in asked]
        errors = [one for one in found if one is not None]
        if not errors:
            msg = (
                "Nothing could be left out of training, so how errors go together is not known. "
                "Give more conditions, contexts or features."
            )
            raise SchemaError(msg)
        self._loadings = _loadings(np.concatenate(errors), self.n_factors)
        return self

    def predict(self, conditions: Conditions, *, interval: float = 0.9) -> AnnData:
        """Return the mean of each condition, its error and interval; as `StackedMean.predict`."""
        return self.mean.predict(conditions, interval=interval)

    def sample(
        self, conditions: Conditions, *, n_samples: int = 100, seed: int | None = None
    ) -> AnnData:
        """Draw signatures.

        Parameters
        ----------
        conditions
            As in `MeanPredictor.predict`.
        n_samples
            Draws of each condition.
        seed
            Seed of the draw; None draws anew each time.

        Returns
        -------
        AnnData with one row a draw: `X` `(n_conditions * n_samples, n_genes)` float32 in the units
        of the data; `obs` the condition's columns and `draw`.

        Raises
        ------
        UnknownPerturbationError, SchemaError
            As `StackedMean.predict`.
        ValueError
            If `n_samples` is below 1.
        """
        random = np.random.default_rng(seed)
        loadings = self.loadings
        requests, _ = read_request(conditions, None, self.mean.profiles)
        answer = self.mean.predict_changes(requests, interval=None)
        alone = np.sqrt(np.clip(1 - (loadings**2).sum(axis=0), 0.0, 1.0))
        rows = []
        for mean, std in zip(answer.mean, answer.std, strict=True):
            shared = random.standard_normal((n_samples, len(loadings))) @ loadings
            own = random.standard_normal((n_samples, len(mean))) * alone
            rows.append((mean + std * (shared + own)).astype(np.float32))
        table = self.mean.predict(conditions).obs.drop(columns=["novelty", "support", "scenario"])
        obs = table.loc[table.index.repeat(n_samples)].copy()
        obs["draw"] = np.tile(np.arange(n_samples), len(requests))
        obs.index = pd.Index([f"row{i}_draw{d}" for i in range(len(requests))
                              for d in range(n_samples)])  # fmt: skip
        made = AnnData(
            np.concatenate(rows), obs=obs, var=pd.DataFrame(index=self.mean.profiles.var_names)
        )
        origin = {"seed": "none" if seed is None else seed}
        made.uns[UNS_KEY] = provenance(self.name, EFFECT_UNITS) | origin
        return made


def _loadings(errors: Floats, n_factors: int) -> Floats:
    """Return leading components of the correlations of errors, `(k, n_genes)`."""
    # left out are those that independent errors could have as well; 0.95 of a gene at most
    spread = np.sqrt((errors**2).mean(axis=0))
    unit = errors / np.where(spread > 0, spread, 1.0)
    n_rows, n_genes = unit.shape
    _, values, axes = np.linalg.svd(unit / np.sqrt(n_rows), full_matrices=False)
    chance = (1 + np.sqrt(n_genes / n_rows)) ** 2  # Marchenko and Pastur 1967
    kept = int(min(n_factors, (values**2 > chance).sum()))
    # of each variance, what independent errors would add to it
    size = np.sqrt(np.maximum(values[:kept] ** 2 - n_genes / n_rows, 0.0))
    made: Floats = size[:, None] * axes[:kept]
    share = (made**2).sum(axis=0)
    made /= np.sqrt(np.maximum(share / 0.95, 1.0))
    return made
