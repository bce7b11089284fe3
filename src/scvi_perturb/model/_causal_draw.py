"""Draw cells of latent groups: each group kept from the reference, or drawn from its prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import torch

from scvi_perturb._constants import BATCH_KEY, CONTEXT_KEY, LIBRARY_KEY, METADATA_PREFIX
from scvi_perturb._random import generator
from scvi_perturb.data import Condition
from scvi_perturb.model._causal_anchor import reference_factors
from scvi_perturb.model._causal_training import CausalTraining
from scvi_perturb.model._draw import Drawn, DrawOptions, expected_proportions
from scvi_perturb.model._hybrid_draw import moved
from scvi_perturb.model._latents import chunks, encode_cells
from scvi_perturb.module import ConditionTensors, Groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb._typing import Batch
    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.model._draw import LibrarySize
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan
    from scvi_perturb.module import GroupedAutoencoder

__all__ = ["CONDITIONING", "GROUPS", "CausalDraw", "Latents", "check_conditioning"]

GROUPS: Final = ("identity", "state", "technical")
#: What is kept from the reference by default; the state is drawn.
CONDITIONING: Final = ("identity", "technical")


@dataclass(frozen=True, slots=True)
class Latents:
    """Posterior of the latents of cells, `(n, n_latent)` each, and their metadata."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    fields: dict[str, torch.Tensor]

    def draw(self, rows: np.ndarray, random: torch.Generator) -> torch.Tensor:
        """Draw a latent of each of some cells, on the generator's device."""
        shape = (len(rows), self.mean.shape[1])
        return self.at(rows, torch.randn(shape, generator=random, device=random.device))

    def at(self, rows: np.ndarray, noise: torch.Tensor) -> torch.Tensor:
        """Return latents of some cells, so many standard deviations from their means."""
        at = torch.from_numpy(rows)
        spread = (0.5 * self.log_variance[at]).exp().to(noise.device)
        return self.mean[at].to(noise.device) + spread * noise

    def fields_of(self, rows: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the metadata of some cells."""
        at = torch.from_numpy(rows)
        return {name: values[at].to(device) for name, values in self.fields.items()}


def check_conditioning(conditioning: Sequence[str]) -> tuple[str, ...]:
    """Return groups to be kept, checked.

    Raises
    ------
    ValueError
        For a group that there is not.
    """
    kept = (conditioning,) if isinstance(conditioning, str) else tuple(conditioning)
    wrong = sorted(set(kept) - set(GROUPS))
    if wrong:
        msg = f"conditioning={kept} has {wrong}; choose among {', '.join(map(repr, GROUPS))}."
        raise ValueError(msg)
    return kept


class CausalDraw(CausalTraining):
    """Draws of models of latent groups."""

    @property
    def _network(self) -> GroupedAutoencoder:
        return self.module.representation

    def _seen(self) -> np.ndarray:
        seen: np.ndarray = self._network.seen.cpu().numpy()
        return seen

    def _seen_batch(self) -> np.ndarray:
        network = self._network
        if not network.columns["technical"] or network.batch_levels.shape[1] == 0:
            return np.ones(len(self._screen.batches), dtype=bool)
        seen = cast("torch.Tensor", network.technical_prior.metadata.seen_0)
        batches: np.ndarray = seen[network.batch_levels[:, 0]].cpu().numpy()
        return batches

    def _draw(
        self,
        request: Request,
        cells: Reference,
        plan: Plan,
        *,
        sampler: SamplerConfig | None = None,
        seed: int | None,
        library_size: LibrarySize = "reference",
        conditioning: tuple[str, ...] = CONDITIONING,
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, chunk by chunk."""
        del sampler
        self.module.eval()
        device = self._device()
        random = generator(seed, device)
        conditions = self._condition_tensors(request.conditions)
        options = DrawOptions.make(
            request,
            self._screen,
            library_size=library_size,
            shifts=self.library_shifts_,
            seen_batch=self._seen_batch(),
            population=False,
        )
        used, place = np.unique(plan.reference, return_inverse=True)
        latents = self._latents_of(cells, used)
        group, factors = self._anchored(cells, used, latents, conditioning, seed)
        for chunk in chunks(len(plan)):
            rows = conditions.rows(torch.from_numpy(plan.row[chunk]).to(device))
            batch = None if options.batch is None else options.batch[plan.row[chunk]]
            with torch.inference_mode():
                latent = self._moved(latents, place[chunk], rows, batch, conditioning, random)
                library = self._library(cells, plan, chunk, options).to(device)
                drawn = Drawn(chunk, library, self._network.decode(latent, library, None, rows))
            yield moved(
                drawn,
                factors[group[place[chunk]]],
                self._network.likelihood,
                partial=self._screen.library_key is not None,
            )

    def _anchored(
        self,
        cells: Reference,
        used: np.ndarray,
        latents: Latents,
        conditioning: tuple[str, ...],
        seed: int | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the group of each reference cell used, and the factors of genes of each group."""
        codes = np.stack([cells.context[used], cells.batch[used]], axis=1)
        _, group = np.unique(codes, axis=0, return_inverse=True)
        group = group.reshape(-1)
        random = generator(seed, self._device())
        control = self._condition_tensors([Condition()])

        def parts() -> Iterator[tuple[np.ndarray, Batch, torch.Tensor]]:
            for rows in chunks(len(used)):
                batch = cells.read(used[rows])
                at = torch.zeros(len(rows), dtype=torch.long, device=self._device())
                with torch.inference_mode():
                    own = self._moved(latents, rows, control.rows(at), None, conditioning, random)
                    size = batch[LIBRARY_KEY].to(self._device())
                    parameters = self._network.decode(own, size, None, None)
                drawn = Drawn(rows, size, parameters)
                share = expected_proportions(drawn, self._network.likelihood)
                yield group[rows], batch, torch.from_numpy(share)

        found = reference_factors(parts(), self._network.n_genes)
        return group, np.stack([found[i] for i in range(len(found))])

    def _moved(
        self,
        latents: Latents,
        place: np.ndarray,
        conditions: ConditionTensors,
        batch: np.ndarray | None,
        conditioning: tuple[str, ...],
        random: torch.Generator,
    ) -> torch.Tensor:
        """Return latents under conditions, `(n, n_latent)`.

        `batch` has the code of the batch asked for, -1 for a cell's own; None asks for none.
        """
        network, n, device = self._network, len(place), random.device
        own = network.groups(latents.draw(place, random))
        fields = latents.fields_of(place, device)
        identity, technical = own.identity, own.technical
        if "identity" not in conditioning:
            identity = network.identity_prior.draw(fields, n, random)
        other = torch.zeros(n, dtype=torch.bool, device=device)
        if batch is not None:
            asked = torch.from_numpy(batch).to(device)
            other = asked >= 0
            (name,) = network.columns["technical"][:1]
            levels = network.batch_levels[asked.clamp_min(0), 0]
            fields = fields | {name: torch.where(other, levels, fields[name])}
        if "technical" not in conditioning:
            other = torch.ones_like(other)
        if bool(other.any()):
            drawn = network.technical_prior.draw(fields, n, random)
            drawn = torch.cat([technical[:, :1], drawn], dim=1)
            technical = torch.where(other[:, None], drawn, technical)
        basal = own.state
        if "state" not in conditioning:
            basal = torch.randn(basal.shape, generator=random, device=device)
        state = basal + self._response(conditions, identity, random)
        return torch.cat([identity, state, technical], dim=1)

    def _response(
        self, conditions: ConditionTensors, identity: torch.Tensor, random: torch.Generator
    ) -> torch.Tensor:
        """Return the shift of each cell's state, 0 for those drawn not to respond."""
        odds = self._network.log_odds(conditions)
        responds = torch.rand(odds.shape, generator=random, device=odds.device) < odds.sigmoid()
        return self._network.shift(conditions, identity) * responds[:, None]

    def _condition_tensors(self, conditions: Sequence[Condition]) -> ConditionTensors:
        tensors = self._vocabulary.tensors(conditions, self._seen())
        return ConditionTensors(*(t.to(self._device()) for t in tensors))

    def _latents_of(self, cells: Reference, used: np.ndarray) -> Latents:
        """Encode reference cells `used`; metadata beyond context and batch are missing."""
        mean, log_variance = encode_cells(
            self._network, lambda rows: cells.read(used[rows]), len(used), self._device()
        )
        tensors = {
            CONTEXT_KEY: torch.from_numpy(cells.context[used]),
            BATCH_KEY: torch.from_numpy(cells.batch[used]),
        }
        return Latents(mean, log_variance, self._fields_of(tensors))

    def _fields_of(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the metadata of cells, on the CPU; columns that are not there are missing."""
        n = len(tensors[CONTEXT_KEY])
        tensors = dict(tensors)
        for column in self._screen.metadata:
            missing = torch.full((n,), torch.nan)
            if column.levels is not None:
                missing = torch.full((n,), -1, dtype=torch.long)
            tensors.setdefault(METADATA_PREFIX + column.name, missing)
        device = self._device()
        fields = self._network.fields({k: v.to(device) for k, v in tensors.items()})
        return {k: v.cpu() for k, v in fields.items()}

    def _library(
        self, cells: Reference, plan: Plan, chunk: np.ndarray, options: DrawOptions
    ) -> torch.Tensor:
        library = np.asarray(cells.library[plan.reference[chunk]], dtype=np.float32)
        if options.library_factor is not None:
            library = library * options.library_factor[plan.row[chunk]].astype(np.float32)
        if options.library_size is not None:
            library = np.full(len(chunk), options.library_size, dtype=np.float32)
        return torch.from_numpy(library)

    def _groups(self, latent: torch.Tensor) -> Groups:
        return self._network.groups(latent)
