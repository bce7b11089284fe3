"""A simulated screen that is written by block, larger than memory may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_BLOCK: Final = 10_000
#: Genes that a perturbation changes, and the share of its cells' counts that they take.
_N_CHANGED, _CHANGED_SHARE = 20, 0.1
_CONTROL_SHARE: Final = 0.05


def write_large_screen(
    path: Path,
    *,
    n_cells: int,
    n_perturbations: int,
    n_genes: int = 8_000,
    n_counts: int = 400,
    n_contexts: int = 1,
    seed: int = 0,
) -> None:
    """Write raw counts as CSR, cells in random order, with about 300 genes in each.

    A twentieth of the cells are controls. Counts of a cell are `n_counts` draws on average, which
    vary as libraries do, of genes with a heavy-tailed level; a tenth of those of a perturbed cell
    fall on the genes that its perturbation raises.
    """
    random = np.random.default_rng(seed)
    level = np.cumsum(random.lognormal(0.0, 1.5, n_genes))
    changed = random.integers(n_genes, size=(n_perturbations, _N_CHANGED))
    label = random.integers(1, n_perturbations + 1, n_cells)
    label[:n_perturbations] = np.arange(1, n_perturbations + 1)  # each is there
    label[random.random(n_cells) < _CONTROL_SHARE] = 0
    label = random.permutation(label)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        arrays = {
            name: group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1 << 18,))
            for name, kind in (("data", "f4"), ("indices", "i4"))
        }
        indptr = [np.zeros(1, np.int64)]
        for start in range(0, n_cells, _BLOCK):
            own = label[start : start + _BLOCK]
            values, genes, lengths = _block(own, level / level[-1], changed, n_counts, random)
            for name, part in (("data", values), ("indices", genes)):
                array = arrays[name]
                array.resize((array.shape[0] + len(part),))
                array[array.shape[0] - len(part) :] = part
            indptr.append(indptr[-1][-1] + np.cumsum(lengths))
        group["indptr"] = np.concatenate(indptr)
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([n_cells, n_genes])
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        names = pd.Index(["control", *(f"pert_{i:05d}" for i in range(n_perturbations))])
        obs = pd.DataFrame({"perturbation": pd.Categorical.from_codes(label, names)})
        places = np.arange(n_cells) % n_contexts
        obs["cell_type"] = pd.Categorical.from_codes(
            places, pd.Index([f"type_{i:02d}" for i in range(n_contexts)])
        )
        obs.index = pd.Index([f"cell_{i}" for i in range(n_cells)])
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))
        for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            write_elem(file, name, {})


def _block(
    label: NDArray[np.int64],
    level: NDArray[np.float64],
    changed: NDArray[np.int64],
    n_counts: int,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]:
    """Return the values, genes and numbers of genes of cells with these perturbations."""
    library = np.maximum(random.poisson(random.gamma(4.0, n_counts / 4, len(label))), 1)
    cell = np.repeat(np.arange(len(label)), library)
    gene = np.searchsorted(level, random.random(len(cell)))
    moved = (random.random(len(cell)) < _CHANGED_SHARE) & (label[cell] > 0)
    pick = random.integers(_N_CHANGED, size=int(moved.sum()))
    gene[moved] = changed[label[cell[moved]] - 1, pick]
    place, values = np.unique(cell * len(level) + gene, return_counts=True)
    lengths = np.bincount(place // len(level), minlength=len(label))
    return values.astype(np.float32), (place % len(level)).astype(np.int32), lengths
