"""`LatentModel`: a representation of counts, and a generator in its latent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import NotTrainedError, SchemaError
from scvi_perturb._random import forked_seed, generator
from scvi_perturb.generative.samplers import SAMPLERS, SOLVERS
from scvi_perturb.model.base.draw import DrawOptions, draw_cells
from scvi_perturb.model.base.likelihood import LikelihoodMixin
from scvi_perturb.model.base.setup import check_folder, check_training_cells, to_tensors
from scvi_perturb.model.base.training import TrainedOn
from scvi_perturb.model.latent.fit import Fit
from scvi_perturb.module.autoencoder import AutoencoderConfig, CountAutoencoder, ScviRepresentation
from scvi_perturb.module.count_diffusion import CountDiffusion, RawCounts
from scvi_perturb.module.diffusion import LatentDiffusion
from scvi_perturb.module.flow import FlowConfig, LatentFlow, LatentSplines
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator, TwoStageModule
from scvi_perturb.train.plan import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from scvi.model import SCVI

    from scvi_perturb.data.split.record import Split
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.model.base.draw import Drawn, LibrarySize, Plan
    from scvi_perturb.model.base.request import Reference, Request
    from scvi_perturb.model.base.setup import Screen
    from scvi_perturb.module.base import ConditionTensors
    from scvi_perturb.nn.layers import CountDecoder

__all__ = ["LatentModel", "TwoStageTraining", "loadings", "scvi_settings"]


class TwoStageTraining(TrainedOn):
    """`train` of models with a representation and a generator."""

    module: TwoStageModule
    #: Arguments of scVI's module where stage one is a trained scVI.
    scvi_settings_: dict[str, Any] | None
    #: Steps of stage two that the held-out conditions asked for, if they were asked.
    n_steps_: int | None

    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train both stages.

        Parameters
        ----------
        max_epochs
            Epochs of stage one at most; None chooses by the number of cells. It stops before
            when the validation loss no longer falls, with the best weights.
        split
            Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`;
            None validates on a tenth of the cells.
        n_steps
            Steps of stage two. None chooses them by the error on conditions held out from the
            training cells, then trains on all of them for as many steps: the error on held-out
            *cells* of trained conditions goes on falling long after that on conditions rises.
        batch_size
            Cells a batch in stage one.
        seed
            Seed of order, noise and dropout.
        checkpoint_dir
            Where the state of the run is written; calling `train` again with the same folder
            after a kill goes on where it stopped, and after the end only reads the result. A
            folder of another run is refused.
        config
            Optimisation and stopping.
        **trainer_kwargs
            For scvi-tools' Trainer: `accelerator`, `devices`, `strategy`, `enable_progress_bar`,
            `precision`, ...

        Raises
        ------
        SchemaError
            When the model has no data; when the training cells hold no control, in all or in one
            context, too few treated cells, cells without counts, or library sizes below the
            counts; when `checkpoint_dir` holds another run.
        """
        reader = self._reader(None)
        parts = self._parts(split, len(reader), seed)
        check_training_cells(reader, parts.train, self._screen)
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            asked = {"max_epochs": max_epochs, "n_steps": n_steps, "batch_size": batch_size}
            check_folder(
                folder, self._describe_run(parts, asked | {"seed": seed, "config": config})
            )
        fit = Fit(self, reader, parts, config, trainer_kwargs, folder)
        if self._trains_representation:
            fit.representation(max_epochs, batch_size=batch_size, seed=seed)
        fit.generator(n_steps, seed=seed)
        self._remember(reader, parts, split, seed)


def loadings(decoder: CountDecoder, genes: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return the change in log proportion per unit of each latent, `(n_genes, n_latent)`."""
    weights = decoder.logits.weight.detach().cpu().numpy()[: len(genes), : len(columns)]
    table = pd.DataFrame(weights, index=pd.Index(genes), columns=list(columns))
    return table - table.mean()  # a softmax sees differences between genes only


def scvi_settings(scvi_model: SCVI, screen: Screen) -> dict[str, Any]:
    """Return the arguments of `scvi.module.VAE` of a trained model, if it fits the screen.

    Raises
    ------
    NotTrainedError
        When it has not been trained.
    SchemaError
        When genes or batches differ, or it has covariates or a learned library size, or does
        not model counts by what the genes and batches alone say.
    """
    if not scvi_model.is_trained_:
        msg = "This scVI has not been trained; call its `.train()` first."
        raise NotTrainedError(msg)
    genes = tuple(map(str, scvi_model.get_var_names()))
    if genes != screen.genes:
        msg = "scVI was trained on other genes, or in another order, than the screen registered."
        raise SchemaError(msg)
    stats = scvi_model.summary_stats
    module = scvi_model.module
    covariates = stats.get("n_extra_categorical_covs", 0) + stats.get("n_extra_continuous_covs", 0)
    if covariates or not module.use_observed_lib_size:
        msg = (
            "Stage one may be a scVI without further covariates and with the observed library "
            f"size; this one has {covariates} covariates, use_observed_lib_size="
            f"{module.use_observed_lib_size}."
        )
        raise SchemaError(msg)
    arguments = scvi_model.init_params_["non_kwargs"]
    likelihood, dispersion = arguments["gene_likelihood"], arguments["dispersion"]
    if likelihood not in {"nb", "zinb", "poisson"} or dispersion == "gene-label":
        msg = (
            "Stage one may be a scVI of counts ('nb', 'poisson', 'zinb') with a dispersion per "
            f"'gene', 'gene-batch' or 'gene-cell'; this one has gene_likelihood={likelihood!r}, "
            f"dispersion={dispersion!r}."
        )
        raise SchemaError(msg)
    state = scvi_model.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)
    own = [str(label) for label in np.asarray(state.categorical_mapping)]
    ours = [labels[0] for labels in screen.batches if labels]
    if len(own) > 1 and own != ours:
        msg = f"scVI knows the batches {own}, the screen {ours}; set both up with one batch_key."
        raise SchemaError(msg)
    kept = (
        "n_hidden",
        "n_latent",
        "n_layers",
        "dropout_rate",
        "dispersion",
        "gene_likelihood",
        "latent_distribution",
    )
    extra = {k: v for group in scvi_model.init_params_["kwargs"].values() for k, v in group.items()}
    return {
        "n_input": len(screen.genes),
        "n_batch": len(own),
        "use_observed_lib_size": True,
        **{key: arguments[key] for key in kept},
        **extra,
    }


class LatentModel(TwoStageTraining, LikelihoodMixin):
    """Shared by the models with a generator in the latent of a count model.

    A model calls :meth:`_build` when it is made; the kind of configuration is that of generator.
    """

    module: TwoStageModule

    def _build(
        self, stage_one: AutoencoderConfig | None, stage_two: GeneratorConfig, *, seed: int
    ) -> None:
        """Make both stages; without a first one, the second draws counts themselves."""
        screen = self._screen
        self._samplers = SOLVERS if isinstance(stage_two, FlowConfig) else tuple(SAMPLERS)
        self._population_reference = stage_two.reference == "population"
        with forked_seed(seed):
            representation: CountAutoencoder | RawCounts = RawCounts(len(screen.genes))
            if stage_one is not None:
                representation = CountAutoencoder(
                    len(screen.genes),
                    len(screen.batches),
                    stage_one,
                    partial_panel=screen.library_key is not None,
                )
            generator = self._make_generator(representation, stage_two)
            self.module = TwoStageModule(representation, generator)
        likelihood = representation.likelihood
        self._units = "log1p(counts per 10,000)" if likelihood == "normal" else "counts"
        self.scvi_settings_: dict[str, Any] | None = None
        self.trained_pairs_: list[tuple[int, int]] = []
        self.n_steps_: int | None = None
        self._model_summary_string = (
            f"{type(self).__name__}: {len(screen.genes)} genes, {len(screen.table)} conditions, "
            f"{len(screen.contexts)} contexts, n_latent {representation.n_latent}, likelihood "
            f"{likelihood!r}, decoder {'none' if stage_one is None else stage_one.decoder!r}"
        )

    @classmethod
    def _from_scvi(cls, scvi_model: SCVI, adata: AnnData | None, given: Mapping[str, Any]) -> Self:
        """Take a trained scVI as stage one; `given` is for the class."""
        n_latent = int(scvi_model.module.n_latent)
        model = cls(scvi_model.adata if adata is None else adata, **{**given, "n_latent": n_latent})
        settings = scvi_settings(scvi_model, model._screen)
        model._use_scvi(settings)
        cast("ScviRepresentation", model.module.representation).vae.load_state_dict(
            scvi_model.module.state_dict()
        )
        return model

    def get_perturbation_representation(self, names: list[str] | None = None) -> pd.DataFrame:
        """Return the vector of each perturbation at its reference dose.

        Parameters
        ----------
        names
            Perturbations trained on or with features; None for all of them.

        Returns
        -------
        pandas.DataFrame
            `(n_perturbations, n_dimensions)`, indexed by name.

        Raises
        ------
        UnknownPerturbationError
            For a name that is neither.
        """
        self._check_trained()
        seen = self._seen()
        names = self._vocabulary.known(seen) if names is None else list(names)
        ids = torch.tensor([self._vocabulary.id_of(name, seen) for name in names])
        with torch.inference_mode():
            vectors = self.module.generator.average.encoder.component_vectors(
                ids.to(self._device())
            )
        return pd.DataFrame(vectors.cpu().numpy(), index=pd.Index(names, name="perturbation"))

    def get_loadings(self) -> pd.DataFrame:
        """Return the weights of the linear decoder: change in log proportion per unit of latent.

        Returns
        -------
        pandas.DataFrame
            `(n_genes, n_latent)`.

        Raises
        ------
        ValueError
            When the decoder is not linear.
        """
        stage = self.module.representation
        if not isinstance(stage, CountAutoencoder) or stage.config.decoder != "linear":
            msg = "Loadings exist for decoder='linear' only; this model has another decoder."
            raise ValueError(msg)
        columns = [f"program_{i}" for i in range(stage.n_latent)]
        return loadings(stage.decoder, self._screen.genes, columns)

    @property
    def _trains_representation(self) -> bool:
        """Whether stage one is to be trained here."""
        return isinstance(self.module.representation, CountAutoencoder)

    # Hooks --------------------------------------------------------------------------------

    def _use_scvi(self, settings: dict[str, Any]) -> None:
        """Replace stage one by scVI's module of these settings."""
        device = self._device()
        self.scvi_settings_ = settings
        self.module.representation = ScviRepresentation(settings).to(device).eval()

    def _make_generator(
        self, representation: CountAutoencoder | RawCounts, config: GeneratorConfig
    ) -> LatentGenerator:
        made: Any = LatentDiffusion
        if isinstance(representation, RawCounts):
            made = CountDiffusion
        elif isinstance(config, FlowConfig):
            made = LatentSplines if config.kind == "coupling" else LatentFlow
        table = self._screen.table
        generator: LatentGenerator = made(
            representation.n_latent,
            to_tensors(table.arrays()),
            n_identities=len(table.components),
            features=self._vocabulary.feature_tensors(),
            n_contexts=len(self._screen.contexts),
            config=config,
        )
        return generator

    @property
    def _draws_counts(self) -> bool:
        """Whether stage two draws counts themselves, with the library that comes out."""
        return isinstance(self.module.representation, RawCounts)

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
        if self._draws_counts and library_size != "reference":
            msg = (
                f"library_size={library_size!r}: with space='counts' cells have the library that "
                "is drawn; leave it at 'reference'."
            )
            raise ValueError(msg)
        self.module.eval()
        device = self._device()
        random = generator(seed, device)
        tensors = self._vocabulary.tensors(request.conditions, self._seen())
        return draw_cells(
            self._representation(),
            partial(self._draw_latents, sampler=sampler, random=random),
            conditions=type(tensors)(*(t.to(device) for t in tensors)),
            cells=cells,
            plan=plan,
            options=DrawOptions.make(
                request,
                self._screen,
                library_size=library_size,
                shifts=self.library_shifts_,
                seen_batch=self._seen_batch(),
                population=self._population_reference,
            ),
            random=random,
        )

    def _provenance(
        self,
        sampler: SamplerConfig,
        seed: int | None,
        units: str,
        *,
        library_size: float | str = "reference",
    ) -> dict[str, Any]:
        uns = super()._provenance(sampler, seed, units, library_size=library_size)
        if self._draws_counts:
            uns[UNS_KEY] |= {"sampler": "ancestral", "library_size": "drawn"}
        return uns

    def _seen(self) -> np.ndarray:
        return self.module.generator.learned.encoder.seen.cpu().numpy()

    def _draw_latents(
        self,
        conditions: ConditionTensors,
        which: torch.Tensor,
        reference: torch.Tensor,
        context: torch.Tensor,
        *,
        sampler: SamplerConfig,
        random: torch.Generator,
    ) -> torch.Tensor:
        return self.module.generator.sample_latent(
            conditions, which, reference, context, sampler=sampler, generator=random
        )
