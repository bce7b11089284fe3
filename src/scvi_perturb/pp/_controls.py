"""How public screens call their control cells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scvi_perturb.data.condition import as_label

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ControlLabels", "looks_like_control"]

#: In small letters, without spaces, hyphens and underscores.
_LABELS = frozenset(
    (
        *("control", "controls", "ctrl", "ctl", "negctrl", "negativecontrol", "mock"),
        *("nontargeting", "nontargetingcontrol", "nt", "ntc", "safetargeting", "scrambled"),
        *("scramble", "vehicle", "dmso", "pbs"),
        *("untreated", "nottreated", "unperturbed", "unstimulated", "unstim"),
    )
)


def looks_like_control(label: object) -> bool:
    """Whether a label is a usual name of controls, whatever its case, spaces and hyphens."""
    return re.sub(r"[-_\s]", "", as_label(label)).casefold() in _LABELS


class ControlLabels:
    """Says which labels are controls, and remembers which ones it met.

    Parameters
    ----------
    given
        The control's label or labels; None takes the usual ones.
    """

    def __init__(self, given: str | Sequence[str] | None) -> None:
        listed = given if isinstance(given, (list, tuple)) else [given]
        self._given = None if given is None else {as_label(label) for label in listed}
        self.met: set[str] = set()

    def __contains__(self, label: str) -> bool:
        """Whether the label is a control's."""
        control = looks_like_control(label) if self._given is None else label in self._given
        if control:
            self.met.add(label)
        return control
