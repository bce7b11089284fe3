"""Constants, errors, checks and seeds that all rooms use."""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

# NumPy, SciPy and torch are imported where they are used: the command line starts from here.
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray


class Key:
    """Keys under which the fields of a screen are registered, and named in a batch."""

    X: Final = "X"
    CONDITION: Final = "condition"
    CONTEXT: Final = "context"
    BATCH: Final = "batch"
    LIBRARY: Final = "library"


class Column:
    """Columns that `pp.harmonize` writes and that `setup_anndata` looks for by default."""

    PERTURBATION: Final = "perturbation"
    DOSE: Final = "dose"
    TIME: Final = "time"
    KIND: Final = "perturbation_type"


#: Before the column, of the keys of metadata.
METADATA_PREFIX: Final = "metadata_"

CONTROL: Final = "control"
SEPARATOR: Final = "+"

#: Where provenance is written: `adata.uns[UNS_KEY]`.
UNS_KEY: Final = "scvi_perturb"
#: Folder of this package.
_PACKAGE: Final = str(Path(__file__).parent)
#: Total to which profiles are scaled before `log1p`: counts per ten thousand.
TARGET_SUM: Final = 1e4


#: Names in a batch of its counts as compressed rows: the non-zeros, their columns, and the first of
#: each row with the number of all as last.
NON_ZEROS: Final = ("values", "columns", "starts")

#: A batch: `X (B, G)`, `condition (B,)`, `context (B,)`, `batch (B,)`, `library (B,)`, and where
#: the storage knows them `rows` and `columns` of the non-zero counts. In place of `X` it can hold
#: the counts as `NON_ZEROS`.
Batch: TypeAlias = "dict[str, torch.Tensor]"


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
        Names that could have been asked for; those that are spelt alike are put in the message.
    control, separator
        How controls and combinations are written, for a name that is meant as one of them.
    """

    def __init__(
        self,
        name: str,
        known: Iterable[str] = (),
        *,
        control: str = CONTROL,
        separator: str = SEPARATOR,
    ) -> None:
        known = sorted(set(known))
        by_spelling = {_spelling(one): one for one in reversed(known)}
        asked = re.sub(r" \(.*?\)|, time .*", "", name)  # of a kind, a dose or a time
        near = get_close_matches(_spelling(asked), by_spelling, n=3, cutoff=0.65)
        self.name = name
        self.nearest = [by_spelling[spelling] for spelling in near]
        hints = []
        if looks_like_control(name):
            hints.append(f"Controls are written {control!r} here.")
        if combination := _as_combination(name, by_spelling, separator):
            hints.append(f"If it is a combination, write {combination!r}.")
        if self.nearest:
            hints.append(f"Nearest known names: {', '.join(self.nearest)}.")
        elif known:
            few = f", which are {', '.join(known)}" if len(known) <= 3 else ""
            hints.append(f"It is not spelt like any of the {len(known)} known names{few}.")
        super().__init__(
            f"Perturbation {name!r} was not trained on and has no features, so nothing is known "
            f"about it. {''.join(hint + ' ' for hint in hints)}Ask for a known perturbation, or "
            "give the model `features=PerturbationFeatures(...)` that cover this name."
        )


def _spelling(name: str) -> str:
    """Return a name without what people write in several ways: case, spaces, hyphens."""
    return re.sub(r"[-_\s]", "", name).casefold()


def _as_combination(name: str, by_spelling: Mapping[str, str], separator: str) -> str | None:
    """Return how a name is written that falls apart into known names, or None."""
    for mark in ("+", ";", ",", "|", "_", "/", "&", ":", "-", " "):
        parts = [part for part in name.split(mark) if not looks_like_control(part)]
        found = [by_spelling.get(_spelling(part)) for part in parts]
        if mark in name and found and None not in found:
            return separator.join(filter(None, found))
    return None


def _one_of(words: str) -> str:
    """Return a pattern of words, the longest first; "_" in a word may be left out."""
    return "|".join(sorted(words.replace("_", "_*").split(), key=len, reverse=True))


_CONTROLS: Final = _one_of(
    "control controls ctrl ctrls ctl mock neg negative non_target non_targeting non_targeted "
    "no_target no_targeting nt ntc safe safe_target safe_targeting safe_harbor safe_harbour "
    "scramble scrambled vehicle veh dmso pbs lacz luciferase luc fluc untreated not_treated "
    "non_treated no_treatment unperturbed unstimulated unstim non_stimulated untransfected "
    "untransduced uninfected"
)
_ABOUT_GUIDES: Final = _one_of(
    "sgrna grna sg g guide guides sirna si shrna sh crrna rna oligo for human mouse gene tf cell "
    "cells sample treated only plus cutting infected transfected transduced"
)
_CONTROL_NAME: Final = re.compile(
    rf"(?:(?:{_ABOUT_GUIDES})_*+){{0,3}}(?:{_CONTROLS})"
    rf"(?:_*+(?:{_CONTROLS}|{_ABOUT_GUIDES}|[0-9]))*+_*"
)
_MAYBE_CONTROL: Final = re.compile(
    rf"(?:(?:{_ABOUT_GUIDES})_*+){{0,3}}(?:"
    + _one_of(
        "aavs1 rosa26 gfp egfp rfp bfp mcherry mscarlet tdtomato scr nc con wt wild_type parental "
        "empty empty_vector ev background resting basal non_gene one_intergenic "
        "water h2o saline medium media ethanol etoh baseline blank isotype intergenic "
        "one_intergenic_site one_non_gene_site no_site no_guide no_grna no_sgrna "
        "nt_3(?![0-9]) nt_4(?![0-9])"
    )
    + ")(?:_*[0-9])*"
)


def looks_like_control(label: str, *, perhaps: bool = False) -> bool:
    """Whether a label is a usual name of controls, such as "ctrl", "NTg1", "non-targeting_00012".

    Case, spaces, hyphens and numbers do not matter. With `perhaps` also a label that names controls
    in some screens and perturbations in others: "AAVS1", "GFP", "WT".
    """
    name = re.sub(r"(?<=[_:|])\+(?=[_:|]|$)", "", label)  # the strand of a guide
    plain = re.sub(r"[^0-9a-z]+", "_", name.casefold()).lstrip("_")
    if len(plain) > 200 or SEPARATOR in name:
        return False
    if _MAYBE_CONTROL.fullmatch(plain) and "NT_" not in label:  # NT-3 is a growth factor too
        return perhaps
    return _CONTROL_NAME.fullmatch(plain) is not None


def shown(value: object) -> str:
    """Return a value as it is put in a message: short, on one line; of an object only its class."""
    plain = isinstance(value, str | bytes | int | float | list | tuple | dict | set | None)
    if not plain and type(value).__module__ != "numpy":
        return f"<{type(value).__name__}>"
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = "?"
    return text if len(text) <= 60 else f"{text[:57]}..."


def warn(message: str) -> None:
    """Warn, and name the line outside this package that led here."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def log_normalize_cells(counts: Any, *, target_sum: float = TARGET_SUM) -> Any:  # noqa: ANN401
    """Return `log1p(target_sum * counts / total of the cell)`, `(n_cells, n_genes)`, float64.

    CSR if `counts` is sparse, else dense. A cell without counts stays zero.

    Raises `ValueError`: If a cell has a negative total.
    """
    import numpy as np
    from scipy import sparse

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


def add_by_group(
    table: NDArray[np.float64],
    group: NDArray[np.int64],
    rows: Any,  # noqa: ANN401
    *,
    weight: NDArray[np.float64] | None = None,
) -> None:
    """Add rows `(n, n_genes)`, times a weight `(n,)`, to the rows of a table that are their groups.

    What it costs follows what the rows hold, and not the size of the table.
    """
    import numpy as np
    from scipy import sparse

    own, place = np.unique(group, return_inverse=True)
    n = len(group)
    weights = np.ones(n) if weight is None else weight
    sums = sparse.csr_matrix((weights, (place, np.arange(n))), (len(own), n)) @ rows
    if sparse.issparse(sums):  # a product of CSR names no place twice
        table[np.repeat(own, np.diff(sums.indptr)), sums.indices] += sums.data
    else:
        table[own] += sums


def generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded with `seed`, or from the operating system when None."""
    import torch

    made = torch.Generator(device=device)
    if seed is None:
        made.seed()
    else:
        made.manual_seed(int(seed))
    return made


def drawn_seed(seed: int | None) -> int:
    """Return the seed, or for None one from the operating system."""
    from numpy.random import SeedSequence

    return int(SeedSequence().generate_state(1)[0]) if seed is None else int(seed)


#: Held by what seeds the global generators: one thread at a time.
ALONE: Final = threading.RLock()


@contextmanager
def forked_seed(seed: int | None) -> Iterator[None]:
    """Seed torch's and NumPy's global generators inside the block and restore them after it.

    Layers' initial values, dropout and shuffling read the global generators; this keeps a
    seeded call reproducible without changing the caller's random numbers. Other threads wait.
    """
    import numpy as np
    import torch

    with ALONE, torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        state = np.random.get_state()  # noqa: NPY002 - saved and restored, not drawn from
        own = drawn_seed(seed)
        torch.manual_seed(own)
        np.random.seed(own % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
