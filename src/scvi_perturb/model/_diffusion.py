"""`PerturbDiffusion`: the distribution of responses by diffusion in the latent of a count model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch

from scvi_perturb._errors import check_choice
from scvi_perturb._random import forked_seed
from scvi_perturb.model._base import PerturbationModel
from scvi_perturb.model._likelihood import LikelihoodMixin
from scvi_perturb.model._novelty import UNKNOWN, Place, novelty
from scvi_perturb.model._scvi import scvi_settings
from scvi_perturb.model._training import TwoStageTraining
from scvi_perturb.model._vocabulary import to_tensors
from scvi_perturb.module import (
    AutoencoderConfig,
    ConditionTensors,
    CountAutoencoder,
    DiffusionConfig,
    LatentDiffusion,
    ScviRepresentation,
    TwoStageModule,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from scvi.model import SCVI

    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan

__all__ = ["PerturbDiffusion"]


class PerturbDiffusion(TwoStageTraining, LikelihoodMixin, PerturbationModel):
    """Sample cells under perturbations nobody measured, as integer counts.

    * Stage one, a variational autoencoder of raw counts (or a trained scVI), gives a latent.
    * Stage two, a denoiser in the frozen, whitened latent, learns
      p(latent | perturbation, dose, time, context, control cell).
    * A request starts from control cells, of the screen or new ones, and ends in counts at
      their library sizes. Unseen combinations are sums of known components; an unseen
      perturbation needs features, else the request is refused.

    Parameters
    ----------
    adata
        A screen registered with :meth:`setup_anndata`.
    n_latent, n_hidden, n_layers
        Latent dimension, width and encoder layers of stage one.
    likelihood
        `"nb"`, `"zinb"` or `"poisson"`.
    dispersion
        One per `"gene"`, `"gene-batch"` or `"gene-cell"`.
    decoder
        `"mlp"`, or `"linear"` for loadings that can be read, see :meth:`get_loadings`.
    space
        `"latent"`; or `"log1p"`, the same with a Normal likelihood of `log1p` counts per ten
        thousand: a baseline without count semantics, whose samples are not counts.
    diffusion
        Denoiser and conditioning; None for the defaults that measured best.
    features
        What is known of perturbations, for those that the screen does not hold.
    seed
        Seed of the initial weights.
    registry
        Used when loading without data.

    Examples
    --------
    >>> import scvi_perturb as svp
    >>> adata = svp.data.simulate_screen(seed=0)
    >>> svp.model.PerturbDiffusion.setup_anndata(adata, context_keys=["cell_type"])
    >>> model = svp.model.PerturbDiffusion(adata)
    >>> model.train()
    >>> cells = model.sample(["pert_01+pert_02"], n_samples=500, seed=0)

    References
    ----------
    Lopez et al. 2018 (scVI); Rombach et al. 2022 (diffusion in a latent); Song et al. 2021
    (score SDE); Ho and Salimans 2022 (classifier-free guidance).
    """

    module: TwoStageModule

    def __init__(  # noqa: PLR0913 - flat, as scvi-tools' models and its tuning take them
        self,
        adata: AnnData | MuData | None = None,
        *,
        n_latent: int = 32,
        n_hidden: int = 128,
        n_layers: int = 2,
        likelihood: Literal["nb", "zinb", "poisson"] = "nb",
        dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene",
        decoder: Literal["mlp", "linear"] = "mlp",
        space: Literal["latent", "log1p"] = "latent",
        diffusion: DiffusionConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry, features)
        check_choice("likelihood", likelihood, ("nb", "zinb", "poisson"))
        check_choice("space", space, ("latent", "log1p"))
        config = AutoencoderConfig(
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            likelihood="normal" if space == "log1p" else likelihood,
            dispersion=dispersion,
            decoder=decoder,
        )
        self.diffusion = diffusion or DiffusionConfig()
        self._units = "log1p(counts per 10,000)" if space == "log1p" else "counts"
        self._population_reference = self.diffusion.reference == "population"
        screen = self._screen
        with forked_seed(seed):
            autoencoder = CountAutoencoder(
                len(screen.genes),
                len(screen.batches),
                config,
                partial_panel=screen.library_key is not None,
            )
            self.module = TwoStageModule(autoencoder, self._make_generator(n_latent))
        self.scvi_settings_: dict[str, Any] | None = None
        self.trained_pairs_: list[tuple[int, int]] = []
        self.n_steps_: int | None = None
        self._model_summary_string = (
            f"{type(self).__name__}: {len(screen.genes)} genes, {len(screen.table)} conditions, "
            f"{len(screen.contexts)} contexts, n_latent {n_latent}, space {space!r}, "
            f"likelihood {likelihood!r}, decoder {decoder!r}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        *,
        adata: AnnData | None = None,
        diffusion: DiffusionConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int = 0,
    ) -> PerturbDiffusion:
        """Take a trained scVI as stage one: its encoder and decoder are kept as they are.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` without further covariates.
        adata
            The data that it was trained on, registered with :meth:`setup_anndata` as well and
            with the same batches; None for the model's own.
        diffusion, features, seed
            As for the class.

        Returns
        -------
        PerturbDiffusion
            A model of which stage two is to be trained.

        Raises
        ------
        NotTrainedError
            When scVI has not been trained.
        SchemaError
            When genes or batches differ, or scVI has covariates or a learned library size.
        """
        model = cls(
            scvi_model.adata if adata is None else adata,
            n_latent=int(scvi_model.module.n_latent),
            diffusion=diffusion,
            features=features,
            seed=seed,
        )
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
        weights = stage.decoder.logits.weight.detach().cpu().numpy()
        genes = self._screen.genes
        columns = [f"program_{i}" for i in range(stage.n_latent)]
        table = pd.DataFrame(weights[: len(genes), : stage.n_latent], index=genes, columns=columns)
        return table - table.mean()  # a softmax sees differences between genes only

    # Hooks --------------------------------------------------------------------------------

    def _use_scvi(self, settings: dict[str, Any]) -> None:
        """Replace stage one by scVI's module of these settings."""
        device = self._device()
        self.scvi_settings_ = settings
        self.module.representation = ScviRepresentation(settings).to(device).eval()

    def _make_generator(self, n_latent: int) -> LatentDiffusion:
        table = self._screen.table
        return LatentDiffusion(
            n_latent,
            to_tensors(table.arrays()),
            n_identities=len(table.components),
            features=self._vocabulary.feature_tensors(),
            n_contexts=len(self._screen.contexts),
            config=self.diffusion,
        )

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

    def _novelty(self, request: Request, cells: Reference, plan: Plan) -> np.ndarray:
        columns = self._screen.context_columns
        labels = cells.labels.reindex(columns=list(columns)).fillna(UNKNOWN).to_numpy(dtype=object)
        asked, row = [], []
        for i, condition in enumerate(request.conditions):
            used = labels[np.unique(plan.reference[plan.row == i])]
            for column, label in request.where(i).items():
                used[:, columns.index(column)] = label
            contexts = sorted({tuple(map(str, context)) for context in used})
            asked += [Place(condition, context) for context in contexts]
            row += [i] * len(contexts)
        trained = [
            Place(self._screen.table.conditions[code], self._screen.contexts[context])
            for code, context in self.trained_pairs_
            if code != 0
        ]
        each = novelty(asked, trained, self._vocabulary.features)
        return np.bincount(row, weights=each) / np.bincount(row)
