"""`PerturbFlow`: transport from control to response, or from noise with an exact density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
import torch

from scvi_perturb._checks import check_choice, check_type, checked
from scvi_perturb._core import Key, generator
from scvi_perturb.data.request import parse_request
from scvi_perturb.generative.samplers import SamplerConfig, SamplerName
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.base.latents import chosen_rows, chunks
from scvi_perturb.model.flow.transport import FlowCells, TransportMixin
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.module.flow import FlowConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.features.store import PerturbationFeatures

_OTHERS: Final = (
    "A diffusion is `PerturbDiffusion(diffusion=...)`; `HybridResidualModel(generator=...)` takes "
    "any configuration of a generator."
)

#: Above this many dimensions the trace of the Jacobian is estimated.
MAX_EXACT = 64
N_PROBES = 10
#: Cells at a time: the Jacobians of more are too large for the caches of a processor.
_CHUNK = 128


@checked
@docs.dedent
class PerturbFlow(TransportMixin):
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
    %(init_adata)s
    %(init_stage_one)s
    likelihood
        `"nb"`, `"zinb"`, `"poisson"`; or `"normal"`, of `log1p` counts per ten thousand.
    %(init_decoder)s
    flow
        Source, coupling, network; None for the defaults that measured best.
    %(init_rest)s

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
        seed: int | None = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        stage_two = FlowConfig() if flow is None else flow
        check_type("flow", stage_two, FlowConfig, _OTHERS)
        super().__init__(adata, registry, features)
        check_choice("likelihood", likelihood, ("nb", "zinb", "poisson", "normal"))
        stage_one = AutoencoderConfig(n_latent, n_hidden, n_layers, likelihood, dispersion, decoder)
        self._build(stage_one, stage_two, seed=seed)
        self.init_params_ = self._get_init_params(locals())

    @property
    def has_density(self) -> bool:
        """Whether the latent has a density: that of flows from noise."""
        return not self._from_control

    def latent_log_density(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        condition: str | pd.DataFrame | None = None,
        sampler: SamplerName | SamplerConfig | None = None,
        n_probes: int | None = None,
        seed: int | None = 0,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Return the log-density of each cell's mean latent, for flows from noise.

        It is a density of the latent, not of the counts: it can be compared between cells and
        between conditions of one model, and with no other model. Of the counts there is
        :meth:`log_likelihood_bound`.

        Parameters
        ----------
        adata
            Cells with the genes and columns of training; None for the data of training.
        indices
            Cells, in the order wanted; None for all.
        condition
            Condition under which all cells are scored, a name or a table of one row with its dose,
            time or kind; None takes each cell's own.
        sampler
            Solver; None takes Runge-Kutta of order 4 with 24 evaluations.
        n_probes
            Probes of Hutchinson's estimate of the trace; None takes the exact trace up to 64
            dimensions and ten probes beyond.
        seed
            Seed of the probes.
        key_added
            Column of `obs` to write the log-density to as well; needs `indices=None`.

        Returns
        -------
        pandas.DataFrame
            One row a cell, nats: `log_density`; `step_error`, the difference from half the
            steps; `standard_error` of the probes, 0 with the exact trace.

        Raises
        ------
        NotTrainedError
            Before training.
        UnknownPerturbationError
            For a perturbation neither trained on nor with features.
        SchemaError
            When the data, or the condition asked for, do not fit the model.
        ValueError
            For flows from control cells, whose density would need that of the controls.
        """
        self._check_density()
        given = self._given_cells(adata, indices, key_added)
        cells = given.cells
        if condition is not None:
            cells = cells.under(self._one_condition(condition))
        found = self._densities(given.latent, cells, sampler, n_probes, seed, with_errors=True)
        table = found.set_axis(given.names, axis=0)
        if key_added is not None:
            data = self.adata if adata is None else adata
            data.obs[key_added] = table["log_density"].to_numpy()
        return table

    def anomaly_scores(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        sampler: SamplerName | SamplerConfig | None = None,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        """Score cells by how little they fit their condition, for flows from noise.

        Parameters
        ----------
        adata, indices, sampler
            As for :meth:`latent_log_density`.
        key_added
            Prefix of two columns of `obs` to write to as well, e.g. `"anomaly"` for
            `anomaly_surprise` and `anomaly_control_ratio`; needs `indices=None`.

        Returns
        -------
        pandas.DataFrame
            One row a cell, nats. `surprise`: minus the log-density under the cell's own
            condition, high for doublets and states that were not learned. `control_ratio`: the
            log-density under control less that under the own condition, high for cells that look
            as if the perturbation had not reached them, 0 for control cells.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, ValueError
            As for :meth:`latent_log_density`.
        """
        self._check_density()
        given = self._given_cells(adata, indices, key_added)
        own = self._densities(given.latent, given.cells, sampler, None, 0)["log_density"]
        control = self._densities(given.latent, given.cells.as_control(), sampler, None, 0)
        ratio = np.where(given.cells.is_control.numpy(), 0.0, control["log_density"] - own)
        scores = {"surprise": -own.to_numpy(), "control_ratio": ratio}
        table = pd.DataFrame(scores, index=given.names)
        if key_added is not None:
            data = self.adata if adata is None else adata
            for name in table:
                data.obs[f"{key_added}_{name}"] = table[name].to_numpy()
        return table

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

        From noise, the density of the latent is exact and the bound importance-weighted:
        `log 1/K sum_k p(x | z_k) p(z_k | condition) / q(z_k | x)` with latents drawn from the
        encoder, tight within a few nats for small K. From control cells, latents are drawn under
        the condition, which needs many and is loose.

        Parameters
        ----------
        adata, indices, key_added
            As for :meth:`latent_log_density`.
        n_samples
            Latents a cell, K; None takes 4 from noise, 256 from control cells.
        seed
            Seed of the draws.

        Returns
        -------
        numpy.ndarray
            `(n_cells,)`, nats.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError
            As for :meth:`latent_log_density`.

        References
        ----------
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        if not self.has_density:
            return super().log_likelihood_bound(
                adata, indices=indices, n_samples=n_samples, seed=seed, key_added=key_added
            )
        given = self._given_cells(adata, indices, key_added)
        random = generator(seed)
        weights = []
        for _ in range(n_samples or 4):
            noise = torch.randn(given.latent.shape, generator=random)
            spread = (0.5 * given.log_variance).exp()
            latent = given.latent + spread * noise
            proposal = (-0.5 * noise.square() - spread.log() - 0.5 * np.log(2 * np.pi)).sum(1)
            prior = self._densities(latent, given.cells, None, None, seed)["log_density"]
            counts = self._log_likelihood_given(adata, indices, latent)
            weights.append(counts + torch.from_numpy(prior.to_numpy(copy=True)) - proposal)
        values = torch.logsumexp(torch.stack(weights), dim=0) - np.log(len(weights))
        if key_added is not None:
            (self.adata if adata is None else adata).obs[key_added] = values.numpy()
        return values.numpy()

    def _log_likelihood_given(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | None, latent: torch.Tensor
    ) -> torch.Tensor:
        """Return the log-likelihood of cells' counts given their latents, `(n_cells,)`."""
        reader, device, stage = self._reader(adata), self._device(), self._representation()
        rows = chosen_rows(indices, len(reader), None)
        found = []
        for chunk in chunks(len(rows)):
            batch = {k: v.to(device) for k, v in reader[rows[chunk]].items()}
            with torch.inference_mode():
                parameters = stage.decode(
                    latent[chunk].to(device), batch[Key.LIBRARY], batch[Key.BATCH]
                )
                found.append(stage.log_prob(batch, parameters).cpu().double())
        return torch.cat(found)

    def _densities(
        self,
        latent: torch.Tensor,
        cells: FlowCells,
        sampler: SamplerName | SamplerConfig | None,
        n_probes: int | None,
        seed: int | None,
        *,
        with_errors: bool = False,
    ) -> pd.DataFrame:
        """Return densities and, if wanted, the error of the steps, one row a latent."""
        chosen = sampler or SamplerConfig(method="rk4", n_evaluations=24)
        config = SamplerConfig.of(chosen, self._samplers)
        if n_probes is None and latent.shape[1] > MAX_EXACT:
            n_probes = N_PROBES
        random = generator(seed, self._device())
        parts = []
        batch = self._condition_batch(cells)
        for rows in chunks(len(latent), _CHUNK):
            found = self._flow.log_density(
                batch.rows(torch.from_numpy(rows).to(self._device())),
                latent[rows].to(self._device()),
                sampler=config,
                n_probes=n_probes,
                generator=random,
                with_step_error=with_errors,
            )
            parts.append(torch.stack(found[:3], dim=1).cpu().double())
        columns = ["log_density", "step_error", "standard_error"]
        return pd.DataFrame(torch.cat(parts).numpy(), columns=columns)

    def _one_condition(self, condition: str | pd.DataFrame) -> Condition:
        asked = [condition] if isinstance(condition, str) else condition
        request = parse_request(asked, self._screen)
        if len(request) != 1 or request.context or request.batch is not None:
            msg = (
                f"condition={condition!r} must be one name, or a table of one row without context "
                "and batch: cells keep theirs."
            )
            raise ValueError(msg)
        return request.conditions[0]

    def _check_density(self) -> None:
        if not self.has_density:
            msg = (
                "This flow starts from control cells: a density of the response would need that "
                "of the controls. Train with flow=FlowConfig(source='noise'), or see "
                "log_likelihood_bound."
            )
            raise ValueError(msg)
