"""Draw cells, move populations onto a mean, tell effects of both, and write AnnData."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from anndata.io import read_h5ad
from scipy import sparse
from scipy.special import stdtrit

from scvi_perturb._core import TARGET_SUM, UNS_KEY, Key, SchemaError, generator
from scvi_perturb._files import writing_hdf5
from scvi_perturb._version import __version__
from scvi_perturb.data.matching import group_controls
from scvi_perturb.data.reader import read_rows
from scvi_perturb.generative.counts import sample_counts
from scvi_perturb.model.base.latents import chunks, encode_cells, means_of_own
from scvi_perturb.module.base import ConditionBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.condition_table import ConditionTable
    from scvi_perturb.data.request import Request
    from scvi_perturb.data.screen import Screen
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.model.base.reference import Plan, Reference
    from scvi_perturb.module.base import ConditionTensors, CountParameters, Representation

    Floats = NDArray[np.float64]
    #: Tables of some rows of a request, by name, `(n_rows, n_genes)` each.
    Block = Mapping[str, np.ndarray]


def cell_obs(plan: Plan, screen: Screen) -> pd.DataFrame:
    """Return `obs` of drawn cells: the condition's columns, the reference cell, the draw."""
    labels = plan.cells.labels
    obs = condition_frame(plan.request, screen).iloc[plan.row].reset_index(drop=True)
    for column in labels:
        own = labels[column].to_numpy()[plan.reference]
        obs[column] = obs[column].where(obs[column].notna(), own) if column in obs else own
    for column in obs:
        if obs[column].dtype == object:
            obs[column] = obs[column].astype("category")
    obs["reference_cell"] = labels.index.astype(str).to_numpy()[plan.reference]
    obs["draw"] = plan.draw
    obs.index = pd.Index([f"row{r}_draw{d}" for r, d in zip(plan.row, plan.draw, strict=True)])
    return obs


def condition_frame(request: Request, screen: Screen) -> pd.DataFrame:
    """Return the rows of a request under the names that the screen was registered with.

    A context or batch that a row leaves to the reference is None.
    """
    text = screen.table.frame(request.conditions)
    keys = screen.keys
    frame = pd.DataFrame({keys.perturbation: text["perturbation"]})
    for column, name in (
        (keys.dose, "dose"),
        (keys.time, "time"),
        (keys.kind, "perturbation_type"),
    ):
        if column is not None:
            frame[column] = text[name]
    for column, labels in request.context.items():
        frame[column] = [label or None for label in labels]
    if request.batch is not None and screen.keys.batch is not None:
        frame[screen.keys.batch] = [label or None for label in request.batch]
    return frame


def cells_adata(
    matrix: sparse.csr_matrix | np.ndarray, obs: pd.DataFrame, screen: Screen
) -> AnnData:
    """Return drawn cells as AnnData, genes in the order of training."""
    return AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=pd.Index(screen.genes)))


def provenance(
    model: str,
    *,
    units: str,
    seed: int | None,
    sampler: SamplerConfig,
    library_size: str,
    trained_on: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return `uns` of a result: who made it, of what, in which units, and how."""
    evaluations = sampler.n_evaluations * (1 if sampler.guidance_scale == 1.0 else 2)
    return {
        UNS_KEY: {
            "model": model,
            "version": __version__,
            "scvi_tools_version": scvi.__version__,
            "torch_version": str(torch.__version__),
            "seed": "none" if seed is None else int(seed),
            "units": units,
            "sampler": sampler.method,
            "guidance_scale": float(sampler.guidance_scale),
            "n_function_evaluations": int(evaluations),
            "library_size": library_size,
            "trained_on": trained_on,
        }
    }


def library_shifts(
    codes: dict[str, np.ndarray], library: np.ndarray, train: np.ndarray
) -> dict[int, float]:
    """Return the mean change of the log library size under each trained condition.

    Changes are taken against controls of the same context and batch, averaged over contexts,
    and shrunk towards none as far as their standard error is large (positive-part James-Stein).

    `codes`: Condition, context and batch of all cells. `library`: Library sizes of all cells.
    `train`: Cells to learn from.
    """
    condition, context = codes[Key.CONDITION][train], codes[Key.CONTEXT][train]
    size = np.log(np.maximum(library[train].astype(float), 1.0))
    groups = group_controls(context, codes[Key.BATCH][train], condition == 0)
    centre = np.array([size[groups.pool(g)].mean() for g in range(len(groups.start))])
    change = size - centre[groups.group]
    means: dict[int, list[float]] = {}
    variances: dict[int, list[float]] = {}
    spread = {place: size[context == place].var() for place in np.unique(context).tolist()}
    treated = np.flatnonzero(condition != 0)
    order = treated[np.lexsort((context[treated], condition[treated]))]
    pairs = np.stack([condition[order], context[order]])
    ends = np.flatnonzero((np.diff(pairs) != 0).any(axis=0)) + 1
    for own in np.split(order, ends) if len(order) else []:
        code = int(condition[own[0]])
        means.setdefault(code, []).append(float(change[own].mean()))
        variances.setdefault(code, []).append(spread[int(context[own[0]])] / len(own))
    return {code: _shrunken(own, variances[code]) for code, own in means.items()}


def _shrunken(means: list[float], variances: list[float]) -> float:
    shift, error = float(np.mean(means)), float(np.sum(variances)) / len(means) ** 2
    return shift * max(0.0, 1.0 - error / shift**2) if shift else 0.0


def expected_library_shifts(
    conditions: Iterable[Condition], shifts: dict[int, float], table: ConditionTable
) -> NDArray[np.float64]:
    """Return the change of the log library size expected under each condition, `(n,)`.

    A trained condition has its own; another is the sum over its components, each the mean of
    the trained conditions of that component alone; what was never seen alone changes nothing.
    """
    known = {table.conditions[code]: shift for code, shift in shifts.items()}
    alone: dict[tuple[str, str], list[float]] = {}
    for condition, shift in known.items():
        if len(condition.components) == 1:
            (part,) = condition.components
            alone.setdefault((part.name, part.kind), []).append(shift)
    of_part = {part: float(np.mean(own)) for part, own in alone.items()}

    def change(condition: Condition) -> float:
        if condition in known:
            return known[condition]
        parts = ((part.name, part.kind) for part in condition.components)
        return sum(of_part.get(part, 0.0) for part in parts)

    return np.array([change(condition) for condition in conditions], dtype=np.float64)


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

    `batch`: Batch code of each row of the request; None, and -1, take the reference cell's.
    `library_size`: Total counts of every cell; None takes the reference cell's. `library_factor`:
    Factor of each row of the request on the reference cell's library size, or None. `population`:
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

        Raises `SchemaError`: When a batch asked for was not trained on. Raises `ValueError`: When
        `library_size` is neither a legal word nor a positive number.
        """
        factor, number = None, None
        if library_size == "predicted":
            factor = np.exp(expected_library_shifts(request.conditions, shifts, screen.table))
        elif library_size != "reference":
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
    draw_latents: Callable[[ConditionBatch], torch.Tensor],
    *,
    conditions: ConditionTensors,
    plan: Plan,
    options: DrawOptions,
    random: torch.Generator,
) -> Iterator[Drawn]:
    """Yield drawn cells in the order of the plan, in chunks of bounded size.

    `representation`: Stage one. `draw_latents`: From condition, reference and context of each cell
    to its latent. `conditions`: Conditions of the request's rows, on the module's device. `plan`:
    Which cell starts from which; each reference cell used is encoded once.
    `options`: Batch and library size. `random`: Source of all draws, on the module's device.
    """
    device, cells = conditions.component.device, plan.cells
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
        latent = draw_latents(ConditionBatch(conditions, which, reference, context))
        library = np.asarray(plan.library[chunk], dtype=np.float32)
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
    inputs: Iterable[object],
) -> AnnData:
    """Collect drawn cells into AnnData, or stream them to a file and open it backed.

    `inputs` are the data that are read meanwhile: their files are not written to.
    """
    if path is None:
        blocks = list(_draw_blocks(drawn, likelihood, seed))
        if sparse.issparse(blocks[0]):
            result = cells_adata(sparse.vstack(blocks, format="csr"), obs, screen)
        else:
            result = cells_adata(np.vstack(blocks), obs, screen)
        result.uns = uns
        return result
    with writing_hdf5(path, inputs=inputs, make_folder=True) as (file, check):
        writer = CsrFileWriter(file, n_columns=len(screen.genes))
        for block in _draw_blocks(drawn, likelihood, seed):
            writer.append(sparse.csr_matrix(block))
            check()
        writer.finish(obs=obs, genes=screen.genes, uns=uns)
    return read_h5ad(path, backed="r")


def _draw_blocks(
    drawn: Iterator[Drawn], likelihood: str, seed: int | None
) -> Iterator[sparse.csr_matrix | np.ndarray]:
    """Yield the expression of each chunk."""
    random: torch.Generator | None = None
    for chunk in drawn:
        if random is None:
            random = generator(None if seed is None else seed + 1, chunk.library.device)
        yield draw_matrix(chunk, likelihood, random)


#: Key of `obsm` of the latents that cells were carried to.
LATENT_KEY = "X_latent"

Output = Literal["counts", "mean"]
Decode: TypeAlias = "Callable[[np.ndarray, torch.Tensor, torch.Tensor], CountParameters]"


@dataclass(frozen=True, slots=True)
class TransportedCells:
    """Cells in the latent, and what their counts depend on besides.

    `latent`: `(n_cells, n_latent)`. `library`, `batch`: Library sizes and codes of batches,
    `(n_cells,)`.
    """

    latent: torch.Tensor
    library: np.ndarray
    batch: np.ndarray


@torch.inference_mode()
def transported_adata(
    carried: TransportedCells,
    obs: pd.DataFrame,
    *,
    representation: Representation,
    screen: Screen,
    output: Output,
    seed: int | None,
    device: torch.device,
    decode: Decode | None = None,
) -> AnnData:
    """Return carried cells as AnnData: counts drawn, or expected counts.

    `obsm["X_latent"]` has the latents. `decode` is for representations that are told more than
    latents, library sizes and batches: `(rows, latents, library sizes) -> parameters`.
    """
    random = generator(seed, device)
    blocks = []
    for rows in chunks(len(carried.latent)):
        library = torch.from_numpy(carried.library[rows].astype(np.float32)).to(device)
        batch = torch.from_numpy(carried.batch[rows]).to(device)
        latent = carried.latent[rows].to(device)
        if decode is None:
            parameters = representation.decode(latent, library, batch)
        else:
            parameters = decode(rows, latent, library)
        if output == "counts":
            drawn = Drawn(rows, library, parameters)
            blocks.append(draw_matrix(drawn, representation.likelihood, random))
            continue
        mean, _, zero_logits = parameters
        mean = mean if zero_logits is None else mean * torch.sigmoid(-zero_logits)
        blocks.append(mean.float().cpu().numpy())
    stacked = sparse.vstack(blocks, format="csr") if sparse.issparse(blocks[0]) else None
    result = cells_adata(np.vstack(blocks) if stacked is None else stacked, obs, screen)
    result.obsm[LATENT_KEY] = carried.latent.float().cpu().numpy()
    return result


_N_ROUNDS: Final = 50
#: A share is found when its relative error is less.
_CLOSE: Final = 1e-4
#: Shares below this are taken for it: a factor must stay finite.
_LEAST: Final = 1e-8
#: A gene is never multiplied or divided by more.
_MOST: Final = 1e3


def population_shares(proportions: Floats, library: Floats) -> Floats:
    """Return each gene's share of the summed counts of a population, `(n_genes,)`."""
    return np.asarray(library @ proportions, dtype=np.float64) / library.sum()


def gene_factors(
    proportions: Floats, library: Floats, target: Floats, *, partial: bool = False
) -> Floats:
    """Return the factor of each gene by which a population gets a mean.

    Multiplied by the factors, each cell's with its sum kept, the proportions of the cells have
    together the shares `target`. Found by iterative proportional fitting: every round multiplies
    by what is still missing. Where no factors do it, because a gene is hardly there or the cells
    that have it have little else, it ends as near as it came.

    `proportions`: Expected shares of the genes in each cell, `(n_cells, n_genes)`; rows sum to at
    most 1. `library`: Library sizes, `(n_cells,)`. `target`: Shares wanted of the summed counts,
    `(n_genes,)`; scaled to the sum of those that are. `partial`: Whether the genes are some of the
    library's only: then neither is anything scaled nor are the sums of cells kept. Returns
    `(n_genes,)`, positive; between a thousandth and a thousand.
    """
    start = np.maximum(population_shares(proportions, library), _LEAST)
    target = np.maximum(target, _LEAST)
    if not partial:
        target = target * (start.sum() / target.sum())
    target = np.clip(target, start / _MOST, start * _MOST)
    if partial:
        return target / start
    target *= start.sum() / target.sum()  # or what is out of reach drives all others to a bound
    weight = library * proportions.sum(axis=1) / library.sum()
    factors = np.ones_like(start)
    for _ in range(_N_ROUNDS):
        scale = weight / np.maximum(proportions @ factors, 1e-300)
        missing = target / np.maximum(factors * (scale @ proportions), _LEAST)
        factors = np.clip(factors * missing, 1 / _MOST, _MOST)
        if np.abs(missing - 1).max() < _CLOSE:
            break
    return factors


def group_populations(
    drawn: Iterable[Drawn], group: np.ndarray, likelihood: str
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield each group with the expected proportions and the library sizes of its cells.

    `group` is that of each entry of the plan drawn, whose entries stand together by group.
    """
    parts: list[tuple[Floats, Floats]] = []
    current = -1
    for chunk in drawn:
        of, library = group[chunk.cells], chunk.library.cpu().numpy()
        shares = expected_proportions(chunk, likelihood)
        for own in np.split(np.arange(len(of)), np.flatnonzero(np.diff(of)) + 1):
            if parts and of[own[0]] != current:
                yield current, *_joined(parts)
                parts = []
            current = int(of[own[0]])
            parts.append((shares[own], library[own]))
    if parts:
        yield current, *_joined(parts)


def _joined(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    shares, library = zip(*parts, strict=True)
    return np.concatenate(shares), np.concatenate(library)


def rescaled(drawn: Drawn, factors: Floats, likelihood: str, *, partial: bool) -> Drawn:
    """Return drawn cells with their proportions times factors, `(n_cells, n_genes)`."""
    device = drawn.library.device
    factor = torch.from_numpy(factors.astype(np.float32)).to(device)
    return replace(
        drawn, parameters=rescaled_parameters(drawn.parameters, factor, likelihood, partial=partial)
    )


def rescaled_parameters(
    parameters: CountParameters, factor: torch.Tensor, likelihood: str, *, partial: bool
) -> CountParameters:
    """Return parameters of counts whose expected proportions are multiplied by a factor a gene.

    The sum of what is expected of a cell stays, unless the genes are `partial`; dispersions and the
    probability of extra zeros stay too. Of a Normal likelihood of `log1p` values it is what these
    expect of proportions that moves.
    """
    normal = likelihood == "normal"
    mean = torch.expm1(parameters.mean).clamp_min(0) if normal else parameters.mean
    new = mean * factor
    if not partial:
        zeros = parameters.zero_logits
        there = torch.ones_like(mean) if zeros is None else torch.sigmoid(-zeros)
        before, after = ((x * there).sum(-1, keepdim=True) for x in (mean, new))
        new = new * (before / after.clamp_min(1e-12))
    return parameters._replace(mean=torch.log1p(new) if normal else new)


class CsrFileWriter:
    """Append blocks of rows to the CSR matrix `X` of a file, of `n_columns` columns."""

    def __init__(self, file: h5py.File, *, n_columns: int) -> None:
        self._file = file
        self.n_columns, self.n_rows, self.n_values = n_columns, 0, 0
        group = self._file.create_group("X")
        self._arrays = {
            name: group.create_dataset(
                name, (0,), dtype, maxshape=(None,), chunks=(1 << 16,), compression="lzf"
            )
            for name, dtype in (("data", "f4"), ("indices", "i4"), ("indptr", "i8"))
        }
        self._extend("indptr", np.zeros(1, dtype=np.int64))

    def append(self, block: sparse.csr_matrix) -> None:
        """Append the rows of `block`."""
        self._extend("data", block.data)
        self._extend("indices", block.indices)
        self._extend("indptr", block.indptr[1:].astype(np.int64) + self.n_values)
        self.n_rows += block.shape[0]
        self.n_values += block.nnz

    def finish(self, *, obs: pd.DataFrame, genes: Sequence[str], uns: dict[str, Any]) -> None:
        """Add annotations."""
        group = self._file["X"]
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
            | {"shape": np.array([self.n_rows, self.n_columns], dtype=np.int64)}
        )
        write_annotations(self._file, obs=obs, genes=genes, uns=uns)

    def _extend(self, name: str, values: np.ndarray) -> None:
        array = self._arrays[name]
        array.resize((array.shape[0] + len(values),))
        array[array.shape[0] - len(values) :] = values


def write_annotations(
    file: h5py.File, *, obs: pd.DataFrame, genes: Sequence[str], uns: dict[str, Any]
) -> None:
    """Make a file with `X`, and layers if there are any, one of AnnData."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    anndata.io.write_elem(file, "obs", obs)
    anndata.io.write_elem(file, "var", pd.DataFrame(index=pd.Index(list(genes))))
    anndata.io.write_elem(file, "uns", uns)
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        file.require_group(name).attrs.update(
            {"encoding-type": "dict", "encoding-version": "0.1.0"}
        )


# Effects ------------------------------------------------------------------------------------

#: Tables of effects; all but the profiles `X` are layers.
TABLES: Final = ("X", "lfc", "lower", "upper", "std")


def effect_blocks(
    drawn: Iterator[Drawn], plan: Plan, *, likelihood: str, interval: float
) -> Iterator[Block]:
    """Yield the effects of the rows of a request in turn, from cells drawn for it."""
    ends = np.searchsorted(plan.row, np.arange(len(plan.request) + 1))
    for row, shares, _ in group_populations(drawn, plan.row, likelihood):
        used = plan.reference[ends[row] : ends[row + 1]]
        yield {k: v[None] for k, v in _effect(shares, plan.cells, used, interval).items()}


def effects_adata(
    blocks: Iterable[Block],
    request: Request,
    screen: Screen,
    *,
    n_cells: NDArray[np.intp] | int,
    annotate: Callable[[], Mapping[str, np.ndarray]] = dict,
    uns: dict[str, Any] | None = None,
    path: str | Path | None = None,
    inputs: Iterable[object] = (),
) -> AnnData:
    """Return one row a condition, or stream them to a file and open it backed.

    `blocks`: Tables of the rows in their order, `X`, `lfc`, `lower`, `upper` and `std`. `n_cells`:
    Cells behind each row. `annotate`: Returns further columns of `obs`; asked after the last block.
    `inputs`: Data that are read meanwhile: their files are not written to.
    """
    shape = (len(request), len(screen.genes))
    if path is None:
        tables: dict[str, Any] = {name: np.empty(shape, np.float32) for name in TABLES}
        _fill(tables, blocks, check=lambda: None)
        return AnnData(
            tables.pop("X"),
            obs=_effects_obs(request, screen, n_cells, annotate()),
            var=pd.DataFrame(index=pd.Index(screen.genes)),
            layers=tables,
            uns=uns,
        )
    with writing_hdf5(path, inputs=inputs, make_folder=True) as (file, check):
        tables = {
            name: file.create_dataset("X" if name == "X" else f"layers/{name}", shape, "f4")
            for name in TABLES
        }
        for table in tables.values():
            table.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        _fill(tables, blocks, check=check)
        obs = _effects_obs(request, screen, n_cells, annotate())
        write_annotations(file, obs=obs, genes=screen.genes, uns=uns or {})
    return read_h5ad(path, backed="r")


def _fill(tables: Mapping[str, Any], blocks: Iterable[Block], check: Callable[[], None]) -> None:
    start = 0
    for block in blocks:
        stop = start + len(block["X"])
        for name, table in tables.items():
            table[start:stop] = block[name]
        start = stop
        check()


def _effects_obs(
    request: Request,
    screen: Screen,
    n_cells: NDArray[np.intp] | int,
    more: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    frame = condition_frame(request, screen)
    frame["n_cells"] = n_cells
    frame.index = pd.Index([f"row{i}" for i in range(len(frame))])
    for column in frame:
        if frame[column].dtype == object:
            frame[column] = frame[column].astype("category")
    return frame.assign(**more)


def _effect(
    shares: np.ndarray, cells: Reference, used: np.ndarray, interval: float
) -> dict[str, np.ndarray]:
    """Return profile, effect and interval of one population, each `(n_genes,)`.

    A drawn cell keeps much of its reference, and their difference is what is uncertain: reference
    cells, each with what was drawn from it, are the independent units. The variance is that of
    their linear influences on the difference (the delta method; the infinitesimal jackknife), and
    the interval Student's with as many degrees of freedom as cells but one. From a single
    reference cell no interval can be had, and it is NaN.

    `shares`: Expected shares of the drawn cells. `used`: The reference cell of each. Both profiles
    are those of summed counts.

    Reference: Efron, Nonparametric estimates of standard error, Biometrika 1981.
    """
    pool, place = np.unique(used, return_inverse=True)
    n, library = len(pool), cells.library[used]
    counts = read_rows(cells.counts, pool)
    control = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    weights = (library.astype(np.float32), (place, np.arange(len(used))))
    expected = sparse.csr_matrix(weights, (n, len(used))) @ shares.astype(np.float32)
    size = np.asarray(np.bincount(place, library), np.float64)
    own_size = cells.library[pool].astype(np.float64)
    share, moved = _influences(expected, size)
    own_share, own_moved = _influences(control.astype(np.float32), own_size)
    moved -= own_moved
    effect = _log(share) - _log(own_share)
    variance = np.einsum("ij,ij->j", moved, moved, dtype=np.float64)
    std = np.sqrt(variance * (n / (n - 1))) if n > 1 else np.full_like(effect, np.nan)
    reach = std * (stdtrit(n - 1, (1 + interval) / 2) if n > 1 else np.nan)
    results = {
        "X": _log(share),
        "lfc": effect,
        "lower": effect - reach,
        "upper": effect + reach,
        "std": std,
    }
    return {key: value.astype(np.float32) for key, value in results.items()}


def _influences(counts: NDArray[np.float32], library: Floats) -> tuple[Floats, NDArray[np.float32]]:
    """Return the shares of summed counts, and what each cell adds to their logarithm.

    `counts`: `(n_cells, n_genes)`, which become the influences, `T (x - p l) / (1 + T p)` by the
    sum of all `l`. `library`: `(n_cells,)`.
    """
    total = library.sum()
    share: Floats = counts.sum(axis=0, dtype=np.float64) / total
    counts -= np.outer(library.astype(np.float32), share.astype(np.float32))
    counts *= (TARGET_SUM / (1 + TARGET_SUM * share) / total).astype(np.float32)
    return share, counts


def _log(share: Floats) -> Floats:
    made: Floats = np.log1p(TARGET_SUM * share)
    return made
