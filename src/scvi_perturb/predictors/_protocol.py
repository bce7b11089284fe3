"""What every predictor can be asked, so that a benchmark need not know which one it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split

    #: Names ("A", "A+B"), or a table of conditions with a column for each thing that varies.
    Conditions: TypeAlias = Sequence[str] | pd.DataFrame

__all__ = ["CellPredictor", "Predictor"]


@runtime_checkable
class Predictor(Protocol):
    """Anything that learns from a screen and predicts the mean of conditions."""

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
    ) -> Self:
        """Learn from the cells of `split` that may be seen, or from all cells.

        No expression value, cell number or library size of a held-out condition is received:
        with the test cells spoilt or taken away, the predictor that is learned is the same.

        Parameters
        ----------
        adata
            A screen with raw counts, or what the predictor says it learns from.
        split
            Its training cells are seen, and its validation cells by what has nothing to tune.
        keys
            Columns that hold the condition; None takes those of `pp.harmonize`.
        context_keys
            Columns that hold the context of a cell: cell type, donor.
        layer
            Where the counts are; None is `X`.
        """
        ...

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return one row a condition: `X` its mean, `layers["lfc"]` its change from control.

        Parameters
        ----------
        conditions
            A list of names, or a table with the columns `perturbation`, `dose`, `time` and the
            context's, as far as the screen has them. A context that is not given is the
            reference's.
        reference
            Control cells (raw counts) from which to predict; None takes the training controls
            of the same context.
        """
        ...


@runtime_checkable
class CellPredictor(Predictor, Protocol):
    """A predictor that also returns populations of cells."""

    def sample(
        self,
        conditions: Conditions,
        *,
        reference: AnnData | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return cells; `obs` has the condition's columns, `reference_cell` and `draw`.

        Parameters
        ----------
        conditions, reference
            As in `predict`.
        n_samples
            Cells a condition; None returns one for each control cell.
        seed
            Seed of the draw; None draws anew each time.
        """
        ...
