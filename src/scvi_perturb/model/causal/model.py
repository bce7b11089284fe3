"""`CausalPerturbVAE`: identity, state, technical latents; perturbations are operators on state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from scvi.data import AnnDataManager

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._compat import setup_method_name
from scvi_perturb._core import (
    UNS_KEY,
    Column,
    Key,
    SchemaError,
    drawn_seed,
    forked_seed,
    generator,
)
from scvi_perturb.data.condition import Condition, as_columns
from scvi_perturb.data.fields import (
    LabelField,
    NoPerturbationField,
    PerturbationField,
    ValuesField,
)
from scvi_perturb.data.request import RequestRow, parse_request
from scvi_perturb.data.screen import SIGNATURES, Screen, screen_keys
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.base.draw import (
    DrawOptions,
    cell_obs,
    effects_adata,
    expected_library_shifts,
    write_cells,
)
from scvi_perturb.model.base.setup import (
    check_folder,
    completed,
    screen_fields,
)
from scvi_perturb.model.base.training import all_or_nothing, n_batches, representation_stage
from scvi_perturb.model.causal.draw import (
    CONDITIONING,
    check_conditioning,
    condition_tensors,
    draw_conditions,
)
from scvi_perturb.model.causal.effects import (
    OperatorErrors,
    expected_profile,
    gene_effect,
    measure_errors,
)
from scvi_perturb.model.causal.fit import (
    TrainingCells,
    check_cells,
    finish,
    initialise,
    latent_names,
    prepare,
    with_early_divergence,
)
from scvi_perturb.model.causal.metadata import (
    MetadataMixin,
    batch_depths,
    draw_metadata,
    metadata_library,
    row_fields,
    warn_untrained_labels,
)
from scvi_perturb.model.causal.operators import OperatorMixin
from scvi_perturb.model.causal.setup import (
    MetadataRows,
    columns_by_group,
    harmonised_metadata,
    make_design,
    metadata_fields,
    parse_metadata,
)
from scvi_perturb.model.latent.model import loadings
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.module.causal import CausalConfig, CausalModule, GroupedAutoencoder
from scvi_perturb.similarity.novelty import UNKNOWN
from scvi_perturb.train.plan import TrainConfig
from scvi_perturb.train.runner import fit_stage, one_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData
    from torch import Tensor

    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.data.request import Request
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.model.base.draw import Drawn, LibrarySize
    from scvi_perturb.model.base.reference import Plan
    from scvi_perturb.module.base import CountParameters

#: Draws of identity over which a signature is averaged.
N_SIGNATURE_DRAWS = 200


@checked
class CausalPerturbVAE(OperatorMixin, MetadataMixin):
    """Read perturbation effects as vectors; ask what a cell is, and what it would be.

    * The latent has three groups, each with a learned prior given its own metadata: `identity`
      (contexts, and metadata such as tissue, age or sex), `state`, and `technical` (batch, depth).
    * A perturbation is an operator on the state: a vector, scaled by dose and time, bent by
      identity. Operators add up in combinations. Not every cell need respond.
    * Without perturbations it is the conditional autoencoder p(x | metadata), for cells or bulk.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata` or :meth:`setup_signatures`.
    n_hidden, n_layers
        Width and number of hidden layers of the encoder.
    likelihood
        `"nb"`, `"zinb"`, `"poisson"`; `"normal"` for `log1p` counts per ten thousand (bulk), and
        the only one for signatures.
    dispersion
        One per `"gene"` or `"gene-cell"`.
    decoder
        `"mlp"`, a linear map plus a hidden layer; or `"linear"` for loadings that can be read.
    causal
        Sizes of the groups, kinds of priors, weights of the loss; None for the defaults.
    features
        What is known of perturbations, for those that the screen does not hold.
    seed
        Seed of the initial weights.
    registry
        Used when loading without data.

    Attributes
    ----------
    active_units_
        Which latents are in use after training, a row each.

    Examples
    --------
    >>> import scvi_perturb as svp
    >>> adata = svp.data.simulate_screen(seed=0)
    >>> svp.model.CausalPerturbVAE.setup_anndata(adata, context_keys=["cell_type"])
    >>> model = svp.model.CausalPerturbVAE(adata)
    >>> model.train()
    >>> effects = model.get_perturbation_effects(["pert_01", "pert_02"])

    References
    ----------
    Lopez et al. 2018 (scVI); Lotfollahi et al. 2023 (CPA); Bereket and Karaletsos 2023 (SAMS-VAE);
    Sohn et al. 2015 (conditional priors); Higgins et al. 2017 (beta-VAE).
    """

    #: Which latents are in use, a row each: group, and whether its mean varies between cells.
    active_units_: pd.DataFrame | None
    #: Mean of the log library size of each batch, the overall one last, and the spread around it.
    depth_: dict[str, np.ndarray]

    def __init__(  # noqa: PLR0913 - flat, as scvi-tools' models and its tuning take them
        self,
        adata: AnnData | MuData | None = None,
        *,
        n_hidden: int = 128,
        n_layers: int = 2,
        likelihood: Literal["nb", "zinb", "poisson", "normal"] | None = None,
        dispersion: Literal["gene", "gene-cell"] = "gene",
        decoder: Literal["mlp", "linear"] = "mlp",
        causal: CausalConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int | None = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry, features)
        config, screen = causal or CausalConfig(), self._screen
        if screen.is_continuous:  # a signature is of a population, all of which responds
            config = replace(config, responders=False)
        kind = likelihood or ("normal" if screen.is_continuous else "nb")
        check_choice("dispersion", dispersion, ("gene", "gene-cell"))
        if screen.is_continuous and kind != "normal":
            msg = f"likelihood={kind!r} is one of counts; signatures are real values: 'normal'."
            raise ValueError(msg)
        size = AutoencoderConfig(
            n_latent=config.n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            likelihood=kind,
            dispersion=dispersion,
            decoder=decoder,
        )
        with forked_seed(seed):
            design = make_design(screen, self._vocabulary)
            self.module = CausalModule(GroupedAutoencoder(design, size, config))
        self._units = "counts"
        if kind == "normal":
            self._units = "as given" if screen.is_continuous else "log1p(counts per 10,000)"
        self.trained_pairs_: list[tuple[int, int]] = []
        self.active_units_ = None
        self.identity_spread_ = {}
        self._model_summary_string = (
            f"{type(self).__name__}: {len(screen.genes)} genes, {len(screen.table)} conditions, "
            f"{len(screen.contexts)} contexts, identity {config.n_identity}, state "
            f"{config.n_state}, technical {config.n_technical} and depth, likelihood {kind!r}"
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def causal(self) -> CausalConfig:
        """What was chosen of groups, priors and weights."""
        return self.module.representation.config

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
        metadata_keys: Mapping[str, str | Sequence[str]] | None = None,
        **kwargs: Any,  # noqa: ANN401 - scvi-tools passes `source_registry` here when it loads
    ) -> None:
        """Register the columns of a screen, or of an atlas or bulk samples without perturbations.

        Where there is no column of perturbations (none is named, and `obs` has no
        `perturbation`), the model is that of cells or samples given their metadata.

        Parameters
        ----------
        adata
            Raw counts, in memory or backed.
        layer, perturbation_key, control, dose_key, time_key, perturbation_type_key
            See :meth:`PerturbDiffusion.setup_anndata`.
        context_keys, batch_key, library_key, separator
            See :meth:`PerturbDiffusion.setup_anndata`. Contexts are metadata of identity, the batch
            is metadata of the technical group.
        metadata_keys
            Further metadata by group, e.g. `{"identity": ["tissue", "age", "sex"],
            "technical": ["platform"]}`; None takes what :func:`scvi_perturb.pp.harmonize` found for
            identity. Columns of numbers are numbers, all others labels; missing values may
            occur, are marked, and are never filled in.

        Raises
        ------
        SchemaError
            When a column is missing, no cell is a control though perturbations are registered, or
            the counts are not raw.
        ValueError
            For a group that metadata cannot belong to.
        """
        arguments = completed(adata, locals())
        key = arguments["perturbation_key"]
        if perturbation_key is None and ("source_registry" in kwargs or key not in adata.obs):
            key = None
        if metadata_keys is None:
            metadata_keys = harmonised_metadata(adata, arguments)
        arguments |= {"perturbation_key": key, "metadata_keys": columns_by_group(metadata_keys)}
        fields = screen_fields(arguments)
        if key is None:
            fields[1] = NoPerturbationField(screen_keys(arguments))
        cls._register(adata, arguments, fields + metadata_fields(arguments), **kwargs)

    @classmethod
    def setup_signatures(  # noqa: PLR0913
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        perturbation_key: str = Column.PERTURBATION,
        control: str = "control",
        dose_key: str | None = None,
        time_key: str | None = None,
        perturbation_type_key: str | None = None,
        context_keys: str | Sequence[str] = (),
        batch_key: str | None = None,
        separator: str = "+",
        metadata_keys: Mapping[str, str | Sequence[str]] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Register a table of signatures: real values, such as log-fold changes or z, a row each.

        Values stay as they are; the model has a Normal likelihood. No row need be a control.

        Parameters
        ----------
        adata
            Signatures, `(n_signatures, n_genes)`.
        layer
            Layer with the values; None for `X`.
        perturbation_key, control, dose_key, time_key, perturbation_type_key
            See :meth:`setup_anndata`.
        context_keys, batch_key, separator, metadata_keys
            See :meth:`setup_anndata`.

        Raises
        ------
        SchemaError
            When a column is missing or values are not finite.
        """
        given = {k: v for k, v in locals().items() if k not in ("cls", "adata", "kwargs")}
        arguments = given | {
            "context_keys": as_columns(context_keys),
            "metadata_keys": columns_by_group(metadata_keys),
        }
        fields = [
            ValuesField(layer),
            PerturbationField(screen_keys(arguments), require_control=False),
            LabelField(Key.CONTEXT, as_columns(context_keys)),
            LabelField(Key.BATCH, as_columns(batch_key)),
            *metadata_fields(arguments),
        ]
        method = cls._get_setup_method_args(cls=cls, adata=adata, **arguments)
        method[setup_method_name()] = SIGNATURES
        manager = AnnDataManager(fields=fields, setup_method_args=method)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    # Training -------------------------------------------------------------------------------

    @one_training
    @all_or_nothing
    @docs.dedent
    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        batch_size: int = 256,
        seed: int | None = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train the model.

        Parameters
        ----------
        %(train)s
        %(train_rest)s

        Raises
        ------
        %(train_raises)s
        """
        reader = self._reader(None)
        seed = drawn_seed(seed)
        parts = self._split_cells(split, len(reader), seed)
        check_cells(reader, parts.train, self._screen)
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            asked = {"max_epochs": max_epochs, "batch_size": batch_size}
            check_folder(
                folder, self._run_description(parts, asked | {"seed": seed, "config": config})
            )
        network = self.module.representation
        cells = TrainingCells(reader, parts.train, self._vocabulary)
        prepare(network, cells)
        if not self.is_trained_:
            initialise(network, cells, seed=seed)
        stage = representation_stage(
            network,
            reader,
            parts,
            config,
            max_epochs=max_epochs,
            batches=(batch_size, n_batches(len(parts.train), batch_size, trainer_kwargs)),
            seed=seed,
        )
        fit_stage(
            self,
            with_early_divergence(stage),
            trainer_kwargs=trainer_kwargs,
            checkpoint_dir=folder,
            every_n_epochs=config.checkpoint_every_n_epochs,
        )
        self.module.eval()
        self._record_trained_pairs(reader.codes, parts.train)
        self.active_units_, self.identity_spread_ = finish(self.module, cells, seed=seed)
        self._record_training(reader, parts, split, seed)

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Record the errors of operators, and the depth of each batch."""
        network, screen = self.module.representation, self._screen
        if screen.is_perturbed:
            parts = train, np.asarray(self.validation_indices)
            errors = measure_errors(network, reader, parts, screen.table)
            self.operator_errors_ = errors._asdict()
        if not screen.is_continuous:
            batch = reader.codes[Key.BATCH][train]
            self.depth_ = batch_depths(reader.library_sizes()[train], batch, len(screen.batches))

    # Verbs ----------------------------------------------------------------------------------

    @docs.dedent
    def sample(  # one pass: there is no sampler to choose
        self,
        conditions: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        metadata: pd.DataFrame | None = None,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 500,
        seed: int | None = 0,
        library_size: LibrarySize = "reference",
        conditioning: str | Sequence[str] = CONDITIONING,
        path: str | Path | None = None,
    ) -> AnnData:
        """Draw cells under conditions from reference cells, or from metadata alone.

        Parameters
        ----------
        %(request)s
        metadata
            In place of `conditions` and `reference`: a table with one row a population, of columns
            of metadata, perturbation, dose, time, batch; what is left out, or NaN, is not known.
            A label without training cells counts as not known, of which there is a warning.
            `n_samples` cells are drawn for each row.
        library_size
            Total counts of the drawn cells: the reference cell's (from metadata: drawn as in
            training); `"predicted"`, that times the mean change under this perturbation; or a
            number.
        conditioning
            Groups kept from the reference cell; the others are drawn from their priors. With the
            state, the cell's own basal state is moved.
        path
            As for :meth:`PerturbDiffusion.sample`.

        Returns
        -------
        AnnData
            One row a cell, as from :meth:`PerturbDiffusion.sample`.

        Raises
        ------
        %(raises_request)s Also when both or none of conditions and metadata are given.
        ValueError
            For a group that there is not.
        """
        kept = check_conditioning(conditioning)
        if metadata is not None and conditions is None and reference is None:
            return self._sample_metadata(
                metadata, n_samples=n_samples, seed=seed, library_size=library_size, path=path
            )
        if conditions is None or metadata is not None:
            msg = "Ask with `conditions` (and `reference`), or with `metadata`: one of the two."
            raise SchemaError(msg)
        if self._screen.is_continuous:
            msg = "Signatures have no control cells to start from; draw with `metadata=`."
            raise SchemaError(msg)
        plan = self._plan(conditions, reference, n_samples, seed)
        return write_cells(
            self._draw(plan, seed=seed, library_size=library_size, conditioning=kept),
            obs=cell_obs(plan, self._screen),
            screen=self._screen,
            likelihood=self.module.representation.likelihood,
            uns=self._provenance(None, seed, self._units, library_size=library_size),
            seed=seed,
            path=path,
            inputs=(self.adata, reference),
        )

    @docs.dedent
    def predict(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        *,
        reference: AnnData | MuData | None = None,
        interval: float = 0.9,
        n_samples: int | None = 500,
        seed: int | None = 0,
        conditioning: str | Sequence[str] = CONDITIONING,
        path: str | Path | None = None,
    ) -> AnnData:
        """Predict the mean profile and the effect of conditions, with intervals.

        Parameters
        ----------
        conditions, reference, n_samples, seed, conditioning
            As for :meth:`sample`.
        interval
            Coverage aimed at, between 0 and 1.
        path
            As for :meth:`PerturbDiffusion.predict`.

        Returns
        -------
        AnnData
            One row a condition, as from :meth:`PerturbDiffusion.predict`; the intervals are those
            of a mean over cells. For the error of the operators themselves see
            :meth:`get_perturbation_effects`. Of signatures, `X` is the mean signature, in the units
            given.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError, ValueError
            As for :meth:`sample`.
        """
        kept = check_conditioning(conditioning)
        if self._screen.is_continuous:
            if reference is not None:
                msg = "Signatures are predicted from their metadata; leave `reference` out."
                raise SchemaError(msg)
            return self._predict_signatures(conditions, interval=interval, seed=seed, path=path)
        plan = self._plan(conditions, reference, n_samples, seed)
        return self._effects(
            self._draw(plan, seed=seed, conditioning=kept),
            plan,
            interval=interval,
            uns=self._provenance(None, seed, "log1p(counts per 10,000)"),
            path=path,
            inputs=(self.adata, reference),
        )

    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        *,
        group: Literal["identity", "state", "technical"] | None = None,
        indices: Sequence[int] | None = None,
        key_added: str | None = None,
    ) -> np.ndarray:
        """Return the mean latent of each cell.

        Parameters
        ----------
        adata, indices, key_added
            As for :meth:`PerturbDiffusion.get_latent_representation`.
        group
            One of the groups; None for all of them, side by side. The technical one begins with
            the depth.

        Returns
        -------
        numpy.ndarray
            `(n_cells, n_latent)`, or of the group `(n_cells, n_group)`.
        """
        latent = super().get_latent_representation(adata, indices=indices)
        if group is not None:
            check_choice("group", group, ("identity", "state", "technical"))
            groups = self.module.representation.groups(torch.from_numpy(latent))
            latent = getattr(groups, group).numpy()
        if key_added is not None:
            if indices is not None:
                msg = "key_added writes one value a cell of the data; leave `indices` out."
                raise ValueError(msg)
            (self.adata if adata is None else adata).obsm[key_added] = latent
        return latent

    def get_loadings(self) -> pd.DataFrame:
        """Return the weights of the linear decoder: change in log proportion per unit of latent.

        Returns
        -------
        pandas.DataFrame
            `(n_genes, n_latent)`, columns as the rows of `active_units_`; the depth has none.

        Raises
        ------
        ValueError
            When the decoder is not linear.
        """
        network = self.module.representation
        if network.decoder.linear is not None:
            msg = "Loadings exist for decoder='linear' only; this model has another decoder."
            raise ValueError(msg)
        names = latent_names(network.sizes)
        coded = [name for name in names if name != "depth"]
        table = loadings(network.decoder, self._screen.genes, coded)
        return table.reindex(columns=names, fill_value=0.0)

    # What the shared verbs ask --------------------------------------------------------------

    def _seen(self) -> np.ndarray:
        seen: np.ndarray = self.module.representation.seen.cpu().numpy()
        return seen

    def _seen_batch(self) -> np.ndarray:
        network = self.module.representation
        if not network.columns["technical"] or network.batch_levels.shape[1] == 0:
            return np.ones(len(self._screen.batches), dtype=bool)
        seen = cast("Tensor", network.technical_prior.metadata.seen_0)
        batches: np.ndarray = seen[network.batch_levels[:, 0]].cpu().numpy()
        return batches

    def _draw(
        self,
        plan: Plan,
        *,
        sampler: SamplerConfig | None = None,
        seed: int | None,
        library_size: LibrarySize = "reference",
        conditioning: tuple[str, ...] = CONDITIONING,
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, chunk by chunk."""
        del sampler
        self.module.eval()
        network = self.module.representation
        options = DrawOptions.make(
            plan.request,
            self._screen,
            library_size=library_size,
            shifts=self.library_shifts_,
            seen_batch=self._seen_batch(),
            population=False,
        )
        return draw_conditions(
            network,
            plan,
            conditions=condition_tensors(network, self._vocabulary, plan.request.conditions),
            options=options,
            conditioning=conditioning,
            partial=self._screen.keys.library is not None,
            seed=seed,
        )

    def _batch_code(self, label: str | None) -> int | None:
        if label is not None:
            msg = "transform_batch: CausalPerturbVAE decodes without batches; leave it out."
            raise ValueError(msg)
        return None

    def _decode_cells(
        self, latent: Tensor, batch: dict[str, Tensor], adata: AnnData | MuData | None
    ) -> CountParameters:
        """Decode latents of given cells, edited genes corrected."""
        table = Screen.from_registry(self._manager(adata).registry).table
        used, which = torch.unique(batch[Key.CONDITION], return_inverse=True)
        known = {*self._vocabulary.known(self._seen())}
        # The posterior needs no operator: of what is not known only the correction is left out.
        own = [
            c if known.issuperset(c.names) else Condition()
            for c in (table.conditions[int(code)] for code in used)
        ]
        network = self.module.representation
        conditions = condition_tensors(network, self._vocabulary, own)
        library = batch[Key.LIBRARY].to(latent.device)
        return network.decode(latent, library, None, conditions.rows(which.to(latent.device)))

    def _provenance(
        self,
        sampler: SamplerConfig | None,
        seed: int | None,
        units: str,
        *,
        library_size: float | str = "reference",
    ) -> dict[str, Any]:
        """Return the provenance of what is drawn in one pass of the network."""
        uns = super()._provenance(
            sampler or SamplerConfig(), seed, units, library_size=library_size
        )
        uns[UNS_KEY] |= {"sampler": "one pass", "n_function_evaluations": 1}
        return uns

    # Metadata alone -------------------------------------------------------------------------

    def _sample_metadata(
        self,
        metadata: pd.DataFrame,
        *,
        n_samples: int | None,
        seed: int | None,
        library_size: LibrarySize,
        path: str | Path | None,
    ) -> AnnData:
        """Draw cells from the priors alone."""
        self._check_trained()
        n = 1 if n_samples is None else n_samples
        rows = parse_metadata(metadata, self._screen)
        network = self.module.representation.eval()
        warn_untrained_labels(network, rows)
        which = np.repeat(np.arange(len(rows)), n)
        obs = rows.frame.loc[rows.frame.index.repeat(n)].reset_index(drop=True)
        obs["row"] = which
        obs["draw"] = np.tile(np.arange(n), len(rows))
        obs.index = pd.Index([f"row{i}_draw{j}" for i in range(len(rows)) for j in range(n)])
        drawn = draw_metadata(
            network,
            rows,
            condition_tensors(network, self._vocabulary, rows.conditions),
            which=which,
            library=self._library_of(rows, which, library_size, seed),
            seed=seed,
        )
        return write_cells(
            drawn,
            obs=obs,
            screen=self._screen,
            likelihood=network.likelihood,
            uns=self._provenance(None, seed, self._units, library_size=library_size),
            seed=seed,
            path=path,
            inputs=(self.adata,),
        )

    def _library_of(
        self, rows: MetadataRows, which: np.ndarray, library_size: LibrarySize, seed: int | None
    ) -> np.ndarray:
        """Return the library size of each cell, `which` row of metadata each."""
        if self._screen.is_continuous:
            return np.ones(len(which))
        shifts, table = self.library_shifts_, self._screen.table
        shift = expected_library_shifts(rows.conditions, shifts, table)
        return metadata_library(
            rows.batch[which], shift[which], self.depth_, library_size=library_size, seed=seed
        )

    def _predict_signatures(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        *,
        interval: float,
        seed: int | None,
        path: str | Path | None,
    ) -> AnnData:
        """Predict mean signatures of conditions, averaged over identities of their context."""
        self._check_trained()
        request, screen = parse_request(conditions, self._screen), self._screen
        asked = dict(request.context)
        if request.batch is not None and screen.keys.batch is not None:
            asked[screen.keys.batch] = request.batch
        frame = pd.DataFrame(
            {c: [label or np.nan for label in labels] for c, labels in asked.items()},
            index=range(len(request)),
        )
        rows = parse_metadata(frame, screen)
        warn_untrained_labels(self.module.representation, rows)
        labels = frame.reindex(columns=list(screen.keys.context)).fillna(UNKNOWN)
        places = [
            RequestRow(condition, tuple(map(str, labels.iloc[i])))
            for i, condition in enumerate(request.conditions)
        ]
        return effects_adata(
            self._signature_blocks(rows, request, interval=interval, seed=seed),
            request,
            screen,
            n_cells=1,
            annotate=lambda: self._annotations(places, np.arange(len(places))),
            uns=self._provenance(None, seed, self._units),
            path=path,
            inputs=(self.adata,),
        )

    def _signature_blocks(
        self, rows: MetadataRows, request: Request, *, interval: float, seed: int | None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the mean signature of each row."""
        network = self.module.representation
        fields, random = row_fields(network, rows), generator(seed, self._device())
        tensors = condition_tensors(network, self._vocabulary, request.conditions)
        for i in range(len(request)):
            at = torch.full((N_SIGNATURE_DRAWS,), i, dtype=torch.long, device=random.device)
            own = {name: values[at] for name, values in fields.items()}
            with torch.inference_mode():
                latent = network.draw_prior(own, len(at), random)
                control = expected_profile(network, latent, None)
            _, gene = gene_effect(
                network,
                latent,
                tensors.rows(at),
                control=control,
                errors=OperatorErrors(**self.operator_errors_),
                interval=interval,
            )
            tables = {"X": control + gene["lfc"]} | gene
            yield {name: values[None] for name, values in tables.items()}
