"""`scvi-perturb demo`: from a screen to predicted cells, and how good they are."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import torch
from rich.progress import Progress

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb.cli._cases import Case, cases
from scvi_perturb.cli._compare import agreement, baselines, compare
from scvi_perturb.cli._figures import FIGURES, draw
from scvi_perturb.cli._hold_out import HeldOut, hold_out
from scvi_perturb.cli._options import DemoOptions, UsageError
from scvi_perturb.cli._report import metrics_text, report_text, rich_table
from scvi_perturb.cli._screen import Screen, open_screen, read, simulated, smaller, with_genes
from scvi_perturb.model.diffusion import PerturbDiffusion
from scvi_perturb.pp import validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from rich.console import Console

    from scvi_perturb.data.split.record import Split

__all__ = ["demo"]

N_SAMPLES: Final = 500
FILES: Final = {
    "predicted_cells.h5ad": "sampled cells, integer counts",
    "effects.h5ad": "predicted effects with intervals, and the measured ones",
    "metrics.md": "scores in tables, and how to read them",
    "metrics.csv": "scores of every condition",
    "split.json": "which cells were held out; read it with Split.from_json",
    **FIGURES,
    "report.md": "this text",
}


def demo(options: DemoOptions, console: Console) -> None:
    """Run the demo; results are put in place only when all of them are there.

    Raises
    ------
    UsageError
        When the screen, or what was asked, does not allow for it.
    """
    with _results(options.out) as folder, _one_thread():
        _run(options, folder, console)
    console.print(f"Results are in [bold]{options.out}[/]; begin with report.md.", soft_wrap=True)


def _run(options: DemoOptions, folder: Path, console: Console) -> None:
    clock = _Clock()
    source, screen, held = _prepare(options, console)
    asked, note = cases(screen, held.split)
    clock.lap("prepare")
    model = _train(screen, held.split, options, console)
    clock.lap("train")
    console.print(f"Sampling {N_SAMPLES} cells of each of {len(asked)} held-out conditions")
    requests = pd.concat([case.request for case in asked], ignore_index=True)
    sampled = model.sample(requests, n_samples=N_SAMPLES, seed=options.seed)
    effects = _with_measured(model.predict(requests, seed=options.seed), screen, asked)
    clock.lap("sample")
    with Progress(console=console, transient=True) as progress:
        n_methods = len(baselines(held.split.kind)) + 2
        task = progress.add_task("Comparing with simple predictors", total=n_methods * len(asked))
        scores = compare(
            screen,
            held.split,
            asked,
            sampled,
            seed=options.seed,
            advance=lambda: progress.advance(task),
        )
    clock.lap("compare")
    with console.status("Drawing figures"):
        draw(
            folder,
            screen=screen,
            split=held.split,
            model=model,
            asked=asked,
            sampled=sampled,
            effects=effects,
            agreement=agreement(scores),
        )
    clock.lap("draw")
    sampled.write_h5ad(folder / "predicted_cells.h5ad")
    effects.write_h5ad(folder / "effects.h5ad")
    scores.to_csv(folder / "metrics.csv", index=False, float_format="%.6g")
    held.split.to_json(folder / "split.json")
    _write(folder / "metrics.md", metrics_text(scores, held.split.kind))
    text = report_text(
        screen, held, asked, scores, source=source, note=note, seconds=clock.seconds, files=FILES
    )
    _write(folder / "report.md", text)
    console.print(rich_table(scores))
    console.print(clock.text())


def _prepare(options: DemoOptions, console: Console) -> tuple[str, Screen, HeldOut]:
    """Return the screen, where it came from, and what of it is held out."""
    path = options.screen.data
    if path is None:
        source = f"simulated with seed {options.seed}"
        with console.status("Simulating a screen"):
            raw = simulated(options.seed)
    else:
        source = path.name
        with console.status(f"Reading {path.name}"):
            raw = read(path)
    screen = smaller(open_screen(raw, options.screen), options.max_cells, options.seed)
    named, seed = options.held_out, options.seed
    held = hold_out(screen.adata, screen.contexts, named=named, seed=seed)
    screen = with_genes(screen, options.max_genes, held.split.train)
    held = hold_out(screen.adata, screen.contexts, named=named, seed=seed)  # of these genes
    console.print(f"[bold]Screen[/]: {source}")
    report = validate(screen.adata, context_keys=screen.contexts)
    for line in (*screen.notes, *str(report).splitlines()):
        console.print(f"  {line}", highlight=False, markup=False)
    console.print("[bold]Held out[/]")
    console.print(f"  {held.story}", highlight=False, markup=False)
    return source, screen, held


def _train(
    screen: Screen, split: Split, options: DemoOptions, console: Console
) -> PerturbDiffusion:
    PerturbDiffusion.setup_anndata(
        screen.adata,
        context_keys=list(screen.contexts),
        batch_key=screen.batch,
        library_key=screen.library,
    )
    model = PerturbDiffusion(screen.adata, seed=options.seed)
    search = "" if options.n_steps else ", at first from a part to see how long is best"
    console.print(f"[bold]Training[/]: stage one learns cells, stage two responses{search}")
    model.train(
        options.max_epochs,
        split=split,
        n_steps=options.n_steps,
        seed=options.seed,
        enable_progress_bar=console.is_terminal,
    )
    return model


def _with_measured(effects: AnnData, screen: Screen, asked: Sequence[Case]) -> AnnData:
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


@contextmanager
def _results(out: Path) -> Iterator[Path]:
    """Yield a folder to write to; put its files into `out` when the block succeeds."""
    existed = out.is_dir()
    if out.exists() and not existed:
        msg = f"--out {out}: there is a file of this name; name a folder."
        raise UsageError(msg)
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        yield folder
        for path in sorted(folder.iterdir()):
            path.replace(out / path.name)
        existed = True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed:
            out.rmdir()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: for networks this small others hardly help.

    On a machine with other work, threads that wait for each other take many times longer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Close a part that began when the last one ended."""
        now = time.perf_counter()
        self.seconds[part], self.last = now - self.last, now

    def text(self) -> str:
        """Say how long each part took."""
        total = sum(self.seconds.values())
        return f"{total:.0f} s: " + ", ".join(f"{k} {v:.0f}" for k, v in self.seconds.items())
