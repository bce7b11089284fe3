"""Counts drawn around a predicted mean, each gene for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self

import numpy as np
from scipy import sparse

from scvi_perturb._constants import TARGET_SUM, UNS_KEY
from scvi_perturb._errors import check_choice
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cells import read_counts, seen_cells
from scvi_perturb.predictors._closure import proportions
from scvi_perturb.predictors._context_mean import ContextMean
from scvi_perturb.predictors._dispersion import moment_dispersion
from scvi_perturb.predictors._from_controls import FromControls
from scvi_perturb.predictors._mean import UNITS, MeanPredictor
from scvi_perturb.predictors._requests import context_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split
    from scvi_perturb.predictors._cell_source import Population
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._protocol import Conditions

__all__ = ["COUNT_UNITS", "NegativeBinomialMean"]

COUNT_UNITS: Final = "counts"
#: Values that are drawn at a time.
_BLOCK = 4_000_000


class NegativeBinomialMean(FromControls):
    """Predict cells: negative binomial counts around a predicted mean, genes independent.

    A cell has the library size of a control cell (its counts summed over the genes), resampled as
    `sample` says, and for each gene a count of mean library size times the gene's proportion in
    the predicted profile. The variance is `m + a m**2`, with `a` for each gene by moments from
    training cells around the mean of their group. It says what spread counting and
    overdispersion alone give: a claim about the *structure* of predicted cells counts where it
    beats this with the same mean. Cells are integer counts, CSR float32.

    Parameters
    ----------
    mean
        Predictor of the change, with `profile="pseudobulk"`; `ContextMean()` if None. Its profile
        is turned back from `log1p` to proportions; what would be negative is 0.
    dispersion_from
        "controls": training control cells, around the mean of their context. "all": all training
        cells, around the mean of their condition in their context; their counts are read into
        memory for it.

    Raises
    ------
    ValueError
        If the mean's profile is not "pseudobulk".
    """

    name: ClassVar[str] = "negative_binomial_mean"

    def __init__(
        self,
        mean: MeanPredictor | None = None,
        *,
        dispersion_from: Literal["controls", "all"] = "controls",
    ) -> None:
        super().__init__(ContextMean() if mean is None else mean)
        check_choice("mean.profile", self.mean.profile, ("pseudobulk",))
        check_choice("dispersion_from", dispersion_from, ("controls", "all"))
        self.dispersion_from = dispersion_from

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
    ) -> Self:
        """Fit the mean, keep the training control cells, estimate the dispersion of each gene.

        Parameters and errors are those of `MeanPredictor.fit`.
        """
        super().fit(adata, split, keys=keys, context_keys=context_keys, layer=layer)
        controls = self._held()
        if self.dispersion_from == "controls":
            counts, labels = controls.counts, [(0, own) for own in controls.contexts]
        else:
            profiles, seen = self.mean.profiles, seen_cells(adata, split)
            obs = adata.obs.iloc[seen]
            codes, _ = encode_obs(obs, profiles.keys)
            own_contexts = context_labels(obs, profiles.context_keys)
            counts = read_counts(adata, layer, seen)
            labels = list(zip(codes.tolist(), own_contexts, strict=True))
        place = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        #: `a` in `m + a m**2`, `(n_genes,)`.
        self.dispersion = moment_dispersion(counts, np.array([place[label] for label in labels]))
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean that cells are drawn around: that of `mean`, scaled to sum to 1e4.

        Parameters, result and errors are those of `MeanPredictor.predict`.
        """
        answer, populations = self._populations(conditions, reference)
        for i, population in enumerate(populations):
            base = population.mean - population.change
            answer.X[i] = np.log1p(TARGET_SUM * proportions(population.mean))
            answer.layers["lfc"][i] = answer.X[i] - base
        answer.uns[UNS_KEY] = self._provenance() | {"units": UNITS}
        return answer

    @property
    def _about(self) -> tuple[str, str, Profile]:
        return f"{self.name}({self.mean.name})", COUNT_UNITS, self.mean.profile

    def _cells(
        self, population: Population, drawn: NDArray[np.intp], rng: np.random.Generator
    ) -> sparse.csr_matrix:
        library = np.asarray(population.counts.sum(axis=1), np.float64).ravel()[drawn]
        share = proportions(population.mean)
        step = max(1, _BLOCK // len(share))
        return sparse.vstack(
            [
                sparse.csr_matrix(self._counts(library[start : start + step], share, rng))
                for start in range(0, len(library), step)
            ],
            "csr",
        )

    def _counts(
        self,
        library: NDArray[np.float64],
        share: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        """Return Poisson draws around Gamma rates, `(n_cells, n_genes)`."""
        rate = library[:, None] * share
        spread = self.dispersion > 1e-8
        scale = self.dispersion[spread]
        rate[:, spread] *= rng.gamma(1 / scale, scale, size=(len(library), len(scale)))
        return rng.poisson(rate).astype(np.float32)
