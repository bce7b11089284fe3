"""`scvi-perturb demo`: from a screen to predicted cells, and how good they are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scvi_perturb._core import CONTROL, TARGET_SUM, UnknownPerturbationError
from scvi_perturb._files import write_anndata, write_table, write_text, writing, writing_files
from scvi_perturb._version import versions
from scvi_perturb.benchmark import REPLICATE, markdown_table
from scvi_perturb.benchmark.results import CLEAR
from scvi_perturb.benchmark.runner import quiet
from scvi_perturb.cli._benchmark import number, score_table
from scvi_perturb.cli._held_out import Case, cases, hold_out
from scvi_perturb.cli._screen import PreparedScreen, open_screen, smaller, tell, with_genes
from scvi_perturb.cli._train import fit, one_thread
from scvi_perturb.data.reader import read_screen
from scvi_perturb.data.simulate.config import SimulatorConfig
from scvi_perturb.data.simulate.screen import simulate_screen
from scvi_perturb.metrics import (
    BASIC,
    METRICS,
    CellPopulation,
    Comparison,
    GroundTruth,
    Space,
    fit_pca,
    log_normalize,
    score,
)
from scvi_perturb.model.diffusion import PerturbDiffusion
from scvi_perturb.pl import effect_scatter, training_history, umap_real_and_predicted
from scvi_perturb.predictors.baselines import Additive, ContextMean, NoChange
from scvi_perturb.predictors.cells import ShiftedControl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from rich.console import Console

    from scvi_perturb.cli._app import DemoOptions
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.metrics import Matrix
    from scvi_perturb.predictors.base import MeanPredictor

METHOD, MODEL = "method", "PerturbDiffusion"
N_SAMPLES: Final = 500
#: What is printed; files hold all.
_PRINTED: Final = ("pearson_delta", "nmse", "energy", "variance_ratio", "zero_fraction_error")
#: Combinations are not quite sums of their parts, as in real screens.
_SIMULATION: Final = SimulatorConfig(interaction_strength=0.3)
#: Most cells that a simple predictor draws of a condition.
_MOST_DRAWN: Final = 2000
#: Conditions in the figure of effects; perturbations, cells of each and cells around in the UMAP.
_MOST_EFFECTS, _MOST_COLOURS, _CELLS_A_CASE, _BACKGROUND_CELLS = 6, 3, 250, 2000
FILES: Final = {
    "predicted_cells.h5ad": "sampled cells, integer counts",
    "effects.h5ad": "predicted effects with intervals, and the measured ones",
    "metrics.md": "scores in tables, and how to read them",
    "metrics.csv": "scores of every condition",
    "split.json": "which cells were held out; read it with Split.from_json",
    "umap_real_and_predicted.png": "real and predicted cells in one UMAP",
    "effects.png": "predicted against measured effect of every gene",
    "training.png": "losses of both stages",
    "report.md": "this text",
}
_READING: Final = """\
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


@quiet()
def run_demo(options: DemoOptions, console: Console) -> None:
    """Run the demo; results are put in place only when all of them are there.

    Raises `UsageError`: When the screen, or what was asked, does not allow for it.
    """
    try:
        with writing_files(options.out, inputs=[options.data]) as folder, one_thread():
            _run(options, folder, console)
    except KeyboardInterrupt as error:
        msg = "nothing was written."
        raise KeyboardInterrupt(msg) from error
    console.print(f"Results are in [bold]{options.out}[/]; begin with report.md.", soft_wrap=True)


def _run(options: DemoOptions, folder: Path, console: Console) -> None:
    clock = {"start": time.perf_counter()}
    source, screen, split, story = _prepare(options, console)
    asked, note = cases(screen, split)
    clock["prepare"] = time.perf_counter()
    model = _train(screen, split, options, console)
    clock["train"] = time.perf_counter()
    console.print(f"Sampling {N_SAMPLES} cells of each of {len(asked)} held-out conditions")
    requests = pd.concat([case.request for case in asked], ignore_index=True)
    sampled = model.sample(requests, n_samples=N_SAMPLES, seed=options.seed)
    effects = _with_measured(model.predict(requests, seed=options.seed), screen, asked)
    clock["sample"] = time.perf_counter()
    with console.status("Comparing with simple predictors"):
        scores = _compare(screen, split, asked, sampled, options.seed)
    clock["compare"] = time.perf_counter()
    with console.status("Drawing figures"):
        size = np.linalg.norm(effects.layers["measured_lfc"], axis=1)
        order = np.argsort(-size * _agreement(scores).clip(min=0), kind="stable")
        draw(folder, _umap(screen, split, asked, sampled, order), effects, order, model)
    clock["draw"] = time.perf_counter()
    seconds = dict(zip([*clock][1:], np.diff([*clock.values()]), strict=True))
    times = f"{sum(seconds.values()):.0f} s: "
    times += ", ".join(f"{part} {spent:.0f}" for part, spent in seconds.items())
    write_anndata(folder / "predicted_cells.h5ad", sampled)
    write_anndata(folder / "effects.h5ad", effects)
    write_table(folder / "metrics.csv", scores)
    split.to_json(folder / "split.json")
    words = {name: says for name, (says, _) in _baselines(split.kind).items()}
    write_text(folder / "metrics.md", _metrics_text(scores, words))
    text = _report_text(
        screen, split, asked, scores, source=source, story=f"{story} {note}".strip(), times=times
    )
    write_text(folder / "report.md", text)
    means, title = _means(scores)
    cells = means[list(_PRINTED)].map(number)
    console.print(score_table(cells, title, {MODEL: "bold", REPLICATE: "dim"}))
    console.print(times)


def _prepare(options: DemoOptions, console: Console) -> tuple[str, PreparedScreen, Split, str]:
    """Return where the screen came from, the screen, what of it is held out, and why."""
    seed = options.seed
    source = f"simulated with seed {seed}" if options.data is None else options.data.name
    with console.status(f"Opening the screen: {source}"):
        raw = (
            simulate_screen(n_cells=6000, n_genes=500, seed=seed, config=_SIMULATION)
            if options.data is None
            else read_screen(options.data)
        )
    screen = smaller(open_screen(raw, options.screen), options.max_cells, seed)
    split, _ = hold_out(screen.adata, screen.contexts, named=options.held_out, seed=seed)
    screen = with_genes(screen, options.max_genes, split.train)
    # A split belongs to the genes of its screen.
    split, story = hold_out(screen.adata, screen.contexts, named=options.held_out, seed=seed)
    tell(screen, source, console)
    console.print("[bold]Held out[/]")
    console.print(f"  {story}", highlight=False, markup=False)
    return source, screen, split, story


def _train(
    screen: PreparedScreen, split: Split, options: DemoOptions, console: Console
) -> PerturbDiffusion:
    search = "" if options.n_steps else ", at first from a part to see how long is best"
    console.print(f"[bold]Training[/]: stage one learns cells, stage two responses{search}")
    lengths = {"max_epochs": options.max_epochs, "n_steps": options.n_steps}
    return fit(
        PerturbDiffusion,
        screen,
        split,
        seed=options.seed,
        progress=console.is_terminal,
        given=lengths,
    )


def _with_measured(effects: AnnData, screen: PreparedScreen, asked: Sequence[Case]) -> AnnData:
    """Add the measured effect of the held-out cells, in the units of the predicted one."""
    counts, obs = screen.adata.X, screen.adata.obs
    library = (
        np.asarray(counts.sum(axis=1)).ravel()
        if screen.library is None
        else obs[screen.library].to_numpy()
    )

    def profile(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.asarray(counts[rows].sum(axis=0), np.float64).ravel()
        return np.log1p(TARGET_SUM * total / library[rows].sum())

    measured = [profile(case.observed) - profile(case.control) for case in asked]
    effects.layers["measured_lfc"] = np.stack(measured).astype(np.float32)
    effects.obs["condition"] = [case.title for case in asked]
    effects.obs["n_cells_measured"] = [len(case.observed) for case in asked]
    return effects


def _baselines(kind: str) -> dict[str, tuple[str, MeanPredictor]]:
    """Return the predictors to compare with, for a kind of split, and what each does in words."""
    mean = (
        "control cells plus the mean change over all training perturbations of the context",
        ContextMean("perturbations", profile="cell_mean"),
    )
    of_contexts = (
        "control cells plus the mean change of the same perturbation in the other contexts",
        ContextMean("contexts", profile="cell_mean"),
    )
    additive = Additive(profile="cell_mean")
    parts = "control cells plus the changes of both parts alone"
    own = "control cells plus the change of the same condition in the training cells"
    of_kind: dict[str, dict[str, tuple[str, MeanPredictor]]] = {
        "unseen_combination": {"mean perturbation": mean, "additive": (parts, additive)},
        "unseen_context": {"mean of contexts": of_contexts},
        "cells": {"mean perturbation": mean, "training mean": (own, additive)},
    }
    no_change = ("control cells as they are", NoChange(profile="cell_mean"))
    return {"no change": no_change, **of_kind[kind]}


def _compare(
    screen: PreparedScreen, split: Split, asked: Sequence[Case], sampled: AnnData, seed: int
) -> pd.DataFrame:
    """Score the cells that the model drew, as many for each case, and every simple predictor.

    Returns one row a method and case: `method`, `condition`, `n_cells`, `clear_effect`, metrics.
    """
    normalized = log_normalize(screen.adata.X)
    space = Space(fit_pca(normalized[split.train], seed=seed))
    fitted = {
        name: ShiftedControl(mean).fit(screen.adata, split, keys=screen.keys)
        for name, (_, mean) in _baselines(split.kind).items()
    }
    rows = []
    for case, drawn in zip(asked, np.split(np.arange(sampled.n_obs), len(asked)), strict=True):
        observed = normalized[case.observed]
        control = CellPopulation.from_cells(normalized[case.control])
        order = np.random.default_rng(seed).permutation(observed.shape[0])
        first, second = (observed[half] for half in np.array_split(order, 2))
        pairs: dict[str, tuple[Matrix | None, Matrix]] = {
            MODEL: (log_normalize(sampled.X[drawn]), observed),
            **{name: (_cells(predictor, case), observed) for name, predictor in fitted.items()},
            REPLICATE: (first, second),
        }
        for method, (cells, truth) in pairs.items():
            if cells is not None:
                real = GroundTruth(CellPopulation.from_cells(truth), control, space, seed=seed)
                scores = score(Comparison(CellPopulation.from_cells(cells), real), BASIC)
                row = {METHOD: method, "condition": case.title, "n_cells": len(case.observed)}
                rows.append(row | scores)
    frame = pd.DataFrame(rows)
    clear = dict(zip([case.title for case in asked], _agreement(frame) >= CLEAR, strict=True))
    frame.insert(3, "clear_effect", frame["condition"].map(clear))
    return frame


def _cells(predictor: ShiftedControl, case: Case) -> Matrix | None:
    """Return predicted log-normalised cells; None where the predictor knows too little."""
    # Without a number, one is drawn for each control cell.
    n_samples = None if len(case.control) <= _MOST_DRAWN else _MOST_DRAWN
    try:
        return predictor.sample(case.request, n_samples=n_samples, seed=0).X
    except UnknownPerturbationError:
        return None


def _agreement(scores: pd.DataFrame) -> NDArray[np.float64]:
    """Return the correlation of the effects of both halves of each case; 0 if undefined."""
    values = scores.loc[scores[METHOD] == REPLICATE, "pearson_delta"]
    return values.fillna(0.0).to_numpy(np.float64)


def draw(
    folder: Path,
    umap: Sequence[Axes],
    effects: AnnData,
    order: NDArray[np.intp],
    model: PerturbDiffusion,
) -> None:
    """Write all figures; effects are those of the conditions that come first in `order`."""
    shown = np.sort(order[:_MOST_EFFECTS])
    scatter = effect_scatter(
        effects.layers["lfc"][shown],
        effects.layers["measured_lfc"][shown],
        genes=list(effects.var_names),
        titles=effects.obs["condition"].iloc[shown].tolist(),
    )
    drawn = {"umap_real_and_predicted": umap, "effects": scatter}
    for name, axes in (drawn | {"training": training_history(model)}).items():
        figure = axes[0].get_figure(root=True)
        if figure is not None:
            with writing(folder / f"{name}.png") as path:
                figure.savefig(path, dpi=150, bbox_inches="tight")
            plt.close(figure)


def _umap(
    screen: PreparedScreen,
    split: Split,
    asked: Sequence[Case],
    sampled: AnnData,
    order: NDArray[np.intp],
) -> list[Axes]:
    """Draw held-out and predicted cells by perturbation, their controls, and other real cells."""
    random = np.random.default_rng(0)

    def some(cells: NDArray[np.int64], most: int = _CELLS_A_CASE) -> NDArray[np.int64]:
        few = len(cells) <= most
        return cells if few else np.sort(random.choice(cells, most, replace=False))

    names = [str(case.request.iloc[0, 0]) for case in asked]
    coloured = list(dict.fromkeys(names[i] for i in order))[:_MOST_COLOURS]
    label = np.full(screen.adata.n_obs, None, object)
    rows, drawn, labels = [some(split.train, _BACKGROUND_CELLS)], [], []
    blocks = np.split(np.arange(sampled.n_obs), len(asked))
    for i in order:
        if names[i] not in coloured:
            continue
        control, observed, predicted = map(some, (asked[i].control, asked[i].observed, blocks[i]))
        label[control], label[observed] = CONTROL, names[i]
        rows += [control, observed]
        drawn.append(predicted)
        labels += [names[i]] * len(predicted)
    chosen = np.unique(np.concatenate(rows))
    real, cells = screen.adata[chosen].copy(), sampled[np.concatenate(drawn)].copy()
    real.obs["cells"] = pd.Series(label[chosen], index=real.obs_names, dtype=object)
    cells.obs["cells"] = labels
    axes = umap_real_and_predicted(real, cells, color="cells", fit_on=screen.adata[split.train])
    axes[0].set_title("real: held-out and control cells")
    return axes


def _metrics_text(scores: pd.DataFrame, baselines: Mapping[str, str]) -> str:
    """Return all tables in Markdown, with what the numbers mean and what simple methods do."""
    means, title = _means(scores)
    does = "\n".join(f"- {name}: {says}." for name, says in baselines.items())
    parts = ["# Metrics", f"{title}.", _markdown(means), _READING + does]
    for condition, group in scores.groupby("condition", sort=False):
        clear = "" if group["clear_effect"].iloc[0] else ", no clear effect"
        parts.append(f"## {condition} ({group['n_cells'].iloc[0]} cells{clear})")
        one = group.set_index(METHOD)[list(BASIC)]
        parts.append(_markdown(one.reindex(means.index).dropna(how="all")))
    return "\n\n".join(parts) + "\n"


def _markdown(values: pd.DataFrame) -> str:
    header = [METHOD, *(METRICS[name].title for name in BASIC)]
    return markdown_table(
        header, [[str(method), *map(number, row)] for method, row in values.iterrows()]
    )


def _report_text(
    screen: PreparedScreen,
    split: Split,
    asked: Sequence[Case],
    scores: pd.DataFrame,
    *,
    source: str,
    story: str,
    times: str,
) -> str:
    """Return what was done, to what, and what to make of it."""
    adata = screen.adata
    means, title = _means(scores)
    parts = [
        "# Demo of scvi-perturb",
        f"Screen: {source}; {adata.n_obs:,} cells, {adata.n_vars:,} genes.",
        "## What was read",
        "\n".join(f"- {line}" for line in screen.notes),
        "## What was held out",
        story,
        f"{len(split.train):,} cells train, {len(split.validation):,} validate, "
        f"{len(split.test):,} are held out (split.json).",
        "\n".join(f"- {case.title}: {len(case.observed)} cells" for case in asked),
        "## How well it was predicted",
        f"{title}. Best method of each metric, the replicate left out:",
        "\n".join(f"- {METRICS[name].title}: {_best(means, name)}" for name in BASIC),
        "All numbers and what they mean: metrics.md. One run says little about a difference of "
        "a few hundredths; repeat with other seeds and held-out conditions before believing it.",
        "## Files",
        "\n".join(f"- `{name}`: {what}" for name, what in FILES.items()),
        f"{times}.",
        f"Versions: {', '.join(f'{name} {n}' for name, n in versions().items())}.",
    ]
    return "\n\n".join(parts) + "\n"


def _means(scores: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the mean of each metric over cases with a clear effect, and a title that says so.

    Where no effect is clear, all cases count. Methods stand in the order of a table: simple ones,
    the model, the replicate.
    """
    clear = scores[scores["clear_effect"]]
    used = clear if len(clear) else scores
    means = used.groupby(METHOD, sort=False)[list(BASIC)].mean()
    order = [m for m in means.index if m not in (MODEL, REPLICATE)] + [MODEL, REPLICATE]
    n, total = used["condition"].nunique(), scores["condition"].nunique()
    title = f"Mean over {n} held-out condition{'s' if n > 1 else ''}"
    if clear.empty:
        title += "; none has a clear effect"
    elif n < total:
        title = (
            f"Mean over the {n} of {total} held-out conditions with a clear effect (its two halves "
            f"agree, Pearson at least {CLEAR})"
        )
    return means.loc[order], title


def _best(means: pd.DataFrame, name: str) -> str:
    metric = METRICS[name]
    values = means.drop(index=REPLICATE)[name].dropna()
    if values.empty:
        return "undefined"
    winner = str(pd.Series(metric.loss(values.to_numpy()), index=values.index).idxmin())
    reached, other = (float(means[name].to_dict()[method]) for method in (winner, REPLICATE))
    return f"{winner} ({number(reached)}; replicate {number(other)})"
