"""Files of models and runs from a stranger: `python -m benchmarks.hostile.model_files`.

Pickles and made-up states are put in the place of every file; none may run code. Then bits are
flipped, one at a time and spread over all files; each must be told, with the name of the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb import (
    CausalConfig,
    CausalPerturbVAE,
    DiffusionConfig,
    FlowConfig,
    HybridResidualModel,
    PerturbDiffusion,
    PerturbFlow,
    SchemaError,
)
from scvi_perturb._state import read_sealed, sealed
from scvi_perturb.benchmark import markdown_table
from scvi_perturb.testing import ModelCase, fit, make_features, make_model, make_screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

_NETWORK: Final = {"width": 8, "n_blocks": 1, "n_condition": 4, "n_neighbours": 2}
_SIZE: Final = {"n_latent": 3, "n_hidden": 8, "n_layers": 1}
_GROUPS: Final = {"n_identity": 2, "n_state": 2, "n_technical": 2}
_SHORT: Final = {"max_epochs": 2, "n_steps": 4, "batch_size": 64}
CASES: Final = (
    ModelCase(
        PerturbDiffusion, init={**_SIZE, "diffusion": DiffusionConfig(**_NETWORK)}, train=_SHORT
    ),
    ModelCase(PerturbFlow, init={**_SIZE, "flow": FlowConfig(**_NETWORK)}, train=_SHORT),
    ModelCase(
        HybridResidualModel, init={**_SIZE, "generator": DiffusionConfig(**_NETWORK)}, train=_SHORT
    ),
    ModelCase(
        CausalPerturbVAE,
        init={"n_hidden": 8, "n_layers": 1, "causal": CausalConfig(**_GROUPS)},
        train={"max_epochs": 2, "batch_size": 64},
        stages=("representation",),
    ),
)
#: Names of classes and functions that a file might ask for.
_WANTED: Final = (
    "builtins:eval",
    "os:system",
    "subprocess:Popen",
    "scvi_perturb.cli._app:check",
    "scvi_perturb.module.generator:TwoStageModule",
)


class Payload:
    """When it is unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        """Return what to call."""
        return open, (str(self.mark), "w")


@dataclass(frozen=True, slots=True)
class Saved:
    """A small model as it was left: trained, and killed in its first stage.

    `case`: What it is. `adata`: Its data. `model`: Folder of the model. `finished`, `killed`:
    Folders of its run.
    """

    case: ModelCase
    adata: AnnData
    model: Path
    finished: Path
    killed: Path

    @classmethod
    def make(cls, case: ModelCase, folder: Path) -> Saved:
        """Train and save a model."""
        adata = make_screen(n_cells=120, n_genes=12)
        folder = folder / case.name
        made = cls(case, adata, folder / "model", folder / "finished", folder / "killed")
        with suppress(InterruptedError):
            made.train(made.killed, callbacks=[_Kill()])
        made.train(made.finished).save(made.model, save_anndata=True)
        return made

    def train(self, folder: Path, **options: Any) -> Any:  # noqa: ANN401
        """Train a model with the state of a folder."""
        model = make_model(self.case, self.adata, features=make_features(self.adata))
        return fit(self.case, model, checkpoint_dir=folder, **options)

    def load(self, folder: Path) -> Any:  # noqa: ANN401
        """Load a model."""
        return self.case.model.load(folder, accelerator="cpu")


class _Kill(Callback):
    """End the run after its first epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
        """Raise."""
        del pl_module
        if trainer.current_epoch == 1:
            raise InterruptedError


def outcome(call: Callable[[Path], object], folder: Path, *, names: str = "") -> str:
    """Return what happened: "told", with the file named; or what should not be."""
    try:
        call(folder)
    except (SchemaError, ValueError, FileNotFoundError) as error:
        return "told" if names in str(error) else f"file not named: {str(error)[:90]}"
    except Exception as error:  # what it is, is the result
        return f"{type(error).__name__}: {str(error)[:90]}"
    return "silent"


def reseal(folder: Path) -> None:
    """Make the digests of a model's folder fit its files, as who makes one up would."""
    path = folder / "manifest.json"
    manifest = read_sealed(path.read_text(), where=path)
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(sealed(manifest))


def made_up_models(saved: Saved, mark: Path) -> Iterator[tuple[str, Path]]:
    """Yield folders of models that somebody made up, which would make the file `mark`."""
    pickled = pickle.dumps({"model_state_dict": Payload(mark), "registry_": Payload(mark)})
    work = saved.model.parent / "made_up"

    def copied() -> Path:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(saved.model, work)
        return work

    (copied() / "model.pt").write_bytes(pickled)
    yield "model.pt beside the files", work
    for path in copied().iterdir():
        path.unlink()
    torch.save(Payload(mark), work / "model.pt")
    yield "model.pt alone", work
    for name in sorted(path.name for path in saved.model.iterdir()):
        (copied() / name).write_bytes(pickled)
        if name != "manifest.json":
            reseal(work)
        yield f"a pickle as {name}", work
    for wanted in _WANTED:
        for kind in ("instance", "record"):
            state = json.loads((copied() / "state.json").read_text())
            held = {"args": ["touch"]} if kind == "instance" else ["touch"]
            state["nodes"] += [[kind, wanted, held]]
            state["value"]["made_up_"] = {"~": len(state["nodes"]) - 1}
            (work / "state.json").write_text(json.dumps(state))
            reseal(work)
            yield f"{kind} of {wanted}", work
    for key in ("__class__", "__dict__", "init_params_", "registry_"):
        state = json.loads((copied() / "state.json").read_text())
        state["value"][key] = {"__reduce__": "x", "kwargs": {}, "non_kwargs": {"seed": []}}
        (work / "state.json").write_text(json.dumps(state))
        reseal(work)
        yield f"attribute {key}", work


def made_up_runs(saved: Saved, mark: Path) -> Iterator[tuple[str, Path]]:
    """Yield folders of runs that somebody made up."""
    tensors = {"0": torch.zeros(1)}
    nodes = [["instance", "builtins:eval", {"x": 1}]]
    text = json.dumps({"nodes": nodes, "value": {"~": 0}})
    asks = safetensors.torch.save(tensors, {"state": text})
    for of in (saved.finished, saved.killed):
        for name in sorted(path.name for path in of.iterdir() if path.name != "run.json"):
            for what in ("torch.save", "pickle", "pickle with its digest", "a class of others"):
                work = of.parent / "made_up_run"
                shutil.rmtree(work, ignore_errors=True)
                shutil.copytree(of, work)
                content = pickle.dumps(Payload(mark))
                if what == "a class of others":
                    content = asks
                if what in ("pickle with its digest", "a class of others"):
                    content = hashlib.sha256(content).digest() + content
                (work / name).write_bytes(content)
                if what == "torch.save":
                    torch.save({"weights": Payload(mark)}, work / name)
                yield f"{of.name}/{name}: {what}", work


def attack(saved: Saved, mark: Path) -> list[str]:
    """Return one outcome for each folder that was made up."""
    found = []
    for what, folder in made_up_models(saved, mark):
        kind = outcome(saved.load, folder)
        found.append("ran code" if mark.exists() else kind)
        if found[-1] == "silent" and what.startswith("attribute __"):
            found[-1] = "told"  # such an attribute is left out
        if found[-1] != "told":
            print(f"  {saved.case.name}, {what}: {found[-1]}")
        mark.unlink(missing_ok=True)
    for what, folder in made_up_runs(saved, mark):
        kind = outcome(saved.train, folder)
        found.append("ran code" if mark.exists() else kind)
        if found[-1] != "told":
            print(f"  {saved.case.name}, {what}: {found[-1]}")
        mark.unlink(missing_ok=True)
    return found


def flip(saved: Saved, n: int, random: np.random.Generator) -> list[str]:
    """Flip `n` bits, one at a time, spread over all files; return what was said to each."""
    places = [(path, saved.load) for path in sorted(saved.model.iterdir())]
    for folder in (saved.finished, saved.killed):
        places += [(path, saved.train) for path in sorted(folder.iterdir())]
    found = []
    for i in range(n):
        path, call = places[i % len(places)]
        whole = path.read_bytes()
        at, bit = int(random.integers(len(whole))), int(random.integers(8))
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        found.append(outcome(call, path.parent, names=path.name))
        if found[-1] != "told":
            print(f"  {path.parent.name}/{path.name}, byte {at}, bit {bit}: {found[-1]}")
        path.write_bytes(whole)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; return 1 if anything was silent, ran code, or ended in an internal error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=1000, help="bits to flip, over all models")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for i, case in enumerate(CASES):
            saved = Saved.make(case, Path(folder))
            random = np.random.default_rng([options.seed, i])
            for what, found in (
                ("made-up files", attack(saved, Path(folder) / "mark")),
                ("flipped bits", flip(saved, options.bits // len(CASES), random)),
            ):
                counted = Counter("told" if one == "told" else "not told" for one in found)
                failed |= set(found) != {"told"}
                numbers = len(found), counted["told"], counted["not told"]
                rows.append([case.name, what, *map(str, numbers)])
    print(markdown_table(["model", "kind", "tried", "told", "not told"], rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
