"""Constants, errors, checks and seeds that all rooms use."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


#: Keys under which the fields of a screen are registered with scvi-tools (and named in a batch).
X_KEY: Final = "X"
CONDITION_KEY: Final = "condition"
CONTEXT_KEY: Final = "context"
BATCH_KEY: Final = "batch"
LIBRARY_KEY: Final = "library"
#: Before the column, of the keys of metadata.
METADATA_PREFIX: Final = "metadata_"

#: Columns that `scvi_perturb.pp.harmonize` writes and that `setup_anndata` looks for by default.
PERTURBATION_COLUMN: Final = "perturbation"
DOSE_COLUMN: Final = "dose"
TIME_COLUMN: Final = "time"
KIND_COLUMN: Final = "perturbation_type"

CONTROL: Final = "control"
SEPARATOR: Final = "+"

#: Where provenance is written: `adata.uns[UNS_KEY]`.
UNS_KEY: Final = "scvi_perturb"
#: Total to which profiles are scaled before `log1p`: counts per ten thousand.
TARGET_SUM: Final = 1e4


#: A batch: `X (B, G)`, `condition (B,)`, `context (B,)`, `batch (B,)`, `library (B,)`, and where
#: the storage knows them `rows` and `columns` of the non-zero counts.
Batch: TypeAlias = dict[str, torch.Tensor]


class SchemaError(ValueError):
    """The data do not have the form that was asked for."""


class LeakError(ValueError):
    """Held-out cells or conditions would be seen in training."""


class NotTrainedError(RuntimeError):
    """A result was asked of a model that has not been trained."""


class UnknownPerturbationError(ValueError):
    """A perturbation was neither trained on nor has features.

    Parameters
    ----------
    name
        The perturbation that was asked for.
    known
        Names that could have been asked for; the nearest ones are put in the message.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        known = sorted(set(known))
        near = get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
        hint = f" Nearest known names: {', '.join(near)}." if near else ""
        super().__init__(
            f"Perturbation {name!r} was not trained on and has no features, so nothing is known "
            f"about it.{hint} Ask for a known perturbation, or give the model "
            "`features=PerturbationFeatures(...)` that cover this name."
        )
        self.name = name
        self.nearest = near


def log_normalize_cells(counts: Any, *, target_sum: float = TARGET_SUM) -> Any:  # noqa: ANN401
    """Return `log1p(target_sum * counts / total of the cell)`, `(n_cells, n_genes)`, float64.

    CSR if `counts` is sparse, else dense. A cell without counts stays zero.

    Raises `ValueError`: If a cell has a negative total.
    """
    sizes = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    if sizes.size and sizes.min() < 0:
        msg = "Counts must not be negative; found a cell with a negative total. Pass raw counts."
        raise ValueError(msg)
    factor = target_sum / np.where(sizes > 0, sizes, 1.0)
    if not sparse.issparse(counts):
        return np.log1p(np.asarray(counts, dtype=np.float64) * factor[:, None])
    made = sparse.csr_matrix(counts, dtype=np.float64)
    made.data = np.log1p(made.data * np.repeat(factor, np.diff(made.indptr)))
    return made


def generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded with `seed`, or from the operating system when None."""
    made = torch.Generator(device=device)
    if seed is None:
        made.seed()
    else:
        made.manual_seed(int(seed))
    return made


def drawn_seed(seed: int | None) -> int:
    """Return the seed, or for None one from the operating system."""
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)


#: Held by what seeds the global generators: one thread at a time.
ALONE: Final = threading.RLock()


@contextmanager
def forked_seed(seed: int | None) -> Iterator[None]:
    """Seed torch's and NumPy's global generators inside the block and restore them after it.

    Layers' initial values, dropout and shuffling read the global generators; this keeps a
    seeded call reproducible without changing the caller's random numbers. Other threads wait.
    """
    with ALONE:
        yield from _forked(drawn_seed(seed))


def _forked(seed: int) -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002 - saved and restored, not drawn from
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
