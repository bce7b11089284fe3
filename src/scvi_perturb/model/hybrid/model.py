"""`HybridResidualModel`: a mean that regression cannot beat, a distribution around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from anndata import AnnData

from scvi_perturb._checks import check_choice, check_type, checked
from scvi_perturb._core import drawn_seed
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.docs import docs
from scvi_perturb.model.base.draw import effects_adata
from scvi_perturb.model.base.training import all_or_nothing
from scvi_perturb.model.hybrid.confidence import with_confidence
from scvi_perturb.model.hybrid.recentred import N_ROWS, RecentredModel, RequestGroups
from scvi_perturb.model.hybrid.stack import fit_own_mean, fit_stack
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.module.diffusion import DiffusionConfig
from scvi_perturb.module.generator import GeneratorConfig
from scvi_perturb.predictors.external import ExternalMeans
from scvi_perturb.train.runner import one_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from mudata import MuData

    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.generative.samplers import SamplerName
    from scvi_perturb.model.hybrid.confidence import Confidence
    from scvi_perturb.predictors.request import Predictor
    from scvi_perturb.predictors.stack.scenarios import AnsweredScenario
    from scvi_perturb.predictors.stack.stacked_mean import StackedMean
    from scvi_perturb.train.plan import TrainConfig

_GENERATORS: Final = (
    "Pass DiffusionConfig(...), FlowConfig(...), or the configuration of your own generator."
)


@dataclass(slots=True)
class _Asked:
    """What was asked, noted while means are predicted: of each group, and of each row."""

    scenario: list[AnsweredScenario] = field(default_factory=list)
    novelty: list[np.ndarray] = field(default_factory=list)
    row_scenario: list[str] = field(default_factory=list)
    row_novelty: list[np.ndarray] = field(default_factory=list)


@checked
@docs.dedent
class HybridResidualModel(RecentredModel):
    """Predict the mean by what predicts means best, and draw the distribution around it.

    * Stage one, a stack of a Gaussian process over conditions, trivial predictors and the
      generator's own mean, weighed by how well each did in the same scenario on training
      (`mean_weights_`), predicts the change of the mean profile, with conformal intervals
      (`calibration_`). Or your own: any predictor, or a table of somebody's predictions.
    * Stage two, the generator of :class:`PerturbDiffusion` or :class:`PerturbFlow`, draws cells;
      each gene of a population gets one factor, so that its mean is that of stage one and its
      shape is the generator's.
    * Counts out. The requests are those of :class:`PerturbDiffusion`.

    Parameters
    ----------
    %(init_adata)s
    mean
        Stage one, in which the generator then has no part; None for the stack. A predictor is
        fitted by :meth:`train`. A table (AnnData) has a row a condition: see
        :class:`scvi_perturb.predictors.ExternalMeans`.
    n_refits
        How often :meth:`train` trains the generator again without a part of the conditions, to
        learn its weight in the stack for each scenario of the split; each costs about as much as
        the training. 0 gives it and the predictors equal parts.
    %(init_stage_one)s
    likelihood
        `"nb"`, `"zinb"`, `"poisson"`; `"normal"` for `log1p` counts per ten thousand, which suits
        bulk samples of deep sequencing: samples are then such values and not counts.
    generator
        Configuration of stage two: a :class:`~scvi_perturb.module.DiffusionConfig`, a
        :class:`~scvi_perturb.module.FlowConfig` or another
        :class:`~scvi_perturb.module.GeneratorConfig`; None for the diffusion's defaults.
    %(init_rest)s

    Attributes
    ----------
    mean_
        Stage one after training, a :class:`scvi_perturb.predictors.StackedMean`.
    mean_weights_
        Weights of its members, a row for each scenario that was tried in training. Without refits
        the generator is not among them; half of the change is then its own.
    calibration_
        How well these members did in each scenario there, and how intervals cover; made when it is
        first asked for.

    Examples
    --------
    >>> import scvi_perturb as svp
    >>> adata = svp.data.simulate_screen(seed=0)
    >>> svp.model.HybridResidualModel.setup_anndata(adata, context_keys=["cell_type"])
    >>> model = svp.model.HybridResidualModel(adata)
    >>> model.train()
    >>> sure = model.predict_with_confidence(["pert_01+pert_02"], level=0.9)

    References
    ----------
    Rasmussen and Williams 2006 (Gaussian processes); Breiman 1996 (stacked regressions); Barber et
    al. 2021 (jackknife+); and those of :class:`PerturbDiffusion`.
    """

    def __init__(  # noqa: PLR0913 - flat, as scvi-tools' models and its tuning take them
        self,
        adata: AnnData | MuData | None = None,
        *,
        mean: Predictor | AnnData | None = None,
        n_refits: int = 0,
        n_latent: int = 32,
        n_hidden: int = 128,
        n_layers: int = 2,
        likelihood: Literal["nb", "zinb", "poisson", "normal"] = "nb",
        dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene",
        generator: GeneratorConfig | None = None,
        features: PerturbationFeatures | None = None,
        seed: int | None = 0,
        registry: dict[str, Any] | None = None,
    ) -> None:
        stage_two = DiffusionConfig() if generator is None else generator
        check_type("generator", stage_two, GeneratorConfig, _GENERATORS)
        check_choice("likelihood", likelihood, ("nb", "zinb", "poisson", "normal"))
        super().__init__(adata, registry, features)
        stage_one = AutoencoderConfig(n_latent, n_hidden, n_layers, likelihood, dispersion)
        self._build(stage_one, stage_two, seed=seed)
        if isinstance(mean, AnnData):
            mean = ExternalMeans(mean)  # which is saved; scvi-tools leaves out arguments with data
        self.mean = mean
        self.n_refits = n_refits
        self.mean_: StackedMean | None = None
        self.mean_weights_: pd.DataFrame | None = None
        self.init_params_ = self._get_init_params(locals())

    @one_training
    @all_or_nothing
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
        """Train the generator, and fit stage one.

        The parameters, and what is raised, are those of :meth:`PerturbDiffusion.train`. The kind of
        `split` tells stage one which scenario to prepare for; others are answered as well, without
        refits of the generator.
        """
        seed = drawn_seed(seed)
        self._reader(None)  # raises where there are no data
        adata, own = self._plain_adata(), None
        if self.mean is not None:  # first, since it may be refused
            own = fit_own_mean(self, self.mean, adata, split, seed=seed)
        self.mean_ = None
        self.__dict__.pop("calibration_", None)
        super().train(
            max_epochs,
            split=split,
            n_steps=n_steps,
            batch_size=batch_size,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            config=config,
            **trainer_kwargs,
        )
        self.mean_ = own or fit_stack(
            self,
            adata,
            self._split_cells(split, adata.n_obs, seed),
            split=split,
            n_refits=self.n_refits,
            refit_options={
                "max_epochs": max_epochs, "n_steps": self.n_steps_, "batch_size": batch_size,
                "seed": seed, "config": config, **trainer_kwargs,
            },
        )  # fmt: skip
        self.mean_weights_ = self.mean_.weights_

    @cached_property
    def calibration_(self) -> pd.DataFrame | None:
        """How well members did in each scenario of training, made when it is first asked for."""
        if self.mean_ is None or self.mean_weights_ is None:
            return None
        # others may have been asked since
        return self.mean_.calibration_.loc[self.mean_weights_.index]

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
            As for :meth:`sample`; cells are drawn for the generator's part of the mean alone.
        interval
            Coverage aimed at, between 0 and 1.
        path
            File to stream to (`.h5ad`), 64 rows at a time; the result is returned backed.

        Returns
        -------
        AnnData
            As of :meth:`PerturbDiffusion.predict`, but that intervals and `std` hold what stage one
            does not know, calibrated on conditions left out of training. Where none could be, and
            for what was measured, they are those that the Gaussian process states; without one they
            are NaN. `obs["scenario"]` says how a row is new. `obs["novelty"]` is that of `mean_`:
            the posterior by the prior variance of its Gaussian process, 0 where the same was
            measured without noise to 1 where nothing is known, averaged over the contexts of the
            reference cells. Each scenario has its own process: compare rows of one scenario.
            A mean of your own that holds no such regression states none; the novelty is then that
            of :meth:`PerturbDiffusion.predict`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.

        Warns
        -----
        UserWarning
            Where the request lies outside what calibration covers.
        """
        config = SamplerConfig.of(sampler, self._samplers)
        plan = self._plan(conditions, reference, n_samples, seed)
        groups = RequestGroups.make(plan, self._screen)
        asked = _Asked()
        return effects_adata(
            self._mean_blocks(groups, asked, interval=interval, seed=seed, sampler=config),
            plan.request,
            self._screen,
            n_cells=np.bincount(plan.row),
            annotate=lambda: self._annotation(groups, asked),
            uns=self._provenance(config, seed, "log1p(counts per 10,000)"),
            path=path,
            inputs=(self.adata, reference),
        )

    def _mean_blocks(
        self,
        groups: RequestGroups,
        asked: _Asked,
        *,
        interval: float,
        seed: int | None,
        sampler: SamplerConfig,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the means of some rows at a time, and note what they were asked as."""
        own, library = None, groups.library
        if self.mean is None:
            own = self._own_shares(groups, sampler=sampler, seed=seed)
        given = groups.given(self._stack().profiles)
        for chosen in groups.blocks(N_ROWS):
            shares = None if own is None else np.stack(list(islice(own, len(chosen))))
            means = self._means(groups, chosen, shares, given=given, interval=interval)
            rows = means.by_row(groups.row[chosen], library[chosen])
            asked.scenario += means.answer.scenario
            asked.novelty.append(means.answer.novelty)
            asked.row_scenario += rows.scenario
            asked.row_novelty.append(rows.novelty)
            yield {
                "X": rows.profile,
                "lfc": rows.effect,
                "lower": rows.lower,
                "upper": rows.upper,
                "std": rows.std,
            }

    def _annotation(self, groups: RequestGroups, asked: _Asked) -> dict[str, Any]:
        """Return what `obs` says of each row, and warn of what calibration does not cover."""
        self._warn_outside(groups, asked.scenario, np.concatenate(asked.novelty))
        places = groups.plan.places(self._screen.keys.context)
        found = self._annotations(*places, np.concatenate(asked.row_novelty))
        return {"scenario": asked.row_scenario} | found

    def predict_mean(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        *,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 500,
        seed: int | None = 0,
    ) -> AnnData:
        """Predict the mean alone: as :meth:`predict`, without intervals.

        Parameters
        ----------
        conditions, reference, n_samples, seed
            As for :meth:`predict`.

        Returns
        -------
        AnnData
            One row a condition: `X`, `layers["lfc"]`, and `obs` as of :meth:`predict`.
        """
        made = self.predict(conditions, reference=reference, n_samples=n_samples, seed=seed)
        for layer in ("std", "lower", "upper"):
            del made.layers[layer]
        return made

    def predict_with_confidence(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        *,
        level: float = 0.9,
        n_samples: int | None = None,
        reference: AnnData | MuData | None = None,
        seed: int | None = 0,
    ) -> Confidence:
        """Predict effects with intervals and, asked for, cells with theirs.

        Two levels that are not to be mixed: how sure the *mean change* is, and where a *new cell*
        will fall.

        Parameters
        ----------
        conditions, reference, seed
            As for :meth:`sample`.
        level
            Coverage, between 0 and 1.
        n_samples
            Cells a condition to be sampled; None for effects alone.

        Returns
        -------
        Confidence
            Tables `(n_conditions, n_genes)`: `mean`, `std`, `lower`, `upper` of the effect, and
            with cells `cell_lower`, `cell_upper` and `cells`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError, ValueError
            As for :meth:`predict`.
        """
        effects = self.predict(conditions, reference=reference, interval=level, seed=seed)
        cells = None
        if n_samples is not None:
            cells = self.sample(conditions, reference=reference, n_samples=n_samples, seed=seed)
        return with_confidence(effects, cells, level)
