"""What predictors of cells share: populations to draw from, and the table of what was drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._protocol import Conditions

__all__ = ["CellSource", "Population"]


@dataclass(frozen=True, slots=True)
class Population:
    """The cells that one row of an answer starts from.

    Parameters
    ----------
    counts
        Raw counts of these cells, `(n, n_genes)`.
    names
        Of the cells, `(n,)`.
    n_controls
        Cells to draw when the user gives no number: one for each control cell.
    mean
        Predicted profile, `(n_genes,)`.
    change
        Predicted change from control, `(n_genes,)`.
    """

    counts: Any
    names: pd.Index
    n_controls: int
    mean: NDArray[np.float32]
    change: NDArray[np.float32]


class CellSource(ABC):
    """Draws cells from a population that a subclass finds, and says where each came from."""

    name: ClassVar[str]

    def sample(
        self,
        conditions: Conditions,
        *,
        reference: AnnData | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return cells.

        Parameters
        ----------
        conditions, reference
            As in `predict`.
        n_samples
            Cells a condition: all cells of its population as often as whole rounds fit, and a
            random choice of them for the rest. None returns one for each control cell.
        seed
            Seed of the draw; None draws anew each time.

        Returns
        -------
        AnnData: `X` the cells `(n, n_genes)`, in the units that `uns` names; `obs` the condition
        and context, `reference_cell`, the cell that each was made from, and `draw`, the number of
        the draw within its condition.

        Raises
        ------
        UnknownPerturbationError, SchemaError
            As `predict`.
        """
        if n_samples is not None and n_samples < 1:
            msg = f"n_samples={n_samples}; ask for at least 1 cell, or None for one each."
            raise ValueError(msg)
        rng = np.random.default_rng(seed)
        answer, populations = self._populations(conditions, reference)
        parts, rows = [], []
        for i, population in enumerate(populations):
            drawn = _drawn(len(population.names), n_samples or population.n_controls, rng)
            parts.append(self._cells(population, drawn, rng))
            obs = answer.obs.iloc[np.full(len(drawn), i)].reset_index(drop=True)
            obs["reference_cell"] = population.names[drawn].to_numpy()
            obs["draw"] = np.arange(len(drawn))
            rows.append(obs)
        obs = pd.concat(rows, ignore_index=True)
        obs.index = obs.index.astype(str)
        stacked = (
            sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)
        )
        made = AnnData(X=stacked, obs=obs, var=answer.var)
        made.uns[UNS_KEY] = self._provenance() | {"seed": "none" if seed is None else seed}
        return made

    @property
    @abstractmethod
    def _about(self) -> tuple[str, str, Profile]:
        """Name of the model, units of its cells, and kind of its mean."""

    def _provenance(self) -> dict[str, object]:
        model, units, profile = self._about
        return {"model": model, "version": __version__, "units": units, "profile": profile}

    @abstractmethod
    def _populations(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, Iterable[Population]]:
        """Return the answer of `predict` and the population of each of its rows."""

    @abstractmethod
    def _cells(
        self, population: Population, drawn: NDArray[np.intp], rng: np.random.Generator
    ) -> Any:  # noqa: ANN401
        """Return the cells made from those at `drawn`, `(n_drawn, n_genes)`, an array or CSR."""


def _drawn(n_cells: int, n_samples: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return places of cells, each used as often as any other, as near as can be.

    As many as there are come in order, so that nothing is random where nothing has to be.
    """
    if n_samples == n_cells:
        return np.arange(n_cells)
    rounds = [rng.permutation(n_cells) for _ in range(-(-n_samples // n_cells))]
    return np.concatenate(rounds)[:n_samples]
