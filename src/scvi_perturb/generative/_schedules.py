"""Noise schedules by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from scvi_perturb._errors import check_choice
from scvi_perturb.generative._cosine import CosineSchedule
from scvi_perturb.generative._linear import LinearSchedule
from scvi_perturb.generative._path import LinearPath

if TYPE_CHECKING:
    from scvi_perturb.generative._schedule import Schedule

__all__ = ["ScheduleName", "get_schedule"]

ScheduleName = Literal["cosine", "linear", "path"]

_SCHEDULES: Final[dict[str, type[CosineSchedule | LinearSchedule | LinearPath]]] = {
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "path": LinearPath,
}


def get_schedule(name: ScheduleName) -> Schedule:
    """Return the schedule of this name with its default parameters.

    Parameters
    ----------
    name
        "cosine", "linear" (both variance-preserving) or "path" (straight line).

    Raises
    ------
    ValueError
        If the name is not known.
    """
    check_choice("schedule", name, _SCHEDULES)
    return _SCHEDULES[name]()
