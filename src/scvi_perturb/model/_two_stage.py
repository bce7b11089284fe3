"""Models of a representation and a generator in its latent: what they have in common."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import pandas as pd
import torch

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._random import forked_seed, generator
from scvi_perturb.generative import SAMPLERS, SOLVERS
from scvi_perturb.model._draw import DrawOptions, draw_cells
from scvi_perturb.model._likelihood import LikelihoodMixin
from scvi_perturb.model._loadings import loadings
from scvi_perturb.model._scvi import scvi_settings
from scvi_perturb.model._training import TwoStageTraining
from scvi_perturb.model._vocabulary import to_tensors
from scvi_perturb.module import (
    AutoencoderConfig,
    ConditionTensors,
    CountAutoencoder,
    CountDiffusion,
    FlowConfig,
    GeneratorConfig,
    LatentDiffusion,
    LatentFlow,
    LatentGenerator,
    LatentSplines,
    RawCounts,
    ScviRepresentation,
    TwoStageModule,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from anndata import AnnData
    from scvi.model import SCVI

    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.model._draw import Drawn, LibrarySize
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan

__all__ = ["LatentModel"]


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
