"""Faults of the machine and of the user: `python -m benchmarks.hostile.faults`.

Full disks, processes that are killed, Ctrl-C, read-only folders and two writers at once. What was
there before must be there still or be whole and new, the interpreter must live, and a run that goes
on must end with the weights of one that was never interrupted. Prints a table; exits with 1 if
anything failed. Where the system lets it (root on Linux) disks are small file systems in memory;
elsewhere these rows are left out, and say so.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb import (
    CausalConfig,
    CausalPerturbVAE,
    DiffusionConfig,
    HybridResidualModel,
    PerturbDiffusion,
)
from scvi_perturb._files import UNFINISHED, write_table
from scvi_perturb.benchmark import TRIVIAL, Method, Study, Task, run, write_report
from scvi_perturb.benchmark.results import Record
from scvi_perturb.data import ScreenKeys, Split, simulate_screen
from scvi_perturb.data.reader import read_screen
from scvi_perturb.testing import ModelCase, dense, fit, make_model, make_screen, make_split
from scvi_perturb.train import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

_CPU: Final = {"accelerator": "cpu", "enable_progress_bar": False}
_NET: Final = DiffusionConfig(width=16, n_blocks=1, n_condition=8, n_neighbours=5)
_GROUPS: Final = CausalConfig(n_identity=3, n_state=3, n_technical=2)
_SIZE: Final = {"n_latent": 4, "n_hidden": 16, "n_layers": 1}
_TRAIN: Final = {"max_epochs": 3, "n_steps": 20, "batch_size": 64, **_CPU}
CASES: Final = (
    ModelCase(PerturbDiffusion, init={**_SIZE, "diffusion": _NET}, train=_TRAIN),
    ModelCase(HybridResidualModel, init={**_SIZE, "generator": _NET}, train=_TRAIN),
    ModelCase(
        CausalPerturbVAE,
        init={"n_hidden": 16, "n_layers": 1, "causal": _GROUPS},
        train={"max_epochs": 3, "batch_size": 64, **_CPU},
        stages=("representation",),
    ),
)
#: Shares of what is needed that a disk has left.
_SHARES: Final = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
_FORK: Final = multiprocessing.get_context("fork")


class SkippedError(Exception):
    """The system does not let this be tried."""


class At(Callback):
    """Do something after the first batch of an epoch of the `stage`-th training."""

    def __init__(self, stage: int, epoch: int, do: Callable[[], object]) -> None:
        self.stage, self.epoch, self.do, self.now = stage, epoch, do, -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
        """Count the trainings."""
        self.now += 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: object) -> None:  # noqa: ANN401
        """Do it, where it is due."""
        if (self.now, trainer.current_epoch) == (self.stage, self.epoch):
            self.do()


def end_self() -> None:
    """End this process at once, as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def trained(case: ModelCase, adata: AnnData, **options: Any) -> Any:  # noqa: ANN401
    """Return a trained model on a copy of the screen."""
    return fit(case, make_model(case, adata.copy()), **options)


def same_weights(one: Any, two: Any) -> bool:  # noqa: ANN401
    """Whether two models have the same weights, bit for bit."""
    a, b = one.module.state_dict(), two.module.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def left_over(folder: Path) -> list[str]:
    """Return the temporary files and folders below a folder."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(UNFINISHED)]


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files of a folder, by name."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# Small disks --------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(kib: int = 65536) -> Iterator[Path]:
    """Yield the folder of a file system of its own."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    linux = sys.platform == "linux"
    if not linux or subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        msg = "needs the right to mount a file system"
        raise SkippedError(msg)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def remount(folder: Path, option: str) -> None:
    """Change an option of a file system."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


@contextlib.contextmanager
def space(folder: Path, n_bytes: int) -> Iterator[None]:
    """Leave so much space on a disk."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - n_bytes, 1))
    try:
        yield
    finally:
        ballast.unlink()


def writers(folder: Path, model: Any, split: Split) -> dict[str, Callable[[], object]]:  # noqa: ANN401
    """Return what writes what, by the name of what it writes in the folder."""
    record = Record(
        task="t", method="m", role="mean", seed=0, fold=0, fingerprint="f",
        scores={"condition": ["A"] * 3000, "metric": ["nmse"] * 3000,
                "numerator": [1.0] * 3000, "denominator": [2.0] * 3000},
    )  # fmt: skip
    methods = tuple(method for method in TRIVIAL if method.name in ("no_change", "additive"))
    study = Study(tasks=(small_task(),), methods=methods, seeds=(0,), max_folds=1)
    results = run(study, Path(tempfile.mkdtemp()))
    frame = pd.DataFrame({"a": np.arange(20_000.0)})

    def sample() -> None:
        model.sample(["pert_01"], n_samples=4000, path=folder / "cells.h5ad").file.close()

    return {
        "cells.h5ad": sample,
        "model": partial(model.save, folder / "model", overwrite=True),
        "split.json": partial(split.to_json, folder / "split.json"),
        "table.csv": partial(write_table, folder / "table.csv", frame),
        "report.html": partial(write_report, results, folder / "report.html"),
        "records": partial(record.write, folder),
    }


def small_task() -> Task:
    """Return a task of a second."""
    return Task(
        name="sim",
        load=partial(simulate_screen, n_cells=600, n_genes=50),
        kind="unseen_combination",
        keys=ScreenKeys("perturbation", context=("cell_type",)),
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file or a folder."""
    return sum(len(value) for value in content(path).values())


def refused(write: Callable[[], object], path: Path, before: dict[str, bytes]) -> str:
    """Write where it must fail; return what is wrong with how it failed."""
    try:
        write()
    except OSError as error:
        said = str(error)
        unclear = [] if "was not written: " in said else [f"message: {said}"]
    except BaseException as error:
        unclear = [f"{type(error).__name__}: {error}"]
    else:
        unclear = ["nothing was raised"]
    if content(path) != before:
        unclear.append("what was there before has changed")
    return "; ".join(unclear)


def full_disk(name: str, model: Any, split: Split) -> str:  # noqa: ANN401
    """Write on disks with too little space."""
    with disk() as folder:
        write = writers(folder, model, split)[name]
        write()
        before, n_bytes = content(folder / name), size_of(folder / name)
        for share in _SHARES:
            with space(folder, int(share * n_bytes)):
                wrong = refused(write, folder / name, before)
            wrong = wrong or "; ".join(left_over(folder))
            assert not wrong, f"{share:.0%} of {n_bytes} bytes: {wrong}"
        write()
        assert content(folder / name).keys() == before.keys()
    return f"OSError at each of {len(_SHARES)} sizes; old file whole; nothing left over"


def read_only(name: str, model: Any, split: Split) -> str:  # noqa: ANN401
    """Write on a disk that may only be read."""
    with disk() as folder:
        write = writers(folder, model, split)[name]
        write()
        before = content(folder / name)
        remount(folder, "ro")
        wrong = refused(write, folder / name, before)
        remount(folder, "rw")
        assert not wrong, wrong
    return "OSError; old file whole"


def full_disk_in_training(case: ModelCase, adata: AnnData, whole: Any) -> str:  # noqa: ANN401
    """Train with a disk too small for the state of the run, then with space again."""
    with disk() as folder:
        trained(case, adata, checkpoint_dir=folder / "measured")
        n_bytes = size_of(folder / "measured")
        for share in (0.02, 0.3, 0.6, 0.9):
            out, model = folder / f"run{share}", make_model(case, adata.copy())
            start = {key: value.clone() for key, value in model.module.state_dict().items()}
            with space(folder, int(share * n_bytes)):
                try:
                    fit(case, model, checkpoint_dir=out)
                    told = False
                except OSError as error:
                    told = "the disk is full" in str(error)
            assert told, f"{share:.0%}: no error that the disk is full"
            assert not left_over(folder), left_over(folder)
            state = model.module.state_dict()
            assert all(torch.equal(state[key], value) for key, value in start.items())
            assert same_weights(fit(case, model, checkpoint_dir=out), whole), f"{share:.0%}"
            shutil.rmtree(out)
    return "OSError; model as before; with space again the same weights"


# Killed -------------------------------------------------------------------------------------


def forked(do: Callable[[], object]) -> Any:  # noqa: ANN401
    """Start a process that does something, without its own output."""
    process = _FORK.Process(target=do)
    process.start()
    return process


def killed_in_training(
    case: ModelCase,
    adata: AnnData,
    whole: Any,  # noqa: ANN401
    at: tuple[int, int],
    **options: Any,  # noqa: ANN401
) -> str:
    """Kill a training at an epoch of a stage, and go on from what it wrote."""
    folder = Path(tempfile.mkdtemp()) / "run"
    callback = At(*at, end_self)
    do = partial(trained, case, adata, checkpoint_dir=folder, callbacks=[callback], **options)
    process = forked(do)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode}"
    model = trained(case, adata, checkpoint_dir=folder, **options)
    assert same_weights(model, whole), "other weights than without interruption"
    return "resumed; weights equal bit for bit"


def repeat(do: Sequence[Callable[[], object]]) -> None:
    """Do things in turn, without end."""
    while True:
        for one in do:
            one()


def killed_while(do: Sequence[Callable[[], object]], check: Callable[[], object], n: int) -> str:
    """Kill a process that writes in turn, at `n` random moments; check after each."""
    random = np.random.default_rng(0)
    for _ in range(n):
        process = forked(partial(repeat, do))
        time.sleep(random.uniform(0.02, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode}"
        check()
    return f"whole after each of {n} kills"


def killed_in_save(models: Sequence[Any]) -> str:
    """Kill processes that save one model over another."""
    folder = Path(tempfile.mkdtemp()) / "model"
    models[0].save(folder)

    def check() -> None:
        found = type(models[0]).load(folder, models[0].adata)
        assert any(same_weights(found, model) for model in models), "a mix of models"

    return killed_while([partial(m.save, folder, overwrite=True) for m in models], check, 15)


def killed_in_sample(model: Any) -> str:  # noqa: ANN401
    """Kill processes that sample to the same file."""
    path = Path(tempfile.mkdtemp()) / "cells.h5ad"

    def sample(seed: int, to: Path | None) -> Any:  # noqa: ANN401
        made = model.sample(["pert_01", "pert_02"], n_samples=3000, seed=seed, path=to)
        return made if to is None else made.file.close()

    expected = [dense(sample(seed, None).X) for seed in (0, 1)]
    sample(0, path)

    def check() -> None:
        found = dense(read_screen(path).X)
        assert any(np.array_equal(found, one) for one in expected), "not what was sampled"

    return killed_while([partial(sample, seed, path) for seed in (0, 1)], check, 15)


def no_change(setting: Any) -> Any:  # noqa: ANN401
    """Make the simplest method."""
    return next(method for method in TRIVIAL if method.name == "no_change").make(setting)


def dies_once(mark: str, setting: Any) -> Any:  # noqa: ANN401
    """Make the simplest method; the first process to do so is killed."""
    with contextlib.suppress(FileExistsError):
        Path(mark).touch(exist_ok=False)
        end_self()
    return no_change(setting)


def killed_worker() -> str:
    """Kill a process of a benchmark; what the others finished is kept, and the run goes on."""
    folder = Path(tempfile.mkdtemp())
    method = Method(name="dying", make=partial(dies_once, str(folder / "mark")))
    study = Study(tasks=(small_task(),), methods=(TRIVIAL[0], method), seeds=(0, 1), max_folds=1)
    try:
        run(study, folder / "out", n_workers=2)
        died = False
    except Exception as error:
        died = "terminated" in str(error) or "Terminated" in type(error).__name__
    assert died, "no error that a process was killed"
    records = [*(folder / "out").rglob("*.json")]
    for path in records:
        Record.read(path)
    results = run(study, folder / "out", n_workers=2).frame()
    (folder / "mark").touch()
    pd.testing.assert_frame_equal(results, run(study, folder / "again").frame())
    return f"{len(records)} records kept; the same results in the end"


# Interrupted, and several at once -----------------------------------------------------------


_COMMAND: Final = "import sys; from scvi_perturb.cli import main; sys.exit(main())"


def interrupted_command(arguments: Sequence[str], begun: str, out: str) -> str:
    """Press Ctrl-C in a command once it has begun to train."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-c", _COMMAND, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if begun in line:
            break
    time.sleep(3.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, f"ended with {process.returncode}: {errors[-300:]}"
    assert "interrupted" in errors.splitlines()[-1], errors[-300:]
    assert not (folder / out).exists(), sorted((folder / out).iterdir())
    return f"130; said {errors.splitlines()[-1]!r}"


def two_runs_in_one_folder(case: ModelCase, adata: AnnData, whole: Any) -> str:  # noqa: ANN401
    """Train the same run in one folder by two processes at once."""
    folder = Path(tempfile.mkdtemp())

    def do(name: str) -> None:
        trained(case, adata, checkpoint_dir=folder / "run").save(folder / name)

    processes = [forked(partial(do, name)) for name in ("a", "b")]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for name in ("a", "b"):
        assert same_weights(case.model.load(folder / name, adata.copy()), whole), name
    return "both end with the weights of a single run"


def two_writers_of_one_file(model: Any) -> str:  # noqa: ANN401
    """Sample to one file by two processes at once, and read it meanwhile."""
    path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    sample = partial(model.sample, ["pert_01"], n_samples=2000)
    expected = [dense(sample(seed=seed).X) for seed in (0, 1)]

    def do(seed: int) -> None:
        for _ in range(10):
            sample(seed=seed, path=path).file.close()

    processes = [forked(partial(do, seed)) for seed in (0, 1)]
    n_read = 0
    while any(process.is_alive() for process in processes) or not n_read:
        if path.exists():
            found = dense(read_screen(path).X)
            assert any(np.array_equal(found, one) for one in expected), "not what was sampled"
            n_read += 1
    assert [process.exitcode for process in processes] == [0, 0]
    assert not left_over(path.parent)
    return f"whole at each of {n_read} looks"


def faults() -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Yield each fault, where it strikes, and what tries it."""
    adata = make_screen()
    diffusion = CASES[0]
    models = [trained(diffusion, adata, seed=seed) for seed in (0, 1)]
    split = make_split(models[0].adata)
    for name in ("cells.h5ad", "model", "split.json", "table.csv", "report.html", "records"):
        yield "full disk", name, partial(full_disk, name, models[0], split)
        yield "read-only", name, partial(read_only, name, models[0], split)
    for case in CASES:
        whole = trained(case, adata)
        yield "full disk", f"{case.name}.train", partial(full_disk_in_training, case, adata, whole)
        for number, stage in enumerate(case.stages):
            for epoch in (0, 2):
                do = partial(killed_in_training, case, adata, whole, (number, epoch))
                yield "kill -9", f"{case.name}, {stage}, epoch {epoch}", do
        yield (
            "two writers",
            f"{case.name}.train",
            partial(two_runs_in_one_folder, case, adata, whole),
        )
    yield "kill -9", "save(overwrite=True)", partial(killed_in_save, models)
    yield "kill -9", "sample(path=)", partial(killed_in_sample, models[0])
    yield "kill -9", "a process of a benchmark", killed_worker
    yield (
        "Ctrl-C",
        "scvi-perturb demo",
        partial(interrupted_command, ["demo", "--out", "demo_out"], "Training", "demo_out"),
    )
    yield "two writers", "sample(path=)", partial(two_writers_of_one_file, models[0])
    searchable = make_screen(n_cells=360, n_perturbations=4, n_combinations=4, n_contexts=1)
    config = TrainConfig(max_generator_steps=40, check_every_n_steps=10)
    options: dict[str, Any] = {"n_steps": None, "config": config}
    whole = trained(diffusion, searchable, **options)
    for number, stage in ((1, "search"), (2, "generator after a search")):
        do = partial(killed_in_training, diffusion, searchable, whole, (number, 1), **options)
        yield "kill -9", f"{diffusion.name}, {stage}", do


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all faults, print a table, and return 1 if any was not stood."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="faults and places that match this expression")
    only = parser.parse_args(arguments).only
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    n_failed = 0
    for fault, where, attempt in faults():
        if not re.search(only, f"{fault}: {where}"):
            continue
        try:
            outcome = f"ok      {attempt()}"
        except SkippedError as error:
            outcome = f"skipped {error}"
        except Exception as error:
            n_failed += 1
            outcome = f"FAILED  {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        sys.stdout.write(f"{fault:<12} {where:<44} {outcome}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{n_failed} failed\n")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
