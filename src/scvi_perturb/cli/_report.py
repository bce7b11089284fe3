"""What came out, for a reader: tables and words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from rich import box
from rich.table import Table

from scvi_perturb._version import __version__
from scvi_perturb.benchmark._view._markdown import markdown_table
from scvi_perturb.benchmark.results import CLEAR
from scvi_perturb.cli._compare import METHOD, MODEL, REPLICATE, baselines, summary
from scvi_perturb.metrics import BASIC, METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scvi_perturb.cli._cases import Case
    from scvi_perturb.cli._hold_out import HeldOut
    from scvi_perturb.cli._screen import Screen

__all__ = ["metrics_text", "report_text", "rich_table"]

#: What is printed; files hold all.
_PRINTED: Final = ("pearson_delta", "nmse", "energy", "variance_ratio", "zero_fraction_error")
_ARROWS: Final = {"higher": "high", "lower": "low", "nearer": "near 1", "none": "-"}
READING: Final = """\
- Pearson (higher is better): correlation over genes of predicted and measured change from control;
  also over the 100 genes with the largest measured change. Undefined for no change.
- nmse (lower): squared error of the mean over the squared true effect, freed of the noise of the
  measurement; nmse / no change: the same error over that of emitting the measured controls.
- energy (lower): energy distance of predicted and held-out cells, the whole distribution, in 50
  principal components of training cells.
- variance ratio (1 is right): predicted over measured variance between cells, median over the
  same 100 genes.
- zero error (lower): mean over genes of |difference of the shares of cells without a count|.
- replicate: one random half of the held-out cells predicts the other; what an experiment reaches.
"""


def rich_table(scores: pd.DataFrame) -> Table:
    """Return the table that is printed."""
    means, n = summary(scores)
    table = Table(title=_title(scores, n), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for name in _PRINTED:
        heading = f"{METRICS[name].title}\n({_ARROWS[METRICS[name].direction]})"
        table.add_column(heading, justify="right", no_wrap=True)
    for method, row in means.iterrows():
        style = "bold" if method == MODEL else "dim" if method == REPLICATE else None
        table.add_row(str(method), *(_number(row[name]) for name in _PRINTED), style=style)
    return table


def metrics_text(scores: pd.DataFrame, kind: str) -> str:
    """Return all tables in Markdown, with what the numbers mean."""
    means, n = summary(scores)
    header = [METHOD, *(METRICS[name].title for name in BASIC)]
    rows = [[str(m), *(_number(row[name]) for name in BASIC)] for m, row in means.iterrows()]
    parts = [
        "# Metrics",
        "",
        f"{_title(scores, n)}.",
        "",
        markdown_table(header, rows),
        "",
        READING,
    ]
    parts += [f"- {name}: {baseline.says}." for name, baseline in baselines(kind).items()]
    for condition, group in scores.groupby("condition", sort=False):
        clear = "" if group["clear_effect"].iloc[0] else ", no clear effect"
        by_method = group.set_index(METHOD).reindex(means.index).dropna(how="all")
        rows = [[str(m), *(_number(r[name]) for name in BASIC)] for m, r in by_method.iterrows()]
        head = f"## {condition} ({group['n_cells'].iloc[0]} cells{clear})"
        parts += ["", head, "", markdown_table(header, rows)]
    return "\n".join([*parts, ""])


def report_text(
    screen: Screen,
    held: HeldOut,
    asked: Sequence[Case],
    scores: pd.DataFrame,
    *,
    source: str,
    note: str,
    seconds: Mapping[str, float],
    files: Mapping[str, str],
) -> str:
    """Return what was done, to what, and what to make of it."""
    split, adata = held.split, screen.adata
    means, n = summary(scores)
    best = [f"- {METRICS[name].title}: {_best(means, name)}" for name in BASIC]
    parts = [
        "# Demo of scvi-perturb",
        "",
        f"Version {__version__}; screen: {source}; {adata.n_obs:,} cells, {adata.n_vars:,} genes.",
        "",
        "## What was read",
        "",
        *(f"- {line}" for line in screen.notes),
        "",
        "## What was held out",
        "",
        held.story,
        "",
        f"{len(split.train):,} cells train, {len(split.validation):,} validate, "
        f"{len(split.test):,} are held out (split.json).",
        *(["", note] if note else []),
        "",
        *(f"- {case.title}: {len(case.observed)} cells" for case in asked),
        "",
        "## How well it was predicted",
        "",
        f"{_title(scores, n)}. Best method of each metric, the replicate left out:",
        "",
        *best,
        "",
        "All numbers and what they mean: metrics.md. One run says little about a difference of "
        "a few hundredths; repeat with other seeds and held-out conditions before believing it.",
        "",
        "## Files",
        "",
        *(f"- `{name}`: {what}" for name, what in files.items()),
        "",
        "Seconds: " + ", ".join(f"{what} {time:.0f}" for what, time in seconds.items()) + ".",
        "",
    ]
    return "\n".join(parts)


def _title(scores: pd.DataFrame, n: int) -> str:
    total = scores["condition"].nunique()
    if not scores["clear_effect"].any():
        return f"Mean over {n} held-out conditions; none has a clear effect"
    if n == total:
        return f"Mean over {n} held-out condition{'s' if n > 1 else ''}"
    return (
        f"Mean over the {n} of {total} held-out conditions with a clear effect (its two halves "
        f"agree, Pearson at least {CLEAR})"
    )


def _best(means: pd.DataFrame, name: str) -> str:
    metric = METRICS[name]
    values = means.drop(index=REPLICATE)[name].dropna()
    if values.empty:
        return "undefined"
    sign = -1 if metric.direction == "higher" else 1
    distance = (values - metric.best).abs() if metric.direction == "nearer" else sign * values
    winner = str(distance.idxmin())
    reached, other = (float(means[name].to_dict()[method]) for method in (winner, REPLICATE))
    return f"{winner} ({_number(reached)}; replicate {_number(other)})"


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
