"""`LatentModel`: a representation of counts, and a generator in its latent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scvi_perturb._checks import checked
from scvi_perturb._core import (
    UNS_KEY,
    Key,
    NotTrainedError,
    SchemaError,
    drawn_seed,
    forked_seed,
    generator,
)
from scvi_perturb.data.matching import group_controls
from scvi_perturb.data.screen import Screen
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.base.draw import DrawOptions, draw_cells
from scvi_perturb.model.base.latents import CHUNK, chosen_rows, chunks, encode_cells
from scvi_perturb.model.base.model import PerturbationModel
from scvi_perturb.model.base.reference import to_tensors
from scvi_perturb.model.base.setup import (
    check_folder,
    check_training_cells,
)
from scvi_perturb.model.base.training import all_or_nothing
from scvi_perturb.model.latent.fit import TwoStageFit
from scvi_perturb.module.autoencoder import (
    AutoencoderConfig,
    CountAutoencoder,
    ScviRepresentation,
    average_likelihood,
)
from scvi_perturb.module.base import ConditionBatch, CountParameters
from scvi_perturb.module.count_diffusion import RawCounts
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator, TwoStageModule
from scvi_perturb.train.plan import TrainConfig
from scvi_perturb.train.runner import one_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData
    from scvi.model import SCVI

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.model.base.draw import Drawn, LibrarySize
    from scvi_perturb.model.base.reference import Plan, Reference
    from scvi_perturb.nn.layers import CountDecoder

#: Latents that a likelihood is averaged over: more evaluations do not bring them nearer to real
#: ones (docs/samplers.md).
_DRAWS: Final = SamplerConfig(n_evaluations=8)


def loadings(decoder: CountDecoder, genes: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return the change in log proportion per unit of each latent, `(n_genes, n_latent)`."""
    weights = decoder.logits.weight.detach().cpu().numpy()[: len(genes), : len(columns)]
    table = pd.DataFrame(weights, index=pd.Index(genes), columns=list(columns))
    return table - table.mean()  # a softmax sees differences between genes only


def scvi_settings(scvi_model: SCVI, screen: Screen) -> dict[str, Any]:
    """Return the arguments of `scvi.module.VAE` of a trained model, if it fits the screen.

    Raises `NotTrainedError`: When it has not been trained. Raises `SchemaError`: When genes or
    batches differ, or it has covariates or a learned library size, or does not model counts by what
    the genes and batches alone say.
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


@checked
class LatentModel(PerturbationModel):
    """Shared by the models with a generator in the latent of a count model.

    A model calls :meth:`_build` when it is made; the configuration names its generator.
    """

    module: TwoStageModule
    #: Arguments of scVI's module where stage one is a trained scVI.
    scvi_settings_: dict[str, Any] | None
    #: Steps of stage two that the held-out conditions asked for, if they were asked.
    n_steps_: int | None

    def _build(
        self,
        stage_one: AutoencoderConfig | None,
        stage_two: GeneratorConfig,
        *,
        seed: int | None,
        generator_class: type[LatentGenerator] | None = None,
    ) -> None:
        """Make both stages; without a first one, the second draws counts themselves.

        The second stage is the generator that its configuration names, unless another is given.
        """
        screen = self._screen
        self._population_reference = stage_two.reference == "population"
        with forked_seed(seed):
            representation: CountAutoencoder | RawCounts = RawCounts(len(screen.genes))
            if stage_one is not None:
                representation = CountAutoencoder(
                    len(screen.genes),
                    len(screen.batches),
                    stage_one,
                    partial_panel=screen.keys.library is not None,
                )
            made = generator_class or stage_two.generator_class
            generator = made(
                representation.n_latent,
                to_tensors(screen.table.arrays()),
                n_identities=len(screen.table.components),
                features=self._vocabulary.feature_tensors(),
                n_contexts=len(screen.contexts),
                config=stage_two,
            )
            self.module = TwoStageModule(representation, generator)
        self._samplers = generator.samplers
        likelihood = representation.likelihood
        self._units = "log1p(counts per 10,000)" if likelihood == "normal" else "counts"
        self.scvi_settings_ = None
        self.trained_pairs_ = []
        self.n_steps_ = None
        self._model_summary_string = (
            f"{type(self).__name__}: {len(screen.genes)} genes, {len(screen.table)} conditions, "
            f"{len(screen.contexts)} contexts, n_latent {representation.n_latent}, likelihood "
            f"{likelihood!r}, decoder {'none' if stage_one is None else stage_one.decoder!r}"
        )

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        *,
        adata: AnnData | None = None,
        **arguments: Any,  # noqa: ANN401 - those of the class
    ) -> Self:
        """Take a trained scVI as stage one: its encoder and decoder are kept as they are.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` without further covariates.
        adata
            The data that it was trained on, registered with :meth:`setup_anndata` as well and
            with the same batches; None for the model's own.
        **arguments
            Of the class, but for those that scVI's network answers: `diffusion`, `flow` or
            `generator`, `features`, `seed`.

        Returns
        -------
        LatentModel
            A model of this class, of which stage two is to be trained.

        Raises
        ------
        NotTrainedError
            When scVI has not been trained.
        SchemaError
            When genes or batches differ, or scVI has covariates or a learned library size.
        TypeError
            For an argument that scVI's network answers, or that the class does not have.
        """
        answered = sorted(set(arguments) & {"n_latent", "n_hidden", "n_layers", "likelihood",
                                            "dispersion", "decoder", "space"})  # fmt: skip
        if answered:
            msg = f"{answered} are those of the scVI given; leave them out."
            raise TypeError(msg)
        n_latent = int(scvi_model.module.n_latent)
        data = scvi_model.adata if adata is None else adata
        model = cls(data, **{**arguments, "n_latent": n_latent})
        settings = scvi_settings(scvi_model, model._screen)
        model._use_scvi(settings)
        cast("ScviRepresentation", model.module.representation).vae.load_state_dict(
            scvi_model.module.state_dict()
        )
        return model

    @one_training
    @all_or_nothing
    @docs.dedent
    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int | None = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train both stages.

        Parameters
        ----------
        %(train)s
        n_steps
            Steps of stage two. None chooses them by the error on conditions held out from the
            training cells, then trains on all of them for as many steps: the error on held-out
            *cells* of trained conditions goes on falling long after that on conditions rises.
        %(train_rest)s

        Raises
        ------
        %(train_raises)s
        """
        reader = self._reader(None)
        seed = drawn_seed(seed)
        parts = self._split_cells(split, len(reader), seed)
        check_training_cells(reader, parts.train, self._screen)
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            asked = {"max_epochs": max_epochs, "n_steps": n_steps, "batch_size": batch_size}
            check_folder(
                folder, self._run_description(parts, asked | {"seed": seed, "config": config})
            )
        fit = TwoStageFit(self, reader, parts, config, trainer_kwargs, folder)
        if self._trains_representation:
            fit.representation(max_epochs, batch_size=batch_size, seed=seed)
        fit.generator(n_steps, seed=seed)
        self._record_training(reader, parts, split, seed)

    @docs.dedent
    def log_likelihood_bound(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        n_samples: int | None = None,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> np.ndarray:
        """Return a lower bound on the log-likelihood of each cell's counts, its library given.

        For each condition, context and batch, `n_samples` latents are drawn from the model,
        starting from training controls there, and the likelihood of a cell is averaged over
        them: `log 1/K sum_k p(x | z_k)`. Its expectation is a lower bound (Jensen) which rises
        to the log-likelihood with K; it is loose by several nats where a cell lies between
        draws, alike for all conditions. Differences between conditions are therefore more
        telling than values.

        Parameters
        ----------
        %(cells)s
        n_samples
            Latents per condition, K; None takes 256.
        seed
            Seed of the draws.
        key_added
            Column of `obs` to write to as well; needs `indices=None`.

        Returns
        -------
        numpy.ndarray
            `(n_cells,)`, nats.

        Raises
        ------
        %(raises_cells)s
        ValueError
            When the model draws counts without a likelihood, or `n_samples` is below 1.
        """
        self._check_likelihood()
        n_samples = 256 if n_samples is None else n_samples
        self.module.eval()
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), key_added)
        values = np.full(len(rows), np.nan)
        random = generator(seed, self._device())
        keys = (Key.CONDITION, Key.CONTEXT, Key.BATCH)
        codes = np.stack([reader.codes[key][rows] for key in keys], axis=1)
        table = Screen.from_registry(self._manager(adata).registry).table
        controls = self._encoded_controls()
        distinct, group = np.unique(codes, axis=0, return_inverse=True)
        for some in chunks(len(distinct), max(1, CHUNK // n_samples)):
            conditions = [table.conditions[code[0]] for code in distinct[some]]
            drawn = self._latents_under(conditions, distinct[some], controls, n_samples, random)
            for i, condition, latents in zip(some, conditions, drawn, strict=True):
                unit = self._unit_parameters(latents, condition, distinct[i])
                members = np.flatnonzero(group.ravel() == i)
                for part in chunks(len(members)):
                    batch = reader[rows[members[part]]]
                    values[members[part]] = average_likelihood(self._representation(), batch, unit)
        if key_added is not None:
            (self.adata if adata is None else adata).obs[key_added] = values
        return values

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

    @property
    def _draws_counts(self) -> bool:
        """Whether stage two draws counts themselves, with the library that comes out."""
        return isinstance(self.module.representation, RawCounts)

    def _draw(
        self, plan: Plan, *, sampler: SamplerConfig, seed: int | None, library_size: LibrarySize
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
        tensors = self._vocabulary.tensors(plan.request.conditions, self._seen())
        return draw_cells(
            self._representation(),
            partial(self.module.generator.sample_latent, sampler=sampler, generator=random),
            conditions=type(tensors)(*(t.to(device) for t in tensors)),
            plan=plan,
            options=DrawOptions.make(
                plan.request,
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

    def _encoded_controls(self) -> tuple[Reference, torch.Tensor, torch.Tensor]:
        """Return the training controls, and mean and log variance of their latents."""
        controls = self._training_controls()
        stage = self._representation()
        return controls, *encode_cells(stage, controls.read, len(controls), self._device())

    def _references(
        self,
        controls: tuple[Reference, torch.Tensor, torch.Tensor],
        code: np.ndarray,
        n_samples: int,
        random: torch.Generator,
    ) -> torch.Tensor:
        """Draw latents of training controls of the context and batch of a code."""
        cells, mean, log_variance = controls
        is_control = np.append(np.ones(len(cells), dtype=bool), False)
        context, batch = np.append(cells.context, code[1]), np.append(cells.batch, code[2])
        groups = group_controls(context, batch, is_control)
        pool = torch.from_numpy(groups.pool(int(groups.group[-1])))
        if self._population_reference:
            return mean[pool].mean(0, keepdim=True).expand(n_samples, -1).to(self._device())
        device = self._device()
        pick = pool[torch.randint(len(pool), (n_samples,), generator=random, device=device).cpu()]
        noise = torch.randn((n_samples, mean.shape[1]), generator=random, device=device)
        return mean[pick].to(device) + (0.5 * log_variance[pick]).exp().to(device) * noise

    def _latents_under(
        self,
        conditions: Sequence[Condition],
        codes: np.ndarray,
        controls: tuple[Reference, torch.Tensor, torch.Tensor],
        n_samples: int,
        random: torch.Generator,
    ) -> torch.Tensor:
        """Draw latents of each condition, context and batch, `(n, n_samples, n_latent)`."""
        references = [self._references(controls, code, n_samples, random) for code in codes]
        reference = torch.cat(references)
        device = reference.device
        tensors = self._vocabulary.tensors(conditions, self._seen())
        which = torch.arange(len(codes), device=device).repeat_interleave(n_samples)
        batch = ConditionBatch(
            type(tensors)(*(t.to(device) for t in tensors)),
            which,
            reference,
            torch.from_numpy(codes[:, 1]).to(device)[which],
        )
        drawn = self.module.generator.sample_latent(batch, sampler=_DRAWS, generator=random)
        return drawn.view(len(codes), n_samples, -1)

    @torch.inference_mode()
    def _unit_parameters(
        self, latents: torch.Tensor, condition: Condition, code: np.ndarray
    ) -> CountParameters:
        """Return the parameters of counts of each latent at a library size of one.

        A latent's proportions are decoded once; each cell has its own library.
        """
        del condition
        batch = torch.full((len(latents),), int(code[2]), device=latents.device)
        one = torch.ones(len(latents), device=latents.device)
        return self._representation().decode(latents, one, batch)
