"""The inputs of a metric: a prediction, the measured cells, and their measured controls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb.metrics._calibration import randomized_pit
from scvi_perturb.metrics._differential import (
    DifferentialExpression,
    SortedControl,
    differential_expression,
)
from scvi_perturb.metrics._distributions import CellStates, energy_distance, fit_pca
from scvi_perturb.metrics._profiles import (
    chosen_genes,
    gene_moments,
    log_normalize,
    pseudobulk,
    pseudobulk_variance,
)

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray
    from sklearn.decomposition import PCA

    from scvi_perturb.metrics._profiles import Floats, Matrix


@checked
@dataclass(frozen=True, slots=True)
class Space:
    """The space in which cells are compared. Fit it on *training* cells only.

    Parameters
    ----------
    pca
        Principal components, from `fit_pca`.
    states
        Cell states, by which the composition of a population is described; None does not.
    genes
        The most variable genes, on which variances, correlations, ranks and scores of single
        cells are compared; None takes the 200 most variable of the control cells.
    """

    pca: PCA
    states: CellStates | None = None
    genes: NDArray[np.intp] | None = None

    @classmethod
    def fit(
        cls,
        cells: Matrix,
        *,
        n_components: int = 50,
        n_states: int = 8,
        n_genes: int = 200,
        seed: int | None = 0,
    ) -> Self:
        """Fit the space on log-normalised training cells `(n_cells, n_genes)`, dense or sparse.

        `cells`: Log-normalised training cells. `n_components`, `n_states`, `n_genes`: Numbers of
        principal components, of cell states, of most variable genes; fewer where the data do not
        allow for as many. `seed`: Seed of the solvers' starts.
        """
        pca = fit_pca(cells, n_components=n_components, seed=seed)
        states = CellStates.fit(pca.transform(cells), n_states=n_states, seed=seed)
        variance = gene_moments(cells)[1]
        return cls(pca, states, np.argsort(-variance, kind="stable")[:n_genes])


@checked
@dataclass(frozen=True)
class CellPopulation:
    """A population of cells: its profile, and its cells if they are known.

    Parameters
    ----------
    mean
        Profile of the population, `(n_genes,)`.
    mean_variance
        Sampling variance of each gene of `mean`, `(n_genes,)`; 0 for a profile without cells.
    cells
        Log-normalised cells, `(n_cells, n_genes)`; None if only the profile was predicted.
    effect_std
        Standard error that a prediction states for its mean change from control, `(n_genes,)`,
        without the noise of the measurement it is compared with; None if it states none.
    nll
        Negative log-likelihood of the real cells under the prediction, nats a cell, if it has one.
    is_real
        Whether it is a repetition of the experiment. Then `mean_variance` is known to be honest,
        and is taken out of its squared error. What a prediction says of itself is not.
    """

    mean: Floats
    mean_variance: Floats | float = 0.0
    cells: Matrix | None = None
    effect_std: Floats | None = None
    nll: float | None = None
    is_real: bool = False

    @classmethod
    def from_cells(
        cls, cells: Matrix, *, profile: Literal["cell_mean", "pseudobulk"] = "cell_mean"
    ) -> Self:
        """Describe log-normalised cells `(n_cells, n_genes)`, at least two, by a profile.

        `cells`: `log1p` of counts per ten thousand. `profile`: "cell_mean": the mean over cells.
        "pseudobulk": `log1p` of the mean over cells of counts per ten thousand, for comparison with
        profiles of counts; each cell counts alike here, as its depth is not known.
        """
        if profile == "cell_mean":
            mean, variance = gene_moments(cells)
            return cls(mean, variance / cells.shape[0], cells)
        is_sparse = sparse.issparse(cells)
        counts = sparse.csr_matrix(cells).expm1() if is_sparse else np.expm1(np.asarray(cells))
        linear, variance = gene_moments(counts)
        return cls(np.log1p(linear), variance / cells.shape[0] / (1.0 + linear) ** 2, cells)

    @classmethod
    def from_counts(cls, counts: Matrix) -> Self:
        """Describe raw counts `(n_cells, n_genes)` by their pseudobulk.

        One cell has a profile but no sampling variance, which is then NaN.
        """
        variance = np.nan if counts.shape[0] < 2 else pseudobulk_variance(counts)
        return cls(pseudobulk(counts), variance, log_normalize(counts))

    @property
    def known_cells(self) -> Matrix:
        """The cells, `(n_cells, n_genes)`.

        Raises `SchemaError`: If it is a profile alone.
        """
        if self.cells is None:
            msg = (
                "Found a profile without cells; this metric compares cells: give "
                "`CellPopulation.from_counts(...)` or `CellPopulation.from_cells(...)` on both "
                "sides."
            )
            raise SchemaError(msg)
        return self.cells

    @cached_property
    def sorted(self) -> SortedControl:
        """The cells, sorted once for many tests against them."""
        return SortedControl.of(self.known_cells)


@checked
@dataclass(frozen=True, eq=False)
class Panel:
    """The conditions that are ranked against each other: held out together, in one context.

    Parameters
    ----------
    changes
        Change of each real condition from its own control, `(n_conditions, n_genes)`.
    targeted
        Genes that any of them targets, `(n_genes,)`.
    """

    changes: Floats
    targeted: NDArray[np.bool_]


@checked
@dataclass(frozen=True)
class GroundTruth:
    """One held-out condition as it was measured.

    Parameters
    ----------
    observed, control
        The real cells, and the *real* control cells of the same context. What is computed from
        these alone is kept, so that many predictions can be compared with one `GroundTruth`.
    space
        What was fitted on training cells for the metrics of cells.
    name
        Name of the condition, in its context.
    panel, place
        The conditions among which it is ranked, and its row there. All of them, whatever a method
        answers; of one context, since to tell contexts apart is no skill. None ranks it among
        the conditions that are scored together.
    own_genes
        Indices of the genes that the perturbation targets: their own change is the premise of the
        experiment and is left out of its score.
    centre
        Mean change of the training conditions of the same context, `(n_genes,)`.
    energy_scale
        Energy distance of a replicate, and of shifted control cells, of this condition.
    n_top
        Number of genes with the largest true change to which some metrics look.
    max_cells
        At most this many cells a side in metrics that compare pairs of cells.
    seed
        Seed of the draw of those cells and of the randomised ranks.
    """

    observed: CellPopulation
    control: CellPopulation
    space: Space | None = None
    name: str = ""
    panel: Panel | None = None
    place: int = 0
    own_genes: tuple[int, ...] = ()
    centre: Floats | None = None
    energy_scale: tuple[float, float] | None = None
    n_top: int = 100
    max_cells: int | None = 500
    seed: int | None = 0

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Genes that are scored: all except the perturbed ones, `(n_genes,)`."""
        kept = np.ones(len(self.observed.mean), bool)
        kept[list(self.own_genes)] = False
        return kept

    @cached_property
    def points(self) -> Floats:
        """The real cells in the components of `space`."""
        return self.project(self.observed.known_cells)

    @cached_property
    def differential(self) -> DifferentialExpression:
        """The test of real cells against real control cells."""
        return differential_expression(self.observed.known_cells, self.control.sorted)

    @cached_property
    def variable_genes(self) -> NDArray[np.intp]:
        """Genes on which the structure of cells is compared, without the perturbed ones."""
        genes = None if self.space is None else self.space.genes
        if genes is None:
            variance = gene_moments(self.control.known_cells)[1]
            genes = np.argsort(-variance, kind="stable")[:200]
        return genes[self.kept[genes]]

    def project(self, cells: Matrix) -> Floats:
        """Return cells in the components of `space`, without the perturbed genes.

        Raises `SchemaError`: If there is no space.
        """
        if self.space is None:
            msg = "Cells are compared in a space: give `GroundTruth(space=Space.fit(training))`."
            raise SchemaError(msg)
        pca = self.space.pca
        points: Floats = pca.transform(cells)
        if self.own_genes:
            own = list(self.own_genes)
            away = chosen_genes(cells, np.array(own)) - pca.mean_[own]
            points = points - away @ pca.components_[:, own].T
        return points


@checked
@dataclass(frozen=True)
class Comparison:
    """A prediction of one condition, with the condition as measured."""

    predicted: CellPopulation
    truth: GroundTruth

    @property
    def profiles(self) -> tuple[Floats, Floats, Floats]:
        """Predicted, observed and control profile, without the perturbed genes."""
        truth, kept = self.truth, self.truth.kept
        return self.predicted.mean[kept], truth.observed.mean[kept], truth.control.mean[kept]

    @property
    def cells(self) -> tuple[Matrix, Matrix]:
        """Predicted and real cells."""
        return self.predicted.known_cells, self.truth.observed.known_cells

    @property
    def stated_effects(self) -> tuple[Floats, Floats, Floats, Floats]:
        """The arguments of `effect_pit`, without the perturbed genes.

        Stated change and standard error, measured change and its sampling variance.

        Raises `SchemaError`: If the prediction states no standard error.
        """
        stated, truth = self.predicted.effect_std, self.truth
        if stated is None:
            msg = f"The prediction of {truth.name!r} states no standard error of its mean change."
            raise SchemaError(msg)
        predicted, observed, control = self.profiles
        variance = np.broadcast_to(truth.observed.mean_variance, truth.kept.shape)[truth.kept]
        return predicted - control, stated[truth.kept], observed - control, variance

    @cached_property
    def points(self) -> Floats:
        """The predicted cells in the components of the space."""
        return self.truth.project(self.predicted.known_cells)

    @cached_property
    def differential(self) -> DifferentialExpression:
        """The test of predicted cells against the real control cells."""
        return differential_expression(self.predicted.known_cells, self.truth.control.sorted)

    @cached_property
    def energy(self) -> float:
        """The energy distance of predicted and real cells."""
        truth = self.truth
        most, seed = truth.max_cells, truth.seed
        return energy_distance(self.points, truth.points, max_cells=most, seed=seed)

    @cached_property
    def variable(self) -> tuple[Floats, Floats]:
        """Predicted and real cells over the most variable genes, dense."""
        made, real = (chosen_genes(cells, self.truth.variable_genes) for cells in self.cells)
        return made, real

    @cached_property
    def ranks(self) -> Floats:
        """Ranks of the real values among the predicted ones, `(n_cells, n_variable_genes)`."""
        return randomized_pit(*self.variable, seed=self.truth.seed)
