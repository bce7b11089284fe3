"""`PerturbFlow`: transport from control to response, or from noise with an exact density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from scvi_perturb._errors import check_choice
from scvi_perturb.model.flow.density import DensityMixin
from scvi_perturb.model.flow.transport import TransportMixin
from scvi_perturb.model.latent.model import LatentModel
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.module.flow import FlowConfig

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from scvi.model import SCVI

    from scvi_perturb.features.store import PerturbationFeatures

__all__ = ["PerturbFlow"]


class PerturbFlow(TransportMixin, DensityMixin, LatentModel):
    """Carry control cells to their response, and back; or tell how likely a cell is.

    * Stage one, a variational autoencoder of raw counts (or a trained scVI), gives a latent.
    * Stage two, a velocity field in the frozen, whitened latent, given perturbation, dose, time
      and context, is learned by flow matching. It is invertible.
    * `FlowConfig(source="control")`, the default: cells start as control cells, matched by
      mini-batch optimal transport within context and batch. One trajectory leads from each
      control cell to one response: see :meth:`transport`, :meth:`invert`, :meth:`trajectory`.
    * `FlowConfig(source="noise")`: cells start as noise around the mean control cell. The latent
      has an exact density: see :meth:`latent_log_density`, :meth:`anomaly_scores`.

    Trajectories join distributions. They are no experiment's record of what one cell did.

    Parameters
    ----------
    adata
        A screen registered with :meth:`setup_anndata`.
    n_latent, n_hidden, n_layers
        Latent dimension, width and encoder layers of stage one.
    likelihood
        `"nb"`, `"zinb"`, `"poisson"`; or `"normal"`, of `log1p` counts per ten thousand.
    dispersion
        One per `"gene"`, `"gene-batch"` or `"gene-cell"`.
    decoder
        `"mlp"`, or `"linear"` for loadings that can be read, see :meth:`get_loadings`.
    flow
        Source, coupling, network; None for the defaults that measured best.
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
    >>> svp.model.PerturbFlow.setup_anndata(adata, context_keys=["cell_type"])
    >>> model = svp.model.PerturbFlow(adata)
    >>> model.train()
    >>> path = model.trajectory(["pert_01"], times=[0.0, 0.5, 1.0])

    References
    ----------
    Lipman et al. 2023 (flow matching); Tong et al. 2024 (mini-batch optimal transport); Grathwohl
    et al. 2019 (density along a flow); Durkan et al. 2019 (splines); Klein et al. 2025 (CellFlow).
    """

    def __init__(  # noqa: PLR0913 - flat, as scvi-tools' models and its tuning take them
        self,
        adata: AnnData | MuData | None = None,
        *,
        n_latent: int = 32,
        n_hidden: int = 128,
        n_layers: int = 2,
        likelihood: Literal["nb", "zinb", "poisson", "normal"] = "nb",
        dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene",
        decoder: Literal["mlp", "linear"] = "mlp",
        flow: FlowConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry, features)
        check_choice("likelihood", likelihood, ("nb", "zinb", "poisson", "normal"))
        stage_one = AutoencoderConfig(
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            likelihood=likelihood,
            dispersion=dispersion,
            decoder=decoder,
        )
        self._build(stage_one, flow or FlowConfig(), seed=seed)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        *,
        adata: AnnData | None = None,
        flow: FlowConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int = 0,
    ) -> PerturbFlow:
        """Take a trained scVI as stage one: its encoder and decoder are kept as they are.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` without further covariates.
        adata
            The data that it was trained on, registered with :meth:`setup_anndata` as well and
            with the same batches; None for the model's own.
        flow, features, seed
            As for the class.

        Returns
        -------
        PerturbFlow
            A model of which stage two is to be trained.

        Raises
        ------
        NotTrainedError
            When scVI has not been trained.
        SchemaError
            When genes or batches differ, or scVI has covariates or a learned library size.
        """
        given = {"flow": flow, "features": features, "seed": seed}
        return cls._from_scvi(scvi_model, adata, given)
