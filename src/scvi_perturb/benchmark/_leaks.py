"""A prediction that holds what it was asked to predict is no prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._errors import LeakError
from scvi_perturb.benchmark._prints import prints
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.metrics import log_normalize, pseudobulk
from scvi_perturb.metrics._structure import chosen_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.benchmark._case import Case
    from scvi_perturb.benchmark._trial import Trial
    from scvi_perturb.metrics import Matrix, Population

__all__ = ["refuse_copied_cells", "refuse_copied_profiles"]

#: A mean this near to the measured one, as a share of the change, is the measured one.
_EQUAL = 1e-5


def refuse_copied_cells(cells: Matrix, case: Case, trial: Trial) -> None:
    """Raise if held-out cells are among log-normalised predicted ones `(n_cells, n_genes)`.

    Methods are given the visible cells alone. One that reaches the others in another way, through
    a file or through what it was made with, is found here: its run fails, whatever its score.

    Raises
    ------
    LeakError
        Naming the condition.
    """
    real = None if case.truth is None else case.truth.observed.cells
    if real is None:
        return
    held = log_normalize(matrix_of(trial.answers, trial.task.layer)[case.rows])
    copied = prints(held) & prints(cells)
    copied -= trial.visible_prints if copied else set()
    if copied:
        _refuse(f"{len(copied)} held-out cells", case.name)


def refuse_copied_profiles(found: Sequence[Population], trial: Trial) -> None:
    """Raise if the measured profile of a held-out condition is what was predicted.

    Raises
    ------
    LeakError
        Naming the condition.
    """
    counts = trial.task.values == "counts"
    for population, case in zip(found, trial.cases, strict=True):
        if case.truth is None:
            continue
        real = _whole_profile(trial, case) if counts else case.truth.observed.mean
        nearest = np.linalg.norm(population.mean - real)
        if nearest > _EQUAL * np.linalg.norm(real - case.truth.control.mean):
            continue
        # Effects are single rows, and two conditions may have equal ones.
        if counts or not _is_visible(real, trial):
            _refuse("the profile of the held-out cells", case.name)


def _refuse(what: str, name: str) -> None:
    msg = (
        f"The prediction of {name!r} contains {what}: the method has seen what it was asked to "
        "predict. Fit it on the visible cells alone."
    )
    raise LeakError(msg)


def _is_visible(effect: NDArray[np.floating], trial: Trial) -> bool:
    rows = chosen_genes(matrix_of(trial.visible, trial.task.layer))
    away = np.linalg.norm(rows - effect, axis=1)
    return bool(away.min() <= _EQUAL * np.linalg.norm(effect))


def _whole_profile(trial: Trial, case: Case) -> NDArray[np.floating]:
    """Return the profile of all held-out cells of a case, those left out of the score too."""
    return pseudobulk(matrix_of(trial.answers, trial.task.layer)[case.rows])
