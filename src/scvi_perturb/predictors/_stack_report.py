"""What a stack has to say of itself: weights, errors of members, coverage of intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb.predictors._stack_fit import clues_of
from scvi_perturb.predictors._stack_spread import LEVELS, Spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.predictors._questions import Question
    from scvi_perturb.predictors._stack_fit import LeftOut, QuestionStack

__all__ = ["report_of", "weights_of"]


def weights_of(stacks: Mapping[Question, QuestionStack]) -> pd.DataFrame:
    """Return the weights of members, a row a question; NaN for those who do not take part."""
    found = {
        name: stack.solve(list(stack.left_out.said))[0]
        for name, stack in stacks.items()
        if stack.left_out is not None
    }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("question")


def report_of(stacks: Mapping[Question, QuestionStack]) -> pd.DataFrame:
    """Return how each question was answered where the answer is known, a row for each.

    Columns: `n_units`, the number of exchangeable units (contexts or conditions) left out in turn;
    `error`, squared error by squared change, sampling variance subtracted from both, of the stack
    with the weights that it has, NaN where there is no change; `best_member` and
    `best_member_error`; and `coverage_50` to `coverage_95`, the share of left-out changes inside
    their intervals when the law of errors is known from the other folds alone, the noise of what
    was measured added to it.
    """
    rows = {
        name: _row(stack, stack.left_out)
        for name, stack in stacks.items()
        if stack.left_out is not None
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("question")


def _row(stack: QuestionStack, tried: LeftOut) -> dict[str, object]:
    weights, _ = stack.solve(list(tried.said))
    said = np.stack([tried.said[name] for name in weights])
    clues = clues_of(said, np.array(list(weights.values())), tried.posterior)
    size = float((tried.truth**2 - tried.noise).sum())
    size = size if size > 0 else np.nan  # no change is to be told from noise
    errors = {
        name: float(((tried.truth - own) ** 2 - tried.noise).sum()) / size
        for name, own in tried.said.items()
    }
    best = min(errors, key=lambda name: errors[name])
    made: dict[str, object] = {
        "n_units": len(np.unique(tried.unit)),
        "error": float(((tried.truth - clues.mean) ** 2 - tried.noise).sum()) / size,
        "best_member": best,
        "best_member_error": errors[best],
    }
    error = tried.truth - clues.mean
    covered = np.zeros((len(LEVELS), *error.shape), dtype=bool)
    for fold in np.unique(tried.fold):
        own = tried.fold == fold
        spread = Spread.fit(
            error[~own],
            tried.noise[~own],
            clues.some(~own),
            fold=tried.fold[~own],
            unit=tried.unit[~own],
        )
        rank = spread.rank(clues.some(own), error[own], tried.noise[own])
        for i, level in enumerate(LEVELS):
            covered[i, own] = rank <= level
    for i, level in enumerate(LEVELS):
        made[f"coverage_{100 * level:.0f}"] = float(covered[i].mean())
    return made
