"""What every model does alike: ask for conditions, draw cells, predict effects, keep order."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_matrix, vstack
from scvi.data import AnnDataManager

from scvi_perturb._checks import checked
from scvi_perturb._core import (
    CONTROL,
    SEPARATOR,
    Column,
    Key,
    NotTrainedError,
    SchemaError,
    generator,
)
from scvi_perturb._state import digest_of
from scvi_perturb.data.condition import as_columns, as_label
from scvi_perturb.data.fields import WITHOUT_CONDITIONS, data_hash
from scvi_perturb.data.matching import effects_of_batches
from scvi_perturb.data.reader import (
    ScreenReader,
    align_genes,
    check_adata,
    check_mudata,
)
from scvi_perturb.data.request import RequestRow, TrainingCoverage, parse_request, without_n_cells
from scvi_perturb.data.screen import Screen
from scvi_perturb.generative.samplers import SAMPLERS, SamplerConfig
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.base.draw import (
    Drawn,
    cell_obs,
    draw_matrix,
    effect_blocks,
    effects_adata,
    library_shifts,
    provenance,
    write_cells,
)
from scvi_perturb.model.base.latents import CHUNK, chosen_rows, chunks, encode_cells
from scvi_perturb.model.base.reference import (
    Plan,
    Reference,
    Vocabulary,
    kept_controls,
    reference_from_adata,
    warn_of_batches,
)
from scvi_perturb.model.base.saving import SavingMixin
from scvi_perturb.model.base.setup import (
    completed,
    mudata_screen_fields,
    screen_fields,
)
from scvi_perturb.model.base.training import CellSplit
from scvi_perturb.similarity.novelty import novelty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData
    from scvi.data.fields import BaseAnnDataField
    from scvi.module.base import BaseModuleClass
    from sparse import GCXS

    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.generative.samplers import SamplerName
    from scvi_perturb.model.base.draw import LibrarySize
    from scvi_perturb.module.base import CountParameters


@checked
class PerturbationModel(SavingMixin):
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
    #: Codes of condition and context with training cells.
    trained_pairs_: list[tuple[int, int]]

    def __init__(
        self,
        adata: AnnData | MuData | None,
        registry: dict[str, Any] | None,
        features: PerturbationFeatures | None,
    ) -> None:
        try:
            super().__init__(adata, registry)
        except ValueError as error:  # of scvi-tools, which does not say of which model
            msg = f"Register these data with `{type(self).__name__}.setup_anndata` first: {error}"
            raise SchemaError(msg) from error
        self._screen = Screen.from_registry(self.registry)
        self._vocabulary = Vocabulary(self._screen.table, features)
        if features is not None and self._screen.table.components:
            features.check_covers(name for name, _ in self._screen.table.components)
        self.batch_effects_: list[tuple[int, int]] = []
        self.trained_on_: dict[str, Any] = {}
        self.library_shifts_: dict[int, float] = {}
        self.controls_: Reference | None = None

    # Registration ---------------------------------------------------------------------------

    @classmethod
    def setup_anndata(  # noqa: PLR0913 - one argument a column, as in every scvi-tools model
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        perturbation_key: str | None = None,
        control: str | None = None,
        dose_key: str | None = None,
        time_key: str | None = None,
        perturbation_type_key: str | None = None,
        context_keys: str | Sequence[str] | None = None,
        batch_key: str | None = None,
        library_key: str | None = None,
        separator: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - scvi-tools passes `source_registry` here when it loads
    ) -> None:
        """Register the columns of a screen.

        Arguments left out are taken from :func:`scvi_perturb.pp.harmonize` if the data went
        through it, else they mean "not recorded".

        Parameters
        ----------
        adata
            A screen, in memory or backed; raw counts, at least one control cell. `X` is not
            changed; the columns `_scvi_condition`, `_scvi_context` and `_scvi_batch` are added
            to `obs`, and scvi-tools' identifiers to `uns`.
        layer
            Layer with the raw counts; None for `X`.
        perturbation_key
            Column of perturbations: `"A"`, `"A+B"`, or the control's label.
        control
            Label of the control cells.
        dose_key
            Column of doses; for combinations one each, `"10+5"`, in the label's order.
        time_key
            Column of times since the perturbation, in hours.
        perturbation_type_key
            Column of the kind of perturbation, e.g. `"CRISPRi"`, `"drug"`.
        context_keys
            Columns that say in what the perturbation acts, e.g. cell type and donor; one or
            several.
        batch_key
            Column of technical batches.
        library_key
            Column of library sizes, for files that hold only some of the genes; None sums the
            counts.
        separator
            Between the components of a combination.

        Raises
        ------
        SchemaError
            When a column is missing, no cell is a control, or the counts are not raw.
        """
        arguments = completed(adata, locals())
        cls._register(adata, arguments, screen_fields(arguments), **kwargs)

    @classmethod
    def setup_mudata(  # noqa: PLR0913
        cls,
        mdata: MuData,
        *,
        rna_modality: str = "rna",
        layer: str | None = None,
        perturbation_key: str = Column.PERTURBATION,
        control: str = CONTROL,
        dose_key: str | None = None,
        time_key: str | None = None,
        perturbation_type_key: str | None = None,
        context_keys: str | Sequence[str] = (),
        batch_key: str | None = None,
        library_key: str | None = None,
        separator: str = SEPARATOR,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Register a screen kept as MuData; the named modality holds counts and columns.

        What :func:`scvi_perturb.pp.harmonize` recorded is not looked at here: name every column
        that has another name than the default.

        Parameters
        ----------
        mdata
            A screen.
        rna_modality
            Modality with the raw counts and, in its `obs`, the columns.
        layer, perturbation_key, control, dose_key, time_key, perturbation_type_key
            See :meth:`setup_anndata`.
        context_keys, batch_key, library_key, separator
            See :meth:`setup_anndata`.

        Raises
        ------
        SchemaError
            When a column is missing, no cell is a control, or the counts are not raw.
        """
        given = {k: v for k, v in locals().items() if k not in ("cls", "mdata", "kwargs")}
        arguments = given | {
            "control": as_label(control),
            "context_keys": as_columns(context_keys),
        }
        cls._register(mdata, arguments, mudata_screen_fields(arguments), **kwargs)

    @classmethod
    def _register(
        cls,
        data: AnnData | MuData,
        arguments: dict[str, Any],
        fields: list[BaseAnnDataField],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Register fields; `arguments` are those of the call, kept for loading."""
        if "rna_modality" in arguments:
            check_mudata(data, arguments["rna_modality"])
        named = {"mdata" if hasattr(data, "mod") else "adata": data}
        method = cls._get_setup_method_args(cls=cls, **named, **arguments)
        manager = AnnDataManager(fields=fields, setup_method_args=method)
        manager.register_fields(data, **kwargs)
        cls.register_manager(manager)

    # What a model must tell ---------------------------------------------------------------

    @abstractmethod
    def _seen(self) -> np.ndarray:
        """Return whether each component id was trained on."""

    @abstractmethod
    def _draw(
        self, plan: Plan, *, sampler: SamplerConfig, seed: int | None, library_size: LibrarySize
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, chunk by chunk."""

    # Verbs --------------------------------------------------------------------------------

    @docs.dedent
    def sample(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
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
        %(request)s
        %(sampler)s
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
        %(raises_request)s
        """
        config = SamplerConfig.of(sampler, self._samplers)
        plan = self._plan(conditions, reference, n_samples, seed)
        return write_cells(
            self._draw(plan, sampler=config, seed=seed, library_size=library_size),
            obs=cell_obs(plan, self._screen),
            screen=self._screen,
            likelihood=self._representation().likelihood,
            uns=self._provenance(config, seed, self._units, library_size=library_size),
            seed=seed,
            path=path,
            inputs=(self.adata, reference),
        )

    def predict(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        *,
        reference: AnnData | MuData | None = None,
        interval: float = 0.9,
        n_samples: int | None = 500,
        seed: int | None = 0,
        sampler: SamplerName | SamplerConfig = "heun",
        path: str | Path | None = None,
    ) -> AnnData:
        """Predict the mean profile and the effect of conditions, with intervals.

        Parameters
        ----------
        conditions, reference, n_samples, seed, sampler
            As for :meth:`sample`.
        interval
            Coverage aimed at, between 0 and 1.
        path
            File to stream to (`.h5ad`), row by row; the result is returned backed.

        Returns
        -------
        AnnData
            One row a condition. `X`: `log1p` of expected counts per ten thousand, of the
            population's summed expression. Layers: `lfc`, the difference from the reference's
            own profile in the same units (natural log); `lower`, `upper`, its interval; `std`,
            its standard error. `obs`: the condition, `novelty` in [0, 1], `support`, its
            complement, and `regime`: whether perturbation, context and dose were in training.
            Intervals are at effect level: they hold the noise of a mean over the
            reference cells used and the cells drawn from them, and not what the model does not
            know (see `novelty`); from a single reference cell they are NaN.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        """
        config = SamplerConfig.of(sampler, self._samplers)
        plan = self._plan(conditions, reference, n_samples, seed)
        return self._effects(
            self._draw(plan, sampler=config, seed=seed, library_size="reference"),
            plan,
            interval=interval,
            uns=self._provenance(config, seed, "log1p(counts per 10,000)"),
            path=path,
            inputs=(self.adata, reference),
        )

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

    def posterior_predictive_sample(
        self,
        adata: AnnData | MuData | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        indices: Sequence[int] | None = None,
        *,
        seed: int | None = 0,
    ) -> GCXS:
        """Draw counts from the posterior of each cell's latent, for `scvi.criticism`.

        Parameters
        ----------
        adata
            Data with the genes of training; None for the data of training.
        n_samples
            Draws a cell.
        batch_size
            Cells a batch.
        indices
            Cells, in the order wanted; None for all.
        seed
            Seed of the draws.

        Returns
        -------
        sparse.GCXS
            `(n_cells, n_genes, n_samples)`; without the last axis for a single draw.
        """
        _, posterior = self._posterior(adata, indices, batch_size)
        likelihood, random = self._representation().likelihood, generator(seed, self._device())
        draws = []
        for _ in range(n_samples):
            blocks = [coo_matrix(draw_matrix(one, likelihood, random)) for one in posterior(random)]
            draws.append(vstack(blocks, format="coo"))
        return _stacked(draws)

    def get_normalized_expression(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        transform_batch: str | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int = 1,
        *,
        return_numpy: bool = False,
        seed: int | None = 0,
    ) -> pd.DataFrame | np.ndarray:
        """Return the expression of measured cells as the model decodes it, free of count noise.

        Parameters
        ----------
        adata
            Data with the genes of training; None for the data of training.
        indices
            Cells, in the order wanted; None for all.
        transform_batch
            Batch that all cells are decoded in; None for each cell's own.
        gene_list
            Genes, in the order wanted; None for all.
        library_size
            Total that expression is scaled to: 1 gives shares of the library size, over all
            genes that it counts. "latent": each cell's own library size, as counts.
        n_samples
            Draws from the posterior of each cell's latent, over which the mean is taken.
        return_numpy
            An array in place of a table.
        seed
            Seed of the draws.

        Returns
        -------
        pandas.DataFrame or numpy.ndarray
            `(n_cells, n_genes)`: expected counts before zero inflation, scaled.

        Raises
        ------
        NotTrainedError
            If the model has not been trained.
        SchemaError
            If a gene or the batch is unknown, or a cell has no counts.
        ValueError
            If the model has no likelihood of counts, or decodes without batches.
        """
        self._check_likelihood()
        if self._representation().likelihood == "normal":
            msg = "This model is one of real values, which no library size scales; train on counts."
            raise ValueError(msg)
        genes = self._places(gene_list)
        rows, posterior = self._posterior(adata, indices, None, self._batch_code(transform_batch))
        random = generator(seed, self._device())
        total = np.zeros((len(rows), len(genes)), np.float32)
        for one in (one for _ in range(n_samples) for one in posterior(random)):
            scale = 1.0 if library_size == "latent" else library_size / one.library[:, None]
            total[one.cells] += (one.parameters.mean * scale).cpu().numpy()[:, genes]
        total /= n_samples
        if np.isnan(total).any():
            msg = "Cells without counts have no expression to scale; drop them."
            raise SchemaError(msg)
        if return_numpy:
            return total
        data = self._plain_adata() if adata is None else adata
        return pd.DataFrame(total, data.obs_names[rows], [self._screen.genes[i] for i in genes])

    def _posterior(
        self,
        adata: AnnData | MuData | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
        batch_code: int | None = None,
    ) -> tuple[np.ndarray, Callable[[torch.Generator], Iterator[Drawn]]]:
        """Return the cells, and what draws the latent of each once, decoded chunk by chunk."""
        self._check_likelihood()
        self.module.eval()
        reader, device, stage = self._reader(adata), self._device(), self._representation()
        rows = chosen_rows(indices, len(reader), None)
        encoded = encode_cells(stage, lambda i: reader[rows[i]], len(rows), device)

        def draw(random: torch.Generator) -> Iterator[Drawn]:
            for chunk in chunks(len(rows), batch_size or CHUNK):
                batch = reader[rows[chunk]]
                if batch_code is not None:
                    batch[Key.BATCH] = torch.full_like(batch[Key.BATCH], batch_code)
                mean, log_variance = (one[chunk].to(device) for one in encoded)
                noise = torch.randn(mean.shape, generator=random, device=device)
                latent = mean + (0.5 * log_variance).exp() * noise
                with torch.inference_mode():
                    parameters = self._decode_cells(latent, batch, adata)
                yield Drawn(chunk, batch[Key.LIBRARY].to(device), parameters)

        return rows, draw

    def _places(self, genes: Sequence[str] | None) -> list[int]:
        """Return the places of genes; raise `SchemaError` for one that is unknown."""
        place = {gene: i for i, gene in enumerate(self._screen.genes)}
        wanted = list(place if genes is None else genes)
        unknown = [gene for gene in wanted if gene not in place]
        if unknown or not wanted:
            msg = f"gene_list holds {unknown[:3] or 'no gene'}; name genes of the training data."
            raise SchemaError(msg)
        return [place[gene] for gene in wanted]

    def _batch_code(self, label: str | None) -> int | None:
        """Return the code of a batch; raise where there is none of this name."""
        if label is None:
            return None
        labels = [one[0] for one in self._screen.batches if one]
        if label not in labels:
            msg = f"transform_batch={label!r}, but the batches are {labels[:5] or 'unknown'}."
            raise SchemaError(msg)
        return labels.index(label)

    @property
    def has_likelihood(self) -> bool:
        """Whether there is a likelihood: not where counts are drawn without one."""
        return self._representation().likelihood != "exact"

    def _check_likelihood(self) -> None:
        self._check_trained()
        if not self.has_likelihood:
            msg = (
                "A diffusion of counts (space='counts') draws them and has no likelihood to offer; "
                "train with space='latent'."
            )
            raise ValueError(msg)

    def _decode_cells(
        self, latent: torch.Tensor, batch: dict[str, torch.Tensor], adata: AnnData | MuData | None
    ) -> CountParameters:
        """Return the parameters of the counts of given cells at other latents."""
        del adata
        library, label = (batch[key].to(latent.device) for key in (Key.LIBRARY, Key.BATCH))
        return self._representation().decode(latent, library, label)

    def _effects(
        self,
        drawn: Iterator[Drawn],
        plan: Plan,
        *,
        interval: float,
        uns: dict[str, Any],
        path: str | Path | None,
        inputs: Iterable[object],
    ) -> AnnData:
        """Return the effects of drawn cells, and how new each request is."""
        return effects_adata(
            effect_blocks(
                drawn, plan, likelihood=self._representation().likelihood, interval=interval
            ),
            plan.request,
            self._screen,
            n_cells=np.bincount(plan.row),
            annotate=lambda: self._annotations(*plan.places(self._screen.keys.context)),
            uns=uns,
            path=path,
            inputs=inputs,
        )

    # Shared machinery ---------------------------------------------------------------------

    def _representation(self) -> Any:  # noqa: ANN401 - a module that is a Representation
        return self.module.representation

    def _plain_adata(self) -> AnnData:
        """Return the data of training, the named modality where they are MuData."""
        modality = self._screen.rna_modality
        return self.adata if modality is None else self.adata.mod[modality]

    def _fingerprint(self) -> str:
        """Return the fingerprint of the data."""
        reader, data, screen = self._reader(None), self._plain_adata(), self._screen
        columns = [column.name for column in screen.metadata]
        annotation = None
        if not screen.is_perturbed:
            annotation, columns = WITHOUT_CONDITIONS, [*screen.keys.context, *columns]
        return data_hash(
            data, screen.keys, annotation=annotation, columns=columns, counts=reader.counts
        )

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

    def _plan(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        reference: AnnData | MuData | None,
        n_samples: int | None,
        seed: int | None,
    ) -> Plan:
        """Check a request before any work is done, and choose the cells to draw for it."""
        self._check_trained()
        conditions, n_cells = without_n_cells(conditions, self._screen.keys)
        request = parse_request(conditions, self._screen)
        self._vocabulary.tensors(request.conditions, self._seen())
        cells = (
            self._training_controls()
            if reference is None
            else reference_from_adata(reference, self._screen)
        )
        plan = Plan.make(request, cells, n_cells or n_samples, seed)
        warn_of_batches(self._screen, self.batch_effects_, request.conditions)
        return plan

    def _training_controls(self) -> Reference:
        """Return those that were kept when the model was trained."""
        if self.controls_ is None:
            msg = "This model holds no training controls. Pass control cells as `reference=`."
            raise SchemaError(msg)
        return self.controls_

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
        if adata is not None and self._screen.rna_modality is not None:
            check_mudata(adata, self._screen.rna_modality)
        elif adata is not None:
            check_adata(adata, type(self).__name__)
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

    # Training ------------------------------------------------------------------------------

    def _split_cells(self, split: Split | None, n_cells: int, seed: int) -> CellSplit:
        if split is not None:
            split.check(self._plain_adata())
            return CellSplit(*(np.array(p) for p in (split.train, split.validation, split.test)))
        order = np.random.default_rng(seed).permutation(n_cells)
        n_validation = n_cells // 10
        return CellSplit(np.sort(order[n_validation:]), np.sort(order[:n_validation]), order[:0])

    def _run_description(self, parts: CellSplit, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what makes a run the same as another, for its folder."""
        arguments = {k: v for k, v in self.init_params_["non_kwargs"].items() if k != "registry"}
        return {
            "data": self._fingerprint(),
            "training cells": _digest(parts.train),
            "validation cells": _digest(parts.validation),
            "model": {key: _told(value) for key, value in arguments.items()},
            "settings": {key: str(value) for key, value in settings.items()},
        }

    def _record_trained_pairs(self, codes: dict[str, np.ndarray], train: np.ndarray) -> None:
        """Record which conditions were trained on in which contexts."""
        trained = np.stack([codes[Key.CONDITION][train], codes[Key.CONTEXT][train]], axis=1)
        self.trained_pairs_ = [(int(c), int(x)) for c, x in np.unique(trained, axis=0)]
        own = codes[Key.CONDITION][train], codes[Key.CONTEXT][train], codes[Key.BATCH][train]
        self.batch_effects_ = effects_of_batches(*own)
        warn_of_batches(self._screen, self.batch_effects_)

    def _record_training(
        self, reader: ScreenReader, parts: CellSplit, split: Split | None, seed: int
    ) -> None:
        """Record a training that has ended."""
        self.train_indices, self.validation_indices = parts.train, parts.validation
        self.test_indices = parts.test
        if not self._screen.is_continuous:
            sizes = reader.library_sizes()
            self.library_shifts_ = library_shifts(reader.codes, sizes, parts.train)
            names = self._plain_adata().obs_names
            self.controls_ = kept_controls(reader, parts.train, self._screen, names)
        self._after_training(reader, parts.train)
        self.is_trained_ = True
        self.trained_on_ = {
            "n_cells": len(parts.train),
            "n_genes": len(self._screen.genes),
            "seed": seed,
            "split": "random" if split is None else split.kind,
            "split_seed": seed if split is None else split.seed,
            "data_hash": "" if split is None else split.data_hash,
            "fingerprint": self._fingerprint(),
        }

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Record what a kind of model needs of the training cells."""

    def _annotations(
        self, asked: list[RequestRow], row: np.ndarray, stated: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return the columns of `obs` that tell how new each row is.

        Novelty is the mean over the contexts of a row, or what is `stated` where that is a number.
        The regime is that of the context in which most is new.
        """
        trained = [
            RequestRow(self._screen.table.conditions[code], self._screen.contexts[context])
            for code, context in self.trained_pairs_
            if code != 0
        ]
        if stated is None or np.isnan(stated).any():
            found = novelty(asked, trained, self._vocabulary.features)
            found = np.bincount(row, weights=found) / np.bincount(row)
            stated = found if stated is None else np.where(np.isnan(stated), found, stated)
        coverage = TrainingCoverage.of(trained)
        regime = [""] * len(stated)
        for i, one in zip(row, asked, strict=True):
            own = coverage.regime(one)
            regime[i] = own if "new context" in own or not regime[i] else regime[i]
        return {"novelty": stated, "support": 1.0 - stated, "regime": regime}


def _told(value: object) -> str:
    """Return an argument as text, and what does not fit in it as a digest of its content."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return str(value) if plain else f"{type(value).__name__} {digest_of(value)}"


def _stacked(draws: list[coo_matrix]) -> GCXS:
    """Return draws `(n_cells, n_genes)` along a third axis, if there are several."""
    # Not by `sparse.stack`, which compiles for seconds when it is first called.
    import sparse

    places = [np.stack([d.row, d.col, np.full(d.nnz, k)]) for k, d in enumerate(draws)]
    n_axes = 3 if len(draws) > 1 else 2
    cube = sparse.COO(
        np.concatenate(places, axis=1)[:n_axes],
        np.concatenate([d.data for d in draws]),
        shape=(*draws[0].shape, len(draws))[:n_axes],
    )
    return sparse.GCXS.from_coo(cube, compressed_axes=(0,))


def _digest(items: Iterable[object]) -> str:
    """Return a short hash of items, in their order; bytes as they are, all else as text."""
    parts = (item if isinstance(item, bytes) else str(item).encode() for item in items)
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]
