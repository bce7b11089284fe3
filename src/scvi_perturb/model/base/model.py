"""What every model does alike: ask for conditions, draw cells, predict effects, keep order."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._constants import CONDITION_KEY
from scvi_perturb._errors import NotTrainedError, SchemaError
from scvi_perturb.data.reader import ScreenReader, align_genes
from scvi_perturb.generative.samplers import SAMPLERS, SamplerConfig
from scvi_perturb.model.base.draw import (
    Drawn,
    Plan,
    cell_obs,
    effects_adata,
    provenance,
    write_cells,
)
from scvi_perturb.model.base.latents import chosen_rows, encode_cells
from scvi_perturb.model.base.request import (
    Reference,
    parse_request,
    reference_from_adata,
    reference_from_screen,
)
from scvi_perturb.model.base.setup import Screen, SetupMixin, Vocabulary, check_interval, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from mudata import MuData
    from scvi.data import AnnDataManager
    from scvi.module.base import BaseModuleClass

    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.generative.samplers import SamplerName
    from scvi_perturb.model.base.draw import LibrarySize
    from scvi_perturb.model.base.request import Request

__all__ = ["PerturbationModel"]


class PerturbationModel(SetupMixin):
    """Shared verbs of all models.

    A model tells how latents under conditions are drawn and what ids its components have; all
    else, from the request to the AnnData that comes back, is here.
    """

    module: BaseModuleClass
    #: Units of what `sample` returns.
    _units = "counts"
    #: Methods of drawing.
    _samplers: tuple[str, ...] = tuple(SAMPLERS)
    #: Whether the mean of the reference cells of a context and batch is the reference of each.
    _population_reference = False

    def __init__(
        self,
        adata: AnnData | MuData | None,
        registry: dict[str, Any] | None,
        features: PerturbationFeatures | None,
    ) -> None:
        super().__init__(adata, registry)
        self._screen = Screen.from_registry(self.registry)
        self._vocabulary = Vocabulary(self._screen.table, features)
        self.trained_on_: dict[str, Any] = {}
        self.library_shifts_: dict[int, float] = {}

    # What a model must tell ---------------------------------------------------------------

    @abstractmethod
    def _seen(self) -> np.ndarray:
        """Return whether each component id was trained on."""

    @abstractmethod
    def _novelty(self, request: Request, cells: Reference, plan: Plan) -> np.ndarray:
        """Return how far each row is from what was trained on, in [0, 1]."""

    @abstractmethod
    def _draw(
        self,
        request: Request,
        cells: Reference,
        plan: Plan,
        *,
        sampler: SamplerConfig,
        seed: int | None,
        library_size: LibrarySize = "reference",
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, chunk by chunk."""

    # Verbs --------------------------------------------------------------------------------

    def sample(
        self,
        conditions: Sequence[str] | pd.DataFrame,
        *,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 500,
        seed: int | None = 0,
        sampler: SamplerName | SamplerConfig = "heun",
        library_size: LibrarySize = "reference",
        path: str | Path | None = None,
    ) -> AnnData:
        """Draw cells under conditions, measured or not.

        Parameters
        ----------
        conditions
            Names (`["A", "A+B"]`), or a table with one row a population to draw: perturbation,
            and where registered dose, time, context columns, batch. Columns that are missing
            mean "the reference's".
        reference
            Control cells to start from: new donors, new cell types, one cell or many; never
            trained on. None takes the training controls of the context asked for.
        n_samples
            Cells a row; None draws one for each reference cell.
        seed
            Seed of all draws; None differs from call to call.
        sampler
            Method, or a :class:`~scvi_perturb.generative.SamplerConfig` with the number of
            evaluations and the guidance scale.
        library_size
            Total counts of the drawn cells: the reference cell's; `"predicted"`, the same times
            the mean change under this perturbation among the training cells; or a number.
        path
            File to stream to (`.h5ad`): memory stays bounded however many cells are drawn, and
            the result is returned backed.

        Returns
        -------
        AnnData
            One row a cell. `X` holds integer counts (CSR); `obs` the condition's columns,
            `reference_cell` and `draw`; `uns["scvi_perturb"]` the provenance.

        Raises
        ------
        NotTrainedError
            Before training.
        UnknownPerturbationError
            For a perturbation neither trained on nor with features.
        SchemaError
            For a request or a reference that does not fit.
        """
        request, cells = self._ask(conditions, reference)
        config = SamplerConfig.of(sampler, self._samplers)
        plan = Plan.make(request, cells, n_samples, seed)
        drawn = self._draw(
            request, cells, plan, sampler=config, seed=seed, library_size=library_size
        )
        uns = self._provenance(config, seed, self._units, library_size=library_size)
        return write_cells(
            drawn,
            obs=cell_obs(plan, request, cells, self._screen),
            screen=self._screen,
            likelihood=self._representation().likelihood,
            uns=uns,
            seed=seed,
            path=path,
        )

    def predict(
        self,
        conditions: Sequence[str] | pd.DataFrame,
        *,
        reference: AnnData | MuData | None = None,
        interval: float = 0.9,
        n_samples: int | None = 500,
        seed: int | None = 0,
        sampler: SamplerName | SamplerConfig = "heun",
    ) -> AnnData:
        """Predict the mean profile and the effect of conditions, with intervals.

        Parameters
        ----------
        conditions, reference, n_samples, seed, sampler
            As for :meth:`sample`.
        interval
            Coverage aimed at, between 0 and 1.

        Returns
        -------
        AnnData
            One row a condition. `X`: `log1p` of expected counts per ten thousand, of the
            population's summed expression. Layers: `lfc`, the difference from the reference's
            own profile in the same units (natural log); `lower`, `upper`, its interval; `std`,
            its standard error. `obs`: the condition, `novelty` in [0, 1] and `support`, its
            complement. Intervals are at effect level: they hold the noise of a mean over the
            reference cells used and the cells drawn from them, and not what the model does not
            know (see `novelty`); from a single reference cell they are NaN.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        """
        check_interval(interval)
        request, cells = self._ask(conditions, reference)
        config = SamplerConfig.of(sampler, self._samplers)
        plan = Plan.make(request, cells, n_samples, seed)
        drawn = self._draw(request, cells, plan, sampler=config, seed=seed)
        result = self._effects(drawn, (request, cells, plan), interval=interval, seed=seed)
        result.uns = self._provenance(config, seed, "log1p(counts per 10,000)")
        return result

    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        key_added: str | None = None,
    ) -> np.ndarray:
        """Return the mean latent of each cell.

        Parameters
        ----------
        adata
            Data with the genes of training; None for the data of training.
        indices
            Cells, in the order wanted; None for all.
        key_added
            Key of `obsm` to write to as well; needs `indices=None`.

        Returns
        -------
        numpy.ndarray
            `(n_cells, n_latent)`.
        """
        self._check_trained()
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), key_added)
        self.module.eval()
        mean, _ = encode_cells(
            self._representation(), lambda i: reader[rows[i]], len(rows), self._device()
        )
        if key_added is not None:
            (self.adata if adata is None else adata).obsm[key_added] = mean.numpy()
        return mean.numpy()

    def _effects(
        self,
        drawn: Iterator[Drawn],
        asked: tuple[Request, Reference, Plan],
        *,
        interval: float,
        seed: int | None,
    ) -> AnnData:
        """Return the effects of drawn cells, with the novelty of what was asked."""
        request, cells, plan = asked
        result = effects_adata(
            drawn,
            plan,
            request,
            cells,
            screen=self._screen,
            likelihood=self._representation().likelihood,
            interval=interval,
            seed=seed,
        )
        result.obs["novelty"] = self._novelty(request, cells, plan)
        result.obs["support"] = 1.0 - result.obs["novelty"]
        return result

    # Shared machinery ---------------------------------------------------------------------

    def _representation(self) -> Any:  # noqa: ANN401 - a module that is a Representation
        return self.module.representation

    def _plain_adata(self) -> AnnData:
        """Return the data of training, the named modality where they are MuData."""
        modality = self._screen.rna_modality
        return self.adata if modality is None else self.adata.mod[modality]

    def _cells_digest(self) -> str:
        """Return a hash of the names of the cells, in their order."""
        return digest(self._plain_adata().obs_names)

    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _seen_batch(self) -> np.ndarray:
        """Return whether each registered batch was trained on."""
        seen = getattr(self._representation(), "seen_batch", None)
        return (
            np.ones(len(self._screen.batches), dtype=bool) if seen is None else seen.cpu().numpy()
        )

    def _check_trained(self) -> None:
        if not self.is_trained_:
            msg = f"This {type(self).__name__} has not been trained; call `.train()` first."
            raise NotTrainedError(msg)

    def _ask(
        self, conditions: Sequence[str] | pd.DataFrame, reference: AnnData | MuData | None
    ) -> tuple[Request, Reference]:
        """Check a request before any work is done, and find its reference cells."""
        self._check_trained()
        request = parse_request(conditions, self._screen)
        self._vocabulary.tensors(request.conditions, self._seen())
        cells = (
            self._training_controls()
            if reference is None
            else reference_from_adata(reference, self._screen)
        )
        for row in range(len(request)):
            cells.rows_for(request, row)
        return request, cells

    def _training_controls(self) -> Reference:
        if self.adata is None:
            msg = (
                "The model was loaded without data, so there are no training controls to start "
                "from. Pass control cells as `reference=`, or load with `adata`."
            )
            raise SchemaError(msg)
        if self.trained_on_.get("cells_hash") != self._cells_digest():
            msg = (
                "The data of this model are not those that it was trained on, so which of their "
                "cells are training controls is not known. Pass control cells as `reference=`."
            )
            raise SchemaError(msg)
        reader = self._reader(None)
        allowed = np.sort(self.train_indices_)
        rows = allowed[reader.codes[CONDITION_KEY][allowed] == 0]
        return reference_from_screen(reader, rows, self._screen, self._plain_adata().obs_names)

    def _reader(self, adata: AnnData | MuData | None) -> ScreenReader:
        """Register data with the model where that is still to be done, and open them."""
        return ScreenReader(self._manager(adata))

    def _manager(self, adata: AnnData | MuData | None) -> AnnDataManager:
        adata = self._validate_anndata(adata)
        return self.get_anndata_manager(adata, required=True)

    def _validate_anndata(
        self,
        adata: AnnData | MuData | None = None,
        copy_if_view: bool = True,  # noqa: FBT001, FBT002 - scvi-tools' signature
    ) -> AnnData | MuData:
        """Bring genes into the order of training: scvi-tools compares their number only."""
        if adata is None and self.adata is None:
            msg = "The model was loaded without data; pass `adata`."
            raise SchemaError(msg)
        if adata is not None and not hasattr(adata, "mod"):
            adata = align_genes(adata, self._screen.genes)
        return super()._validate_anndata(adata, copy_if_view)

    def _provenance(
        self,
        sampler: SamplerConfig,
        seed: int | None,
        units: str,
        *,
        library_size: float | str = "reference",
    ) -> dict[str, Any]:
        return provenance(
            type(self).__name__,
            units=units,
            seed=seed,
            sampler=sampler,
            library_size=str(library_size),
            trained_on=dict(self.trained_on_),
        )
