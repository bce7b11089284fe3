"""One call of `train` of latent groups: start, optimise, and fit operators of what was not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.model._additive import fit_additive
from scvi_perturb.model._causal_heads import fit_heads
from scvi_perturb.model._causal_start import control_centred, find_start, level_effects
from scvi_perturb.model._epochs import mean_proportions, n_batches, representation_stage
from scvi_perturb.model._latents import encode_cells
from scvi_perturb.model._vocabulary import reference_doses, to_tensors
from scvi_perturb.train import fit_stage

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.model._additive import AdditiveFit
    from scvi_perturb.model._causal_start import Start
    from scvi_perturb.model._causal_training import CausalTraining
    from scvi_perturb.model._trained_on import Parts
    from scvi_perturb.module import GroupedAutoencoder
    from scvi_perturb.nn import GroupPrior
    from scvi_perturb.train import TrainConfig

__all__ = ["CausalFit"]

#: A latent is active if its mean varies by more than this between cells (Burda et al. 2016).
ACTIVE = 0.01


@dataclass(slots=True)
class CausalFit:
    """What the steps of one training share.

    Attributes
    ----------
    model, reader, parts, config
        The model, its cells, which of them to use, and how.
    trainer_kwargs
        For the Trainer.
    folder
        Where the state of the run is written, or None.
    """

    model: CausalTraining
    reader: ScreenReader
    parts: Parts
    config: TrainConfig
    trainer_kwargs: dict[str, Any]
    folder: Path | None

    @property
    def module(self) -> GroupedAutoencoder:
        """The module to train."""
        return self.model.module.representation

    def prepare(self, *, seed: int) -> None:
        """Tell the module what training holds; the first time, find where it starts."""
        module, train, device = self.module, self.parts.train, self.model._device()
        columns = {**self.reader.codes, **self.reader.metadata}
        fields = module.fields(
            {k: torch.from_numpy(v[train]).to(device) for k, v in columns.items()}
        )
        for prior in (module.identity_prior, module.technical_prior):
            prior.metadata.prepare(fields)
        codes = self.reader.codes[CONDITION_KEY]
        table = self.model._screen.table
        present = np.unique(codes[train])
        used = {(p.name, p.kind) for c in present for p in table.conditions[c].components}
        seen = torch.tensor([pair in used for pair in table.components], dtype=torch.bool)
        module.seen.zero_()
        module.seen[: len(seen)] = seen.to(device)
        times = [t for c in present if (t := table.conditions[c].time) is not None]
        module.operators.reference_time.fill_(max(times, default=1.0) or 1.0)
        module.operators.reference_dose.copy_(self._doses().to(device))
        module.n_cells.fill_(float(len(train)))
        if self.model.is_trained_:
            return
        if not module.real_values:
            depth = np.log(np.maximum(self.reader.library_sizes()[train], 1.0))
            moments = [float(depth.mean()), max(float(depth.std()), 1e-3)]
            module.depth_moments.copy_(torch.tensor(moments))
        self._start(seed=seed)

    def optimise(self, max_epochs: int | None, *, batch_size: int, seed: int) -> None:
        """Train on counts."""
        n_in_epoch = n_batches(len(self.parts.train), batch_size, self.trainer_kwargs)
        stage = representation_stage(
            self.module,
            self.reader,
            self.parts,
            self.config,
            max_epochs=max_epochs,
            batches=(batch_size, n_in_epoch),
            seed=seed,
        )
        # Draws are from priors: the divergence has its weight before a short training ends.
        plan = stage.plan
        warmup = min(plan.n_steps_kl_warmup, (plan.n_steps or 2) // 2)
        weight = 1.0 if plan.max_kl_weight is None else plan.max_kl_weight
        plan = replace(plan, n_steps_kl_warmup=warmup, max_kl_weight=weight)
        stage = replace(stage, plan=plan)
        fit_stage(
            self.model,
            stage,
            trainer_kwargs=self.trainer_kwargs,
            checkpoint_dir=self.folder,
            every_n_epochs=self.config.checkpoint_every_n_epochs,
        )
        self.model.module.eval()

    def finish(self, *, seed: int) -> None:
        """Look at the latents of the training cells; give operators to what was not seen."""
        module, train = self.module, self.parts.train
        mean, log_variance = encode_cells(
            module, lambda i: self.reader[train[i]], len(train), self.model._device()
        )
        self.model._remember_activity(mean.var(0).numpy() > ACTIVE)
        codes = {k: self.reader.codes[k][train] for k in (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)}
        self.model._remember_spread(mean, codes)
        columns = {**codes, **{k: v[train] for k, v in self.reader.metadata.items()}}
        device = self.model._device()
        fields = module.fields({k: torch.from_numpy(v).to(device) for k, v in columns.items()})
        fit_heads(
            self.model.module,
            (mean, log_variance),
            {k: v.cpu() for k, v in fields.items()},
            torch.from_numpy(codes[CONDITION_KEY]),
            seed=seed,
        )
        fit = self._operators(module.groups(mean).state.numpy(), codes)
        if fit is None or bool(module.seen.all()):
            return
        seen = module.seen.cpu()
        with torch.no_grad():
            learned = module.operators.vectors.cpu()
            # Of the cells that respond: the regression is one of all.
            size = fit.vectors[seen].square().sum().clamp_min(1e-9)
            factor = ((learned[seen] * fit.vectors[seen]).sum() / size).clamp(0.0, 3.0)
            filled = torch.where(seen[:, None], learned, factor * fit.vectors)
            module.operators.set_vectors(filled)
            for name in ("log_ec50", "log_slope", "log_tau"):
                curve = getattr(module.operators, name)
                curve[~module.seen] = curve[module.seen].mean()

    def _start(self, *, seed: int) -> None:
        """Start the module's linear parts, priors and operators at what a regression says."""
        start = find_start(self.module, self.reader, self.parts.train, seed=seed)
        module, codes = self.module, {k: v[start.rows] for k, v in self.reader.codes.items()}
        device = self.model._device()
        profile = torch.from_numpy(start.profile)
        with torch.no_grad():
            module.profile.copy_(profile)
            module.initialise(self._mean_profile(profile).to(device))
            first = dict(zip(("identity", "state", "technical"), _places(module), strict=True))
            for name, place in first.items():
                encoder, decoder = start.encoder[name], start.decoder[name]
                own = slice(place, place + encoder.shape[1])
                n_genes = module.n_genes
                weight = torch.from_numpy(encoder.T.astype(np.float32))
                weight = weight / module.encoder.linear_scale
                module.linear_encoder.weight[own, :n_genes] = weight.to(device)
                weight = torch.from_numpy(decoder.astype(np.float32))
                module.linear_decoder.weight[:n_genes, own] = weight.to(device)
            self._start_priors(start)
            fit = self._operators(start.scores["state"], codes)
            if fit is not None:
                module.operators.set_vectors(fit.vectors)
                module.operators.log_ec50.fill_(fit.log_ec50)
                module.operators.log_slope.fill_(fit.log_slope)

    def _start_priors(self, start: Start) -> None:
        """Start the vectors of labels at their effects on the scores of their group."""
        module, columns = self.module, {**self.reader.codes, **self.reader.metadata}
        device = self.model._device()
        rows = {k: torch.from_numpy(v[start.rows]).to(device) for k, v in columns.items()}
        fields = {k: v.cpu() for k, v in module.fields(rows).items()}
        groups: dict[str, GroupPrior] = {
            "identity": module.identity_prior,
            "technical": module.technical_prior,
        }
        for name, prior in groups.items():
            scores = start.scores[name]
            n = scores.shape[1]
            specs = [(i, s) for i, s in enumerate(prior.metadata.specs) if not s.is_numeric]
            if n == 0 or not specs:
                continue
            effects = level_effects(scores, [fields[s.name].numpy() for _, s in specs])
            for (i, _), effect in zip(specs, effects, strict=True):
                weight = cast("torch.Tensor", prior.metadata.embeddings[str(i)].weight)
                weight[: len(effect), :n] = torch.from_numpy(effect).to(weight)

    def _operators(self, state: np.ndarray, codes: dict[str, np.ndarray]) -> AdditiveFit | None:
        """Fit operators to the states of cells; None without a perturbed cell."""
        moved, treated = control_centred(state, codes)
        if len(treated) == 0 or state.shape[1] == 0:
            return None
        return fit_additive(
            torch.from_numpy(np.ascontiguousarray(moved)),
            codes[CONDITION_KEY][treated],
            to_tensors(self.model._screen.table.arrays()),
            self._doses(),
            self.model._vocabulary.feature_tensors(),
        )

    def _doses(self) -> torch.Tensor:
        present = np.unique(self.reader.codes[CONDITION_KEY][self.parts.train])
        n_ids = self.module.operators.n_components
        return reference_doses(self.model._screen.table, present, n_ids)

    def _mean_profile(self, profile: torch.Tensor) -> torch.Tensor:
        """Return the mean share of each gene of the library; of real values their mean."""
        if self.module.real_values:
            return profile
        return mean_proportions(self.reader, self.parts.train)


def _places(module: GroupedAutoencoder) -> tuple[int, int, int]:
    """Return where each group begins among what is encoded."""
    n_identity, n_state, _ = module.sizes
    return 0, n_identity, n_identity + n_state
