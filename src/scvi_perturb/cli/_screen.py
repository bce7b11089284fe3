"""From a file, or the simulator, to a screen that is ready: raw counts in X, canonical columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.cli._columns import (
    UNKNOWN,
    batch_column,
    canonical,
    context_columns,
    library_column,
)
from scvi_perturb.cli._options import UsageError
from scvi_perturb.data.reader import check_raw_counts, read_screen
from scvi_perturb.data.simulate.config import SimulatorConfig
from scvi_perturb.data.simulate.screen import simulate_screen
from scvi_perturb.metrics import gene_moments, log_normalize

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.cli._options import ScreenOptions

__all__ = ["Screen", "open_screen", "simulated", "smaller", "with_genes"]

N_CELLS, N_GENES = 6000, 500
#: Combinations are not quite sums of their parts, as in real screens.
SIMULATION: Final = SimulatorConfig(interaction_strength=0.3)


@dataclass(frozen=True, slots=True)
class Screen:
    """A screen and what was found out about it.

    Attributes
    ----------
    adata
        Raw counts in `X`; `obs` as `pp.harmonize` writes it.
    contexts, batch, library
        Columns in use.
    notes
        What was taken for what, a line each.
    """

    adata: AnnData
    contexts: tuple[str, ...]
    batch: str | None
    library: str | None
    notes: tuple[str, ...]


def simulated(seed: int, *, n_cells: int = N_CELLS, n_genes: int = N_GENES) -> AnnData:
    """Return the screen of the demo without data."""
    return simulate_screen(n_cells=n_cells, n_genes=n_genes, seed=seed, config=SIMULATION)


def open_screen(adata: AnnData, options: ScreenOptions) -> Screen:
    """Find out what is where, and bring it into the form that is trained on.

    Raises
    ------
    UsageError
        When something that is needed cannot be found; it names the option to give.
    """
    notes: list[str] = []
    made = _with_counts(canonical(adata, options, notes), options.layer, notes)
    contexts = context_columns(made, options, notes)
    made = _usable_cells(made, contexts, notes)
    return Screen(
        made,
        contexts,
        batch_column(made, options, notes),
        library_column(made, options, notes),
        tuple(notes),
    )


def read(path: Path) -> AnnData:
    """Return the content of a file."""
    if not path.is_file():
        msg = f"There is no file {path}."
        raise UsageError(msg)
    return read_screen(path)


def _with_counts(adata: AnnData, layer: str | None, notes: list[str]) -> AnnData:
    """Return the screen with raw counts in X and nothing else beside annotation."""
    from anndata import AnnData

    if layer is not None and layer not in adata.layers:
        msg = f"--layer {layer}: found layers {', '.join(sorted(adata.layers)) or 'none'}."
        raise UsageError(msg)
    held: dict[str, Any] = {"X": adata.X} | {name: adata.layers[name] for name in adata.layers}
    names = [layer] if layer is not None else list(held)
    holding = [name for name in names if _fault(held[name]) is None]
    if not holding:
        fault = _fault(held[names[0]])
        where = "X" if names[0] == "X" else f"layer {names[0]!r}"
        msg = f"{where} {fault}; expected raw counts. Name the layer that holds them: --layer NAME."
        raise UsageError(msg)
    if holding[0] != "X":
        notes.append(f"counts: layer {holding[0]!r}")
    counts = held[holding[0]]
    counts = sparse.csr_matrix(counts) if not sparse.issparse(counts) else counts.tocsr()
    made = AnnData(X=counts, obs=adata.obs, var=pd.DataFrame(index=adata.var_names.astype(str)))
    record = dict(adata.uns[UNS_KEY])
    # Which columns are context and batch is decided here, not by `harmonize`.
    record["keys"] = {k: v for k, v in record["keys"].items() if k not in ("batch", "context")}
    made.uns[UNS_KEY] = record
    for what in ("obs_names", "var_names"):
        if not getattr(made, what).is_unique:
            getattr(made, f"{what}_make_unique")()
            notes.append(f"{what} come more than once and were numbered")
    return made


def _fault(matrix: object) -> str | None:
    """Return why a matrix does not hold counts."""
    try:
        check_raw_counts(matrix, where="")
    except SchemaError as error:
        return str(error).partition(";")[0].strip()
    return None


def _usable_cells(adata: AnnData, contexts: tuple[str, ...], notes: list[str]) -> AnnData:
    """Return the cells that have counts and a context."""
    empty = np.asarray(adata.X.sum(axis=1)).ravel() == 0
    keep = ~empty
    if empty.any():
        notes.append(f"{int(empty.sum())} cells without counts were left out")
    for key in contexts:
        label = adata.obs[key].astype(object)
        known = (label.notna() & ~label.astype(str).str.lower().isin(UNKNOWN)).to_numpy()
        if not known.all():
            notes.append(f"{int((~known).sum())} cells of unknown {key} were left out")
        keep &= known
    return _rows(adata, keep)


def smaller(screen: Screen, max_cells: int, seed: int) -> Screen:
    """Return at most `max_cells` cells, chosen at random."""
    n_cells = screen.adata.n_obs
    if n_cells <= max_cells:
        return screen
    chosen = np.random.default_rng(seed).choice(n_cells, max_cells, replace=False)
    note = f"{max_cells:,} of {n_cells:,} cells are used, chosen at random (--max-cells)"
    adata = _rows(screen.adata, np.sort(chosen))
    return replace(screen, adata=adata, notes=(*screen.notes, note))


def with_genes(screen: Screen, max_genes: int, cells: NDArray[np.int64]) -> Screen:
    """Return the genes that vary most over `cells`; library sizes stay those of all genes."""
    adata = screen.adata
    if adata.n_vars <= max_genes:
        return screen
    variance = gene_moments(log_normalize(adata.X[cells]))[1]
    chosen = np.sort(np.argsort(-variance, kind="stable")[:max_genes])
    note = f"{max_genes:,} of {adata.n_vars:,} genes are used, the most variable (--max-genes)"
    library = np.asarray(adata.X.sum(axis=1), dtype=float).ravel()
    adata = adata[:, chosen].copy()
    if screen.library is None:
        adata.obs["library_size"] = library
    notes = (*screen.notes, note)
    return replace(screen, adata=adata, library="library_size", notes=notes)


def _rows(adata: AnnData, rows: NDArray[Any]) -> AnnData:
    """Return some cells; labels that no cell has are forgotten."""
    made = adata[rows].copy()
    for column in made.obs:
        if isinstance(made.obs[column].dtype, pd.CategoricalDtype):
            made.obs[column] = made.obs[column].cat.remove_unused_categories()
    return made
