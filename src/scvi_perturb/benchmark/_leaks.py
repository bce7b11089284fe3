"""A prediction that holds what it was asked to predict is no prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._errors import LeakError
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.metrics import log_normalize, pseudobulk
from scvi_perturb.metrics._structure import chosen_genes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.benchmark._cases import Case
    from scvi_perturb.benchmark._trial import Trial
    from scvi_perturb.metrics import Matrix, Population

__all__ = ["refuse_copies"]

#: Genes in which a cell must be non-zero before an equal one cannot be chance.
_TELLING = 10
_DECIMALS = 3
#: A mean this near to the measured one, as a share of the change, is the measured one.
_EQUAL = 1e-5
_CHUNK = 4096


def refuse_copies(found: Sequence[Population], trial: Trial) -> None:
    """Raise if held-out cells, or their profiles, are among what was predicted.

    Methods are given the visible cells alone. One that reaches the others in another way, through
    a file or through what it was made with, is found here: its run fails, whatever its score.

    Raises
    ------
    LeakError
        Naming the condition.
    """
    cells_may = trial.task.values == "counts"
    visible = _prints(_visible_cells(trial)) if cells_may else set()
    for population, case in zip(found, trial.cases, strict=True):
        if case.truth is None:
            continue
        truth = case.truth
        if population.cells is not None and truth.observed.cells is not None:
            real_cells = _prints(truth.observed.cells) - visible
            copied = real_cells & _prints(population.cells)
            if copied:
                _refuse(f"{len(copied)} held-out cells", case.name)
            continue
        real = _whole_profile(trial, case) if cells_may else truth.observed.mean
        nearest = np.linalg.norm(population.mean - real)
        if nearest > _EQUAL * np.linalg.norm(real - truth.control.mean):
            continue
        # Effects are single rows, and two conditions may have equal ones.
        if cells_may or not _is_visible(real, trial):
            _refuse("the profile of the held-out cells", case.name)


def _refuse(what: str, name: str) -> None:
    msg = (
        f"The prediction of {name!r} contains {what}: the method has seen what it was asked to "
        "predict. Fit it on the visible cells alone."
    )
    raise LeakError(msg)


def _visible_cells(trial: Trial) -> Matrix:
    return log_normalize(matrix_of(trial.visible, trial.task.layer))


def _is_visible(effect: NDArray[np.floating], trial: Trial) -> bool:
    rows = chosen_genes(matrix_of(trial.visible, trial.task.layer))
    away = np.linalg.norm(rows - effect, axis=1)
    return bool(away.min() <= _EQUAL * np.linalg.norm(effect))


def _whole_profile(trial: Trial, case: Case) -> NDArray[np.floating]:
    """Return the profile of all held-out cells of a case, those left out of the score too."""
    return pseudobulk(matrix_of(trial.answers, trial.task.layer)[case.rows])


def _prints(cells: Matrix) -> set[bytes]:
    """Return a fingerprint of each cell that has enough genes to be told from others."""
    return set(_each_print(cells))


def _each_print(cells: Matrix) -> Iterator[bytes]:
    for start in range(0, cells.shape[0], _CHUNK):
        part = chosen_genes(cells[start : start + _CHUNK])
        rounded = np.round(part.astype(np.float32), _DECIMALS)
        for row in rounded[(rounded != 0).sum(axis=1) >= _TELLING]:
            yield row.tobytes()
