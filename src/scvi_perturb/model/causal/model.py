"""`CausalPerturbVAE`: identity, state, technical latents; perturbations are operators on state."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb._random import forked_seed
from scvi_perturb.model.base.draw import Plan, cell_obs, write_cells
from scvi_perturb.model.base.setup import check_interval
from scvi_perturb.model.causal.draw import CONDITIONING, check_conditioning, latent_names
from scvi_perturb.model.causal.fit import make_design
from scvi_perturb.model.causal.metadata import CausalMetadata
from scvi_perturb.model.latent.model import loadings
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.module.causal import CausalConfig, CausalModule, GroupedAutoencoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.model.base.draw import LibrarySize

__all__ = ["CausalPerturbVAE"]


class CausalPerturbVAE(CausalMetadata):
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
        seed: int = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry, features)
        config, screen = causal or CausalConfig(), self._screen
        if screen.real_values:  # a signature is of a population, all of which responds
            config = replace(config, responders=False)
        kind = likelihood or ("normal" if screen.real_values else "nb")
        check_choice("dispersion", dispersion, ("gene", "gene-cell"))
        if screen.real_values and kind != "normal":
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
            self._units = "as given" if screen.real_values else "log1p(counts per 10,000)"
        self.trained_pairs_: list[tuple[int, int]] = []
        self.active_units_ = None
        self.identity_spread_: dict[str, np.ndarray] = {}
        self._model_summary_string = (
            f"{type(self).__name__}: {len(screen.genes)} genes, {len(screen.table)} conditions, "
            f"{len(screen.contexts)} contexts, identity {config.n_identity}, state "
            f"{config.n_state}, technical {config.n_technical} and depth, likelihood {kind!r}"
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def causal(self) -> CausalConfig:
        """What was chosen of groups, priors and weights."""
        return self._network.config

    def sample(  # type: ignore[override]  # one pass: there is no sampler to choose
        self,
        conditions: Sequence[str] | pd.DataFrame | None = None,
        *,
        metadata: pd.DataFrame | None = None,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 500,
        seed: int | None = 0,
        library_size: LibrarySize = "reference",
        conditioning: Sequence[str] = CONDITIONING,
        path: str | Path | None = None,
    ) -> AnnData:
        """Draw cells under conditions from reference cells, or from metadata alone.

        Parameters
        ----------
        conditions, reference, n_samples, seed, path
            As for :meth:`PerturbDiffusion.sample`.
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

        Returns
        -------
        AnnData
            One row a cell, as from :meth:`PerturbDiffusion.sample`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`PerturbDiffusion.sample`; also when both or none of conditions and
            metadata are given.
        ValueError
            For a group that there is not.
        """
        kept = check_conditioning(conditioning)
        if (conditions is None) == (metadata is None) or (
            metadata is not None and reference is not None
        ):
            msg = "Ask with `conditions` (and `reference`), or with `metadata`: one of the two."
            raise SchemaError(msg)
        if metadata is None and self._screen.real_values:
            msg = "Signatures have no control cells to start from; draw with `metadata=`."
            raise SchemaError(msg)
        if metadata is not None:
            return self._sample_metadata(
                metadata, n_samples=n_samples, seed=seed, library_size=library_size, path=path
            )
        request, cells = self._ask(conditions, reference)  # type: ignore[arg-type]
        plan = Plan.make(request, cells, n_samples, seed)
        drawn = self._draw(
            request, cells, plan, seed=seed, library_size=library_size, conditioning=kept
        )
        return write_cells(
            drawn,
            obs=cell_obs(plan, request, cells, self._screen),
            screen=self._screen,
            likelihood=self._network.likelihood,
            uns=self._one_pass(seed, self._units, library_size=str(library_size)),
            seed=seed,
            path=path,
        )

    def predict(  # type: ignore[override]
        self,
        conditions: Sequence[str] | pd.DataFrame,
        *,
        reference: AnnData | MuData | None = None,
        interval: float = 0.9,
        n_samples: int | None = 500,
        seed: int | None = 0,
        conditioning: Sequence[str] = CONDITIONING,
    ) -> AnnData:
        """Predict the mean profile and the effect of conditions, with intervals.

        Parameters
        ----------
        conditions, reference, n_samples, seed, conditioning
            As for :meth:`sample`.
        interval
            Coverage aimed at, between 0 and 1.

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
        check_interval(interval)
        kept = check_conditioning(conditioning)
        if self._screen.real_values:
            if reference is not None:
                msg = "Signatures are predicted from their metadata; leave `reference` out."
                raise SchemaError(msg)
            return self._predict_signatures(conditions, interval=interval, seed=seed)
        request, cells = self._ask(conditions, reference)
        plan = Plan.make(request, cells, n_samples, seed)
        drawn = self._draw(request, cells, plan, seed=seed, conditioning=kept)
        result = self._effects(drawn, (request, cells, plan), interval=interval, seed=seed)
        result.uns = self._one_pass(seed, "log1p(counts per 10,000)")
        return result

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
            latent = getattr(self._groups(torch.from_numpy(latent)), group).numpy()
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
        network = self._network
        if network.decoder.linear is not None:
            msg = "Loadings exist for decoder='linear' only; this model has another decoder."
            raise ValueError(msg)
        names = latent_names(network.sizes)
        coded = [name for name in names if name != "depth"]
        table = loadings(network.decoder, self._screen.genes, coded)
        return table.reindex(columns=names, fill_value=0.0)
