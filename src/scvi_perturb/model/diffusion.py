"""`PerturbDiffusion`: the distribution of responses by diffusion in the latent of a count model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from scvi_perturb._checks import check_choice, check_type, checked
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.latent.model import LatentModel
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.module.count_diffusion import CountDiffusion
from scvi_perturb.module.diffusion import DiffusionConfig, LatentDiffusion

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.features.store import PerturbationFeatures

_OTHERS: Final = (
    "A flow is `PerturbFlow(flow=...)`; `HybridResidualModel(generator=...)` takes any "
    "configuration of a generator."
)
#: More genes than these are too many for a diffusion of counts.
MAX_COUNT_GENES = 2_000


@checked
@docs.dedent
class PerturbDiffusion(LatentModel):
    """Sample cells under perturbations nobody measured, as integer counts.

    * Stage one, a variational autoencoder of raw counts (or a trained scVI), gives a latent.
    * Stage two, a denoiser in the frozen, whitened latent, learns
      p(latent | perturbation, dose, time, context, control cell).
    * A request starts from control cells, of the screen or new ones, and ends in counts at
      their library sizes. Unseen combinations are sums of known components; an unseen
      perturbation needs features, else the request is refused.

    Parameters
    ----------
    %(init_adata)s
    %(init_stage_one)s
    likelihood
        `"nb"`, `"zinb"` or `"poisson"`.
    %(init_decoder)s
    space
        `"latent"`. Or `"log1p"`, the same with a Normal likelihood of `log1p` counts per ten
        thousand: a baseline without count semantics, whose samples are not counts. Or
        `"counts"`, a discrete diffusion of binned counts without stage one, for research: up to
        2,000 genes; drawn cells have the library that comes out; `sampler` says the number of
        steps alone; there is no likelihood, and of the arguments those of stage one are unused.
    diffusion
        Denoiser and conditioning; None for the defaults that measured best.
    %(init_rest)s

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
        space: Literal["latent", "log1p", "counts"] = "latent",
        diffusion: DiffusionConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int | None = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        stage_two = DiffusionConfig() if diffusion is None else diffusion
        check_type("diffusion", stage_two, DiffusionConfig, _OTHERS)
        super().__init__(adata, registry, features)
        check_choice("likelihood", likelihood, ("nb", "zinb", "poisson"))
        check_choice("space", space, ("latent", "log1p", "counts"))
        values = "normal" if space == "log1p" else likelihood
        stage_one = AutoencoderConfig(n_latent, n_hidden, n_layers, values, dispersion, decoder)
        if space == "counts":
            stage_two = counts_config(stage_two, len(self._screen.genes))
            self._build(None, stage_two, seed=seed, generator_class=CountDiffusion)
        else:
            self._build(stage_one, stage_two, seed=seed)
        self.init_params_ = self._get_init_params(locals())

    @property
    def diffusion(self) -> DiffusionConfig:
        """What was chosen of the diffusion."""
        return cast("DiffusionConfig", self.module.generator.config)


def counts_config(config: DiffusionConfig, n_genes: int) -> DiffusionConfig:
    """Return what a diffusion of counts makes of a configuration: single pairs, from cells.

    Raises `ValueError`: With too many genes, or a reference other than a control cell. Raises
    `TypeError`: If the configuration is of a generator of your own.
    """
    if config.generator_class is not LatentDiffusion:
        msg = (
            f"space='counts' builds a CountDiffusion, and {type(config).__name__} is the "
            f"configuration of a {config.generator_class.__name__}. Leave space at 'latent'."
        )
        raise TypeError(msg)
    if n_genes > MAX_COUNT_GENES:
        msg = (
            f"space='counts' draws every gene of every cell and is meant for up to "
            f"{MAX_COUNT_GENES:,} genes; there are {n_genes:,}. Select genes, or use 'latent'."
        )
        raise ValueError(msg)
    if config.reference != "cell":
        msg = f"space='counts' starts from control cells; reference={config.reference!r} does not."
        raise ValueError(msg)
    return replace(config, n_neighbours=1)
