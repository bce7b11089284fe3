"""Requests of many conditions, in parts that machines answer side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import anndata
import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._cluster import by_ray
from scvi_perturb._core import UNS_KEY, SchemaError, drawn_seed
from scvi_perturb._files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.model.base.model import PerturbationModel

Verb = Literal["predict", "sample"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the conditions: where they start, their seed, and what else the verb is given."""

    start: int
    conditions: list[str] | pd.DataFrame
    verb: Verb
    options: dict[str, Any]


@dataclass(frozen=True)
class _Packed:
    """A model as it is sent: files by name, and its data; told apart by its token."""

    token: str
    kind: type[PerturbationModel] = field(compare=False)
    files: dict[str, bytes] = field(compare=False)
    adata: AnnData | MuData | None = field(compare=False)


@checked
def ask_many(
    model: PerturbationModel,
    conditions: Sequence[str] | pd.DataFrame,
    *,
    verb: Verb = "predict",
    backend: Literal["here", "ray"] = "here",
    chunk_size: int = 64,
    seed: int | None = 0,
    options: Mapping[str, Any] | None = None,
) -> AnnData:
    """Predict or sample many conditions in parts, on this machine or on many.

    Every part has a seed of its own, which follows from `seed` and its place: results depend
    neither on the backend nor on the number of machines, up to the rounding of sums. They do
    depend on `chunk_size`, and are other draws than those of one call of the verb.

    Parameters
    ----------
    model
        A trained model.
    conditions
        Names, or a table, as the verb takes them.
    verb
        Method of the model that is called with each part.
    backend
        `"here"`, one part after another in this process; `"ray"`, tasks of the cluster that ray is
        connected to, or of this machine where it is connected to none (extra `scale`). Model and
        data are sent to each machine once.
    chunk_size
        Conditions a part.
    seed
        Seed of all draws; None draws one.
    options
        Further arguments of the verb by name, such as `n_samples`, `reference`, `interval`; not
        `path`.

    Returns
    -------
    AnnData
        What the verb returns, conditions in the order asked; in memory.

    Raises
    ------
    NotTrainedError, UnknownPerturbationError, SchemaError, ValueError
        As the verb does; a part that fails ends the call.
    SchemaError
        When a model whose data are backed is to be sent to a cluster.
    ImportError
        When ray is asked for and is not installed.
    WorkerError
        When a process of the cluster dies three times with the same conditions, which are named.
    """
    given = dict(options or {})
    if "path" in given:
        msg = "ask_many returns its result in memory; leave `path` out, or call the model's sample."
        raise ValueError(msg)
    if not len(conditions):
        msg = "No condition was asked for; name at least one."
        raise ValueError(msg)
    root = drawn_seed(seed)
    parts = []
    for start in range(0, len(conditions), chunk_size):
        some = conditions[start : start + chunk_size]
        own = int(np.random.SeedSequence([root, start]).generate_state(1)[0])
        asked = some if isinstance(some, pd.DataFrame) else [*some]
        parts.append(_Part(start, asked, verb, given | {"seed": own}))
    if backend == "ray":
        names = [_named(part) for part in parts]
        found = dict(by_ray(_answer_packed, parts, names=names, shared=_packed(model)))
        answers = [found[place] for place in range(len(parts))]
    else:
        answers = [_answer(part, model) for part in parts]
    result = anndata.concat(answers, merge="same", uns_merge="first")
    result.uns[UNS_KEY]["seed"] = "none" if seed is None else seed
    return result


def _named(part: _Part) -> str:
    """Return which conditions a part has, in words."""
    rows = part.conditions
    labels = [*map(str, rows if isinstance(rows, list) else rows.iloc[:, 0])]
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f"conditions {', '.join(labels[:3])}{more}"


def _answer(part: _Part, model: PerturbationModel) -> AnnData:
    """Return the answer of a model to a part, rows numbered as in the whole request."""
    made = getattr(model, part.verb)(part.conditions, **part.options)
    made.obs_names = [
        re.sub(r"^row(\d+)", lambda found: f"row{int(found[1]) + part.start}", name)
        for name in made.obs_names
    ]
    return made


def _packed(model: PerturbationModel) -> _Packed:
    """Return a model as it is sent.

    Raises `SchemaError`: When its data are backed.
    """
    if getattr(model.adata, "isbacked", False):
        msg = (
            "The data of this model are backed by a file, which other machines cannot read. Load "
            "the model with adata.to_memory(), or use backend='here'."
        )
        raise SchemaError(msg)
    with TemporaryDirectory() as folder:
        where = Path(folder) / "model"
        model.save(where)
        files = {path.name: path.read_bytes() for path in sorted(where.iterdir())}
    return _Packed(token_hex(8), type(model), files, model.adata)


@lru_cache(maxsize=1)
def _unpacked(packed: _Packed) -> PerturbationModel:
    """Return the model, loaded once a process."""
    with TemporaryDirectory() as folder:
        for name, content in packed.files.items():
            write_bytes(Path(folder) / name, content)
        adata = False if packed.adata is None else packed.adata
        return packed.kind.load(folder, adata=adata)


def _answer_packed(part: _Part, packed: _Packed) -> AnnData:
    """Return the answer to a part in a process of a cluster."""
    from scvi_perturb.benchmark.runner import quiet

    with quiet():
        return _answer(part, _unpacked(packed))
