"""The report of a trained model on its screen as one self-contained HTML page."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, drawn_seed
from scvi_perturb._version import versions
from scvi_perturb.benchmark.methods import REPLICATE
from scvi_perturb.benchmark.report import _answers, _tables, _words
from scvi_perturb.benchmark.report._html import (
    METRICS_SECTION,
    Picture,
    picture,
    task_content,
    write_page,
)
from scvi_perturb.benchmark.report._trained import MODEL, TrainedPredictor, answers, compare
from scvi_perturb.benchmark.report._words import counted, number
from scvi_perturb.benchmark.results import CLEAR
from scvi_perturb.data.split.record import held_out_names
from scvi_perturb.pp import validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.benchmark.report._tables import TaskSection
    from scvi_perturb.benchmark.report._trained import Answer, Comparisons
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.model.base.model import PerturbationModel
    from scvi_perturb.pp import ScreenReport

#: Conditions with pictures, conditions with a card, genes named of each.
_MOST_PICTURES, _MOST_CARDS, _MOST_GENES = 6, 24, 3
#: Inches of a square of changes: four pictures of a condition stand side by side.
_SCATTER: Final = (2.8, 3.0)
#: Conditions from which a bootstrap over them says something.
_ENOUGH: Final = 5
#: What a page says of each condition, and of all.
_ERROR: Final = "nmse_vs_no_change"
_READING: Final = (
    "Blue: predicted, with the interval in which the model expects the mean change. The changes "
    "are those that predict returns: differences of log(1 + counts per 10,000). "
)
_READING_REAL: Final = (
    "Diamonds: measured in cells that the model never saw; bars: the same from one half of the "
    "cells and from the other, which is what repeating the experiment gives. In the squares, each "
    "dot is a gene: on the dashed line, it is predicted as it was measured."
)
_CALIBRATION: Final = (
    "A prediction that states how sure it is can be held to it. On the diagonal, it is right as "
    "often as it says. Effect level: intervals of mean changes. Cell level: the spread of single "
    "cells; the replicate shows what is possible."
)
_NOVELTY: Final = (
    "Support says how much the training conditions tell about a condition. It orders requests; it "
    "is no probability. With little support, a prediction is little more than the mean response."
)
_REGIMES: Final = {
    "seen": "measured in training",
    "unseen_context": "perturbation seen, context new",
    "context_transfer": "perturbation seen in other contexts only",
    "unseen_combination": "parts seen, combination new",
    "dose": "dose between those seen",
    "dose_beyond": "dose beyond those seen",
    "unseen_perturbation": "perturbation never seen, predicted from its features",
}


@checked
def study_report(
    model: PerturbationModel,
    adata: AnnData,
    *,
    path: str | Path,
    split: Split | None = None,
    conditions: Sequence[str] | None = None,
    interval: float = 0.9,
    seed: int | None = 0,
    details: Mapping[str, str] | None = None,
) -> Path:
    """Write what a trained model answers on its screen, and how sure that is, as an HTML page.

    Conditions that were held out are shown predicted against real, beside a replicate of the
    experiment and trivial predictors; others as predicted.

    Parameters
    ----------
    model
        A trained model.
    adata
        The screen that it was trained on, with raw counts and the columns of training.
    path
        Where the page is written. It is one file: pictures are inside, and nothing is loaded when
        it is read.
    split
        What the model was trained with. Without one nothing is compared, as nothing is known to
        have been held out.
    conditions
        Perturbations and combinations to show; None shows all that were held out.
    interval
        Coverage of the intervals, between 0 and 1.
    seed
        Seed of all draws.
    details
        More to say under versions and seeds, by name, such as the file of the screen.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    NotTrainedError
        If the model has not been trained.
    UnknownPerturbationError
        If the model does not know a condition that was not held out.
    LeakError
        If a held-out condition is among the training cells.
    SchemaError
        If the split is of other data or another training, the genes are not those of training, or
        there is nothing to show.
    """
    _check_same(model, adata, split)
    if split is None and conditions is None:
        msg = "Without a split nothing is known to be held out; name conditions to show."
        raise SchemaError(msg)
    if conditions is not None and not len(conditions):
        msg = "conditions is empty; name at least one, or leave it out for all that was held out."
        raise SchemaError(msg)
    predictor = TrainedPredictor(model, drawn_seed(seed), interval)
    found = None if split is None else compare(predictor, adata, split)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        asked = answers(predictor, conditions, found)
    notes = sorted({str(one.message) for one in told if issubclass(one.category, UserWarning)})
    page = _Page(predictor, asked, found)
    screen = validate(adata, keys=predictor.keys)
    source = (details or {}).get("screen", "its screen")
    content = page.content() | {
        "subtitle": f"{type(model).__name__} on {source}: {adata.n_obs:,} cells, {adata.n_vars:,} "
        f"genes, {counted(screen.n_conditions, 'condition')}.",
        "data": _data_lines(screen),
        "batches": _batches(screen),
        "split": _split_lines(split),
        "provenance": _provenance(predictor, split, details or {}),
        "training": _training(model),
        "notes": [f"Note: {note}" for note in notes],
    }
    return write_page(path, "study.html.j2", content)


def _check_same(model: PerturbationModel, adata: AnnData, split: Split | None) -> None:
    """Raise `SchemaError` if the screen or the split are not those of training."""
    trained = model.trained_on_
    if not trained:
        return
    if adata.n_vars != trained["n_genes"]:
        msg = (
            f"adata has {adata.n_vars} genes, the model was trained on {trained['n_genes']}; pass "
            "the screen that it was trained on."
        )
        raise SchemaError(msg)
    if split is None:
        return
    own = (split.data_hash, split.kind, split.seed, len(split.train))
    if own != tuple(trained[key] for key in ("data_hash", "split", "split_seed", "n_cells")):
        msg = (
            "The model was not trained with this split, so nothing is known to be held out; pass "
            "the split that `train` was given."
        )
        raise SchemaError(msg)


@dataclass(frozen=True)
class _Page:
    """Words and pictures of the answers of a model."""

    predictor: TrainedPredictor
    answers: list[Answer]
    found: Comparisons | None

    def content(self) -> dict[str, Any]:
        """Return what the template shows of the answers and comparisons."""
        section = None if self.found is None else _section(self.found)
        shown = self._ordered()
        rows = [self._row(answer, section) for answer in shown]
        places = ["answer", "pictures", "rivals", "calibration", "novelty", "data", "split"]
        words = ["Answer", "Predicted against real", "Trivial predictors and replicate"]
        words += ["Calibration", "Novelty", "Data check", "Held out"]
        contents = list(zip(places, words, strict=True))
        contents += [("training", "Training"), ("versions", "Versions and seeds"), METRICS_SECTION]
        if section is None:
            absent = {"rivals", "calibration", "metrics"}
            contents = [one for one in contents if one[0] not in absent]
        left = len(shown) - _MOST_CARDS
        model = type(self.predictor.model).__name__
        return {
            "title": f"Study: {_listed([one.name for one in shown])}",
            "contents": contents,
            "answer": _headline(section, model),
            "cautions": _cautions(section),
            "cards": [_card(answer, row) for answer, row in zip(shown, rows, strict=True)][
                :_MOST_CARDS
            ],
            "more_cards": f"{left} more conditions are in the table." if left > 0 else "",
            "reading": _READING + (_READING_REAL if any(one.held_out for one in shown) else ""),
            "conditions": [
                {"name": one.name, "pictures": self._pictures(one, section)}
                for one in [one for one in shown if one.predicted is not None][:_MOST_PICTURES]
            ],
            "table": pd.DataFrame(rows).rename(columns=_HEADER).fillna(_words.UNDEFINED),
            "task": None if section is None else task_content(section, brief=True),
            "glossary": None if section is None else _tables.glossary(section.metrics),
            "calibration": _CALIBRATION + _coverage(section),
            "novelty_words": _NOVELTY,
            "novelty": _support(shown),
        }

    def _ordered(self) -> list[Answer]:
        """Return what was answered by the size of the measured, or else the predicted effect."""
        sizes = []
        for one in self.answers:
            size = np.nan if one.held_out is None else one.held_out.about["effect"]
            if not np.isfinite(size) and one.predicted is not None:
                size = float(np.linalg.norm(one.predicted.layers["lfc"]))
            sizes.append((one.held_out is None, one.predicted is None, -size))
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        return [self.answers[i] for i in order]

    def _row(self, answer: Answer, section: TaskSection | None) -> dict[str, str]:
        """Return what the table says of a condition, in words."""
        row = {"condition": answer.name, "status": "held out" if answer.held_out else "asked"}
        if answer.held_out is not None:
            row["n_cells"] = f"{answer.held_out.about['n_cells']:,}"
        if answer.predicted is None:
            return row | {"message": answer.message}
        lower, upper = (np.asarray(answer.predicted.layers[x])[0] for x in ("lower", "upper"))
        lfc = np.asarray(answer.predicted.layers["lfc"])[0]
        top = np.argsort(-np.abs(lfc), kind="stable")[:_MOST_GENES]
        names = answer.predicted.var_names
        changed = int(((lower > 0) | (upper < 0)).sum())
        obs = answer.predicted.obs.iloc[0]
        row |= {
            "support": f"{obs['support']:.2f}",
            "changed": f"{changed} of {len(lfc)}" if np.isfinite(lower).any() else "",
            "largest": ", ".join(f"{names[g]} {lfc[g]:+.2f}" for g in top),
        }
        if "scenario" in obs:
            row["regime"] = _REGIMES.get(str(obs["scenario"]), str(obs["scenario"]))
        if section is not None and answer.held_out is not None:
            row |= _judged(section, answer.held_out)
        return row

    def _pictures(self, answer: Answer, section: TaskSection | None) -> list[Picture]:
        """Return effects with intervals, and each prediction against the measurement."""
        predicted = answer.predicted
        if predicted is None:
            return []
        others: dict[str, NDArray[np.float64]] = {}
        scatters: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        truth = None if answer.held_out is None else answer.held_out.truth
        if self.found is not None and answer.held_out is not None and truth is not None:
            control = truth.control.mean
            change = partial(self.found.change, answer.place)
            real = change(control, truth.observed.mean - control, real=True)
            lfc = np.asarray(predicted.layers["lfc"], np.float64)[0]
            others["measured"], scatters["model"] = real, (real, lfc)
            again = answer.held_out.replicate
            if again is not None:
                own = again.truth.control.mean
                means = again.predicted.mean, again.truth.observed.mean
                halves = [change(own, mean - own, real=True) for mean in means]
                others["measured in two halves of the cells"] = np.stack(halves)
            name = _best_mean(section, self.found)
            if name is not None:
                rival = change(control, self.found.trivial[name][answer.place], real=False)
                title = f"trivial: {_words.title_of(name, section.titles if section else None)}"
                others[title], scatters[title] = rival, (real, rival)
            if again is not None:
                scatters["replicate"] = halves[1], halves[0]
        draw = partial(_answers.effect_intervals, predicted, others=others)
        size = _answers.effect_size(min(12, predicted.n_vars), len(others))
        made = [picture(draw, _effect_words(answer, others), size)]
        for name, (measured, own) in scatters.items():
            words = (
                f"{answer.name}: change of every gene by {name} against the measured one, "
                f"correlation {_correlation(own, measured)}"
            )
            made.append(picture(partial(_scatter, measured, own, name), words, _SCATTER))
        return made


_HEADER: Final = {
    "condition": "condition",
    "status": "status",
    "n_cells": "cells measured",
    "support": "support",
    "regime": "regime",
    "changed": "genes changed",
    "largest": "largest predicted changes",
    "error": "error / no change",
    "trivial_error": "trivial",
    "replicate_error": "replicate",
    "correlation": "correlation with measured",
    "replicate_correlation": "of two halves",
    "message": "not answered",
}


def _section(found: Comparisons) -> TaskSection:
    return _tables.read_sections(found.results)[0]


def _scatter(measured: Any, own: Any, name: str, *, ax: Axes) -> None:  # noqa: ANN401
    from scvi_perturb._plotting import COLOURS, DARK, scatter_effects

    colour = {"model": COLOURS[0], "replicate": DARK}.get(name, COLOURS[1])
    scatter_effects(ax, measured, own, what="change from control", color=colour)
    ax.set_title(name, fontsize=10)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    if min(one.std(), other.std()) <= 1e-9:
        return "undefined"
    return f"{np.corrcoef(one, other)[0, 1]:.2f}"


def _effect_words(answer: Answer, others: Mapping[str, NDArray[np.float64]]) -> str:
    """Return what a picture of effects shows, for those who cannot see it."""
    predicted = answer.predicted
    if predicted is None:
        return ""
    lfc = np.asarray(predicted.layers["lfc"])[0]
    real = others.get("measured")
    told = []
    for gene in np.argsort(-np.abs(lfc if real is None else real), kind="stable")[:5]:
        said = f"{predicted.var_names[gene]} predicted {lfc[gene]:+.2f}"
        told.append(said if real is None else f"{said}, measured {real[gene]:+.2f}")
    return f"Effects of {answer.name} on the genes that change most: {'; '.join(told)}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    some = ", ".join(names[:most])
    return some if len(names) <= most else f"{some} and {len(names) - most} more"


def _best_mean(section: TaskSection | None, found: Comparisons) -> str | None:
    """Return the trivial prediction of means with the least error."""
    if section is None:
        return None
    rows = section.summary[section.summary["metric"] == _ERROR].set_index("method")["u"]
    known = rows.reindex(list(found.trivial)).dropna()
    return None if known.empty else str(known.idxmin())


def _judged(section: TaskSection, condition: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the errors and correlations of one held-out condition."""
    frame = section.frame[section.frame["condition"] == condition.name]
    values = frame.pivot_table(index="method", columns="metric", values="value")
    if _ERROR not in values or MODEL not in values.index:
        return {}
    errors = values[_ERROR]
    trivial = [m for m in errors.index if section.roles.get(m) in ("mean", "cells")]
    made = {
        "error": _error(errors[MODEL]),
        "trivial_error": _error(errors[trivial].min()) if trivial else _words.UNDEFINED,
        "replicate_error": _error(errors.get(REPLICATE, np.nan)),
    }
    if "pearson_delta" in values:
        pearson = values["pearson_delta"]
        made["correlation"] = number(pearson.get(MODEL, np.nan))
        made["replicate_correlation"] = number(condition.about["agreement"])
    return made


def _error(value: float) -> str:
    """Return an error that is freed of the noise of the cells, which may leave less than 0."""
    return number(max(value, 0.0))


def _card(answer: Answer, row: Mapping[str, str]) -> dict[str, Any]:
    """Return a condition in a few sentences."""
    if answer.held_out is None:
        status = "Predicted; not among what was held out"
    else:
        status = f"Held out; {row['n_cells']} cells measured"
        agreement = answer.held_out.about["agreement"]
        if np.isfinite(agreement) and agreement < CLEAR:
            status += "; the effect is too weak to be clear in two halves of the cells"
    if answer.predicted is None:
        return {"name": answer.name, "status": status, "lines": [f"No answer: {row['message']}"]}
    lines = [f"Largest predicted changes: {row['largest']}."]
    if row["changed"]:
        lines[0] += f" The interval excludes 0 for {row['changed']} genes."
    if "error" in row:
        lines.append(
            f"Error {row['error']} (no change: 1; best trivial: {row['trivial_error']}; "
            f"replicate: {row['replicate_error']})."
        )
    regime = f"; {row['regime']}" if "regime" in row else ""
    lines.append(f"Support {row['support']}{regime}.")
    return {"name": answer.name, "status": status, "lines": lines}


def _headline(section: TaskSection | None, model: str) -> list[str]:
    """Return in one or two sentences how good the model is, against what."""
    if section is None:
        return [
            f"These are predictions of {model}. Nothing was held out, so this page cannot say how "
            "good they are."
        ]
    row = _summary_row(section, _ERROR)
    if row is None:
        return [f"{model} answered none of the held-out conditions; see the reasons below."]
    names = _listed(list(section.conditions))
    held_out = f"{counted(int(row.n_conditions), 'held-out condition')} ({names})"
    if not np.isfinite(row.u):
        return [
            f"The {held_out} cannot be told from the controls by their means, so the error of "
            f"{model} has no scale. The metrics of cells are below."
        ]
    trivial = _words.title_of(str(row.best_trivial), section.titles)
    worse = ", so predicting no change is better" if row.u > 1 else ""
    return [
        f"Over {held_out}, the error of {model} is {_error(row.u)} of that of predicting no "
        f"change{worse}. The best trivial predictor ({trivial}) has {_error(row.b)}, a replicate "
        f"of the experiment {_error(row.r)}.",
        _verdict(section, row, trivial),
    ]


def _verdict(section: TaskSection, row: Any, trivial: str) -> str:  # noqa: ANN401
    """Return whether the model is better than the best trivial predictor, and how sure that is."""
    if not np.isfinite(row.s):
        return (
            "The replicate is not clearly better than the trivial predictor: these cells cannot "
            "tell a good model from a trivial one."
        )
    if row.s <= 0 < row.s_high:
        return (
            "On these conditions, the model cannot be told from the best trivial predictor, which "
            "is chosen in hindsight."
        )
    if row.s <= 0:
        n_trivial = sum(role in ("mean", "cells") for role in section.roles.values())
        return (
            f"On these conditions, the model is no better than the best of {n_trivial} trivial "
            f"predictors; for means, prefer {trivial}."
        )
    way = f"{row.s:.0%} of the way from the trivial predictor to the replicate"
    if row.s_low > 0 and row.n_conditions >= _ENOUGH:
        return f"So the model is better than every trivial predictor: it goes {way}."
    few = "so few conditions do" if row.n_conditions < _ENOUGH else "the interval does"
    return f"So the model goes {way}, but {few} not make that certain."


def _cautions(section: TaskSection | None) -> list[str]:
    if section is None:
        return []
    made = []
    if section.n_conditions < _ENOUGH:
        made.append(
            f"Only {counted(section.n_conditions, 'condition')} held out: intervals over "
            "conditions say little. Hold out more to judge the model, not these conditions."
        )
    if section.n_clear == 0 and section.n_conditions:
        made.append("No held-out condition has a clear effect in two halves of its cells.")
    return made


def _summary_row(section: TaskSection, metric: str) -> Any:  # noqa: ANN401
    rows = section.summary
    rows = rows[(rows["metric"] == metric) & (rows["method"] == MODEL)]
    return None if rows.empty else next(rows.itertuples())


def _coverage(section: TaskSection | None) -> str:
    row = None if section is None else _summary_row(section, "effect_coverage_90")
    return "" if row is None else f" 90 % intervals of the model hold {row.u:.0%} of the changes."


def _support(shown: Sequence[Answer]) -> list[Picture]:
    known = [(one.name, one.predicted) for one in shown if one.predicted is not None]
    known = known[:40]
    if not known:
        return []
    names = [name for name, _ in known]
    values = [float(predicted.obs["support"].iloc[0]) for _, predicted in known]
    told = "; ".join(f"{n} {v:.2f}" for n, v in zip(names[:8], values, strict=False))
    draw = partial(_answers.condition_support, names, values)
    return [picture(draw, f"Support by training: {told}", _answers.support_size(len(names)))]


def _training(model: PerturbationModel) -> list[Picture]:
    return [
        picture(
            partial(_answers.training_curves, model, stage=stage),
            f"Losses of training and validation, {_answers.STAGES[stage].lower()}",
            (4.2, 3.0),
        )
        for stage in _answers.trained_stages(model)
    ]


def _data_lines(report: ScreenReport) -> list[str]:
    """Return the lines of a report but its table."""
    plain = replace(report, controls_by_batch=pd.DataFrame())
    lines = [line.strip().removeprefix("- ") for line in str(plain).splitlines()]
    return [line for line in lines if line]


def _batches(report: ScreenReport) -> pd.DataFrame:
    """Return the numbers of control cells by context and batch; empty without batches."""
    table = report.controls_by_batch
    if table.shape[1] < 2:
        return pd.DataFrame()
    shown = table.map("{:,}".format)
    shown.insert(0, "controls of", [str(name) for name in table.index])
    return shown


def _split_lines(split: Split | None) -> list[str]:
    if split is None:
        return ["Nothing is known to be held out: the report was made without a split."]
    parts = {name: len(getattr(split, name)) for name in ("train", "validation", "test")}
    hidden = (
        "no training or validation cell has a held-out condition"
        if split.held_out
        else "no held-out cell is among the training or validation cells"
    )
    lines = [
        _words.HELD_OUT.get(split.kind, split.kind),
        f"{parts['train']:,} cells train, {parts['validation']:,} validate, "
        f"{parts['test']:,} are held out.",
        f"Checked: {hidden}, and the split is of these counts, cells and genes.",
    ]
    if split.held_out:
        lines.insert(1, f"Held out: {_listed(held_out_names(split), 12)}.")
    return lines


def _provenance(
    predictor: TrainedPredictor, split: Split | None, details: Mapping[str, str]
) -> list[tuple[str, str]]:
    trained = predictor.model.trained_on_
    facts = {"model": type(predictor.model).__name__, **details}
    facts |= {
        "trained on": f"{trained['n_cells']:,} cells, {trained['n_genes']:,} genes",
        "seed of training": str(trained["seed"]),
        "seed of the split": "-" if split is None else str(split.seed),
        "seed of this report": str(predictor.seed),
        "fingerprint of the data": str(trained["fingerprint"])[:16],
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return list(facts.items())
