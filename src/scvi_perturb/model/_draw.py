"""Draw cells: latents of the reference, latents under conditions, then counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb._errors import SchemaError
from scvi_perturb._random import generator
from scvi_perturb.data import CsrFileWriter
from scvi_perturb.generative import sample_counts
from scvi_perturb.model._latents import chunks, encode_cells
from scvi_perturb.model._library import library_shift
from scvi_perturb.model._populations import means_of_own
from scvi_perturb.model._result import cells_adata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from anndata import AnnData

    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan
    from scvi_perturb.model._screen import Screen
    from scvi_perturb.module import ConditionTensors, CountParameters, Representation

__all__ = [
    "DrawOptions",
    "Drawn",
    "batch_codes",
    "draw_cells",
    "draw_matrix",
    "expected_proportions",
    "write_cells",
]


LibrarySize = float | Literal["reference", "predicted"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chunk of drawn cells: entries `cells` of the plan, their library, their distribution."""

    cells: np.ndarray
    library: torch.Tensor
    parameters: CountParameters


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """What a request sets beside the condition.

    Attributes
    ----------
    batch
        Batch code of each row of the request; None, and -1, take the reference cell's.
    library_size
        Total counts of every cell; None takes the reference cell's.
    library_factor
        Factor of each row of the request on the reference cell's library size, or None.
    population
        Whether the mean of the reference cells of a context and batch is the reference of each.
    """

    batch: np.ndarray | None = None
    library_size: float | None = None
    library_factor: np.ndarray | None = None
    population: bool = False

    @classmethod
    def make(
        cls,
        request: Request,
        screen: Screen,
        *,
        library_size: LibrarySize,
        shifts: dict[int, float],
        seen_batch: np.ndarray,
        population: bool,
    ) -> DrawOptions:
        """Make options precise.

        Raises
        ------
        SchemaError
            When a batch asked for was not trained on.
        ValueError
            When `library_size` is neither a legal word nor a positive number.
        """
        factor, number = None, None
        if library_size == "predicted":
            changes = [library_shift(c, shifts, screen.table) for c in request.conditions]
            factor = np.exp(changes)
        elif library_size != "reference":
            if not isinstance(library_size, int | float) or not library_size > 0:
                msg = (
                    f"library_size={library_size!r} is not known; pass 'reference', 'predicted' or "
                    "a positive number of counts."
                )
                raise ValueError(msg)
            number = float(library_size)
        return cls(batch_codes(request, screen, seen_batch), number, factor, population)


def batch_codes(request: Request, screen: Screen, seen: np.ndarray) -> np.ndarray | None:
    """Return the code of the batch that each row asks for."""
    if request.batch is None:
        return None
    codes = {labels[0]: code for code, labels in enumerate(screen.batches) if seen[code]}
    unknown = sorted(set(request.batch) - {*codes, ""})
    if unknown:
        msg = f"Batches {unknown} were not trained on; the model knows {sorted(codes)}."
        raise SchemaError(msg)
    return np.array([codes.get(label, -1) for label in request.batch], dtype=np.int64)


def draw_cells(
    representation: Representation,
    draw_latents: Callable[..., torch.Tensor],
    *,
    conditions: ConditionTensors,
    cells: Reference,
    plan: Plan,
    options: DrawOptions,
    random: torch.Generator,
) -> Iterator[Drawn]:
    """Yield drawn cells in the order of the plan, in chunks of bounded size.

    Parameters
    ----------
    representation
        Stage one.
    draw_latents
        `(conditions, which, reference, context) -> latents`.
    conditions
        Conditions of the request's rows, on the module's device.
    cells
        Reference cells; each that is used is encoded once.
    plan
        Which cell starts from which.
    options
        Batch and library size.
    random
        Source of all draws, on the module's device.
    """
    device = conditions.component.device
    # The mean of a population is that of all its cells, however few are drawn from it.
    wanted = np.arange(len(cells)) if options.population else plan.reference
    used, place = np.unique(wanted, return_inverse=True)
    mean, log_variance = encode_cells(
        representation, lambda rows: cells.read(used[rows]), len(used), device
    )
    centre = means_of_own(cells, mean)[plan.reference] if options.population else None
    for chunk in chunks(len(plan)):
        row, which = plan.row[chunk], torch.from_numpy(plan.row[chunk]).to(device)
        if centre is None:
            spread = (0.5 * log_variance[place[chunk]]).exp().to(device)
            noise = torch.randn(spread.shape, generator=random, device=device)
            reference = mean[place[chunk]].to(device) + spread * noise
        else:
            reference = centre[chunk].to(device)
        context = torch.from_numpy(cells.context[plan.reference[chunk]]).to(device)
        latent = draw_latents(conditions, which, reference, context)
        library = np.asarray(cells.library[plan.reference[chunk]], dtype=np.float32)
        if options.library_factor is not None:
            library = library * options.library_factor[row].astype(np.float32)
        if options.library_size is not None:
            library = np.full(len(chunk), options.library_size, dtype=np.float32)
        batch = cells.batch[plan.reference[chunk]]
        if options.batch is not None:
            batch = np.where(options.batch[row] < 0, batch, options.batch[row])
        size = torch.from_numpy(library).to(device)
        with torch.inference_mode():
            parameters = representation.decode(latent, size, torch.from_numpy(batch).to(device))
        yield Drawn(chunk, size, parameters)


def draw_matrix(
    drawn: Drawn, likelihood: str, random: torch.Generator
) -> sparse.csr_matrix | np.ndarray:
    """Draw a chunk: integer counts, or `log1p` values with a Normal likelihood."""
    mean, dispersion, zero_logits = drawn.parameters
    if likelihood == "normal":
        noise = torch.randn(mean.shape, generator=random, device=mean.device)
        return (mean + dispersion * noise).float().cpu().numpy()
    if likelihood == "exact":
        return sparse.csr_matrix(mean.float().cpu().numpy())
    theta = None if likelihood == "poisson" else dispersion
    return sample_counts(mean, theta, zero_logits, generator=random)


def expected_proportions(drawn: Drawn, likelihood: str) -> np.ndarray:
    """Return the expected share of each gene in each drawn cell, `(n_cells, n_genes)`."""
    mean, _, zero_logits = drawn.parameters
    if likelihood == "normal":
        return (torch.expm1(mean).clamp_min(0) / TARGET_SUM).cpu().numpy()
    if likelihood == "exact":  # of a library of its own
        return (mean / mean.sum(dim=1, keepdim=True).clamp_min(1)).cpu().numpy()
    if zero_logits is not None:
        mean = mean * torch.sigmoid(-zero_logits)
    return (mean / drawn.library[:, None]).cpu().numpy()


def write_cells(
    drawn: Iterator[Drawn],
    *,
    obs: pd.DataFrame,
    screen: Screen,
    likelihood: str,
    uns: dict[str, Any],
    seed: int | None,
    path: str | Path | None,
) -> AnnData:
    """Collect drawn cells into AnnData, or stream them to a file and open it backed."""
    if path is None:
        blocks = list(_draw_blocks(drawn, likelihood, seed))
        if sparse.issparse(blocks[0]):
            result = cells_adata(sparse.vstack(blocks, format="csr"), obs, screen)
        else:
            result = cells_adata(np.vstack(blocks), obs, screen)
        result.uns = uns
        return result
    writer = CsrFileWriter(Path(path), n_columns=len(screen.genes))
    try:
        for block in _draw_blocks(drawn, likelihood, seed):
            writer.append(sparse.csr_matrix(block))
        return writer.finish(obs=obs, genes=screen.genes, uns=uns)
    except BaseException:
        writer.abandon()
        raise


def _draw_blocks(
    drawn: Iterator[Drawn], likelihood: str, seed: int | None
) -> Iterator[sparse.csr_matrix | np.ndarray]:
    """Yield the expression of each chunk."""
    random: torch.Generator | None = None
    for chunk in drawn:
        if random is None:
            random = generator(None if seed is None else seed + 1, chunk.library.device)
        yield draw_matrix(chunk, likelihood, random)
