"""Conditions that are ranked among each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.benchmark._case import Case
    from scvi_perturb.metrics import Truth

__all__ = ["with_panels"]


def with_panels(cases: Sequence[Case], *, by_context: bool) -> tuple[Case, ...]:
    """Return cases whose truths know all conditions of their context, or all there are."""
    truths = [case.truth for case in cases]
    again = [None if case.replicate is None else case.replicate.truth for case in cases]
    labels = [case.about["context"] if by_context else "" for case in cases]
    made, made_again = _placed(truths, labels), _placed(again, labels)
    return tuple(
        replace(
            case,
            truth=truth,
            replicate=case.replicate
            and (case.replicate if half is None else replace(case.replicate, truth=half)),
        )
        for case, truth, half in zip(cases, made, made_again, strict=True)
    )


def _placed(truths: Sequence[Truth | None], labels: Sequence[str]) -> list[Truth | None]:
    found: list[Truth | None] = list(truths)
    for label in dict.fromkeys(labels):
        members = [
            (i, truth)
            for i, (truth, own) in enumerate(zip(truths, labels, strict=True))
            if truth is not None and own == label
        ]
        if not members:
            continue
        changes = np.stack([t.observed.mean - t.control.mean for _, t in members])
        targeted = ~np.logical_and.reduce([truth.kept for _, truth in members])
        panel = Panel(changes, targeted)
        for place, (i, truth) in enumerate(members):
            found[i] = replace(truth, panel=panel, place=place)
    return found
