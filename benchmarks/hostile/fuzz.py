"""Random conditions, units, labels, requests, split files and study files: read, or refused.

What is refused must be refused by a check of this package; any other exception fails, and so does
a condition that is read back as another one.

    python -m benchmarks.hostile.fuzz --n 1000000
"""

from __future__ import annotations

import argparse
import json
import linecache
import logging
import math
import random
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scvi_perturb
from scvi_perturb import LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark import read_study
from scvi_perturb.data import Component, Condition, ConditionTable, ScreenKeys, Split, split
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.request import parse_conditions, request_table
from scvi_perturb.pp import harmonize, validate
from scvi_perturb.pp._quantities import age_in_years, to_one_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OURS = (SchemaError, LeakError, UnknownPerturbationError)
SOURCE = str(Path(scvi_perturb.__file__).parent)
#: Share of each kind, in thousandths.
SHARES = {"condition": 560, "unit": 300, "request": 60, "split": 60, "study": 15, "label": 5}

WORDS = [
    *("A", "B", "KLF1", "HLA_A", "IFN-b", "control", "ctrl", "NT_1", "drug a", "1,2-diol", "", " "),
    *("nan", "None", "NA", "-", "+", "++", ";", "|", "_", ",", "A+B", "A_+_1", "(+)-JQ1", "A;B"),
    *(
        "é",
        "µ",
        "\u0661",
        "\ud800",
        "\x00",
        "\x1f",
        "e",
        "1e+3",
        "inf",
        "0x1",
        "True",
        "[('A', 1)]",
    ),
    *("[[", "((1,", "'", '"', "\\", "/", "%", "b'A'", "A\nB", "a" * 300, "10-20 uM", "1_000"),
]
UNITS = [
    "uM",
    "nM",
    "µM",
    "h",
    "hours",
    "24 h 30 min",
    "ng/mL",
    "%",
    "min",
    "days",
    "MOI",
    "",
    "x2",
]
SEPARATORS = [
    "+",
    ";",
    "|",
    ",",
    "_",
    "-",
    " ",
    "++",
    " and ",
    "e",
    "1",
    ".",
    "",
    "&&",
    "\u2028",
    "é",
]
NUMBERS = [0, 1, -1, 0.5, 10, 1e-40, 1e40, 10**400, 10**5000, math.nan, math.inf, True, 1e16, 3.0]
OTHERS = [None, pd.NA, pd.NaT, b"A", b"\xff", [], [1], ("A", 1.0, "uM"), {}, np.float32(0.1), 1j]
VALUES = ["[]", "1", "-1", "true", "nan", "1e400", '""', "[[1]]", "{}", "x", str(10**30)]


@dataclass(slots=True)
class Outcomes:
    """How many inputs of each kind were read and refused, and those that failed."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Return the numbers, one row a kind of input and one column an outcome."""
        columns = ["read", "refused", "failed"]
        rows = {kind: [self.counts[kind, what] for what in columns] for kind in SHARES}
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def text(rng: random.Random) -> str:
    """Return words, separators, digits and any other characters."""
    parts = []
    for _ in range(rng.randrange(4)):
        pick = rng.random()
        if pick < 0.6:
            parts.append(rng.choice(WORDS))
        elif pick < 0.8:
            parts.append(rng.choice(SEPARATORS))
        elif pick < 0.9:
            parts.append(str(rng.choice([0, 1, 10, 0.5, 1e16, 1e-7])))
        else:
            parts.append("".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(rng.randrange(4))))
    return "".join(parts)


def anything(rng: random.Random) -> Any:  # noqa: ANN401 - of any type
    """Return text, a number, or what is neither."""
    pick = rng.random()
    if pick < 0.7:
        return text(rng)
    return rng.choice(NUMBERS) if pick < 0.9 else rng.choice(OTHERS)


def condition(rng: random.Random) -> None:
    """Parse a row, or write a condition and read it back."""
    separator = rng.choice(SEPARATORS)
    if rng.random() < 0.5:
        how = {key: anything(rng) for key in ("dose", "time", "kind") if rng.random() < 0.5}
        control = text(rng) if rng.random() < 0.3 else "control"
        made = Condition.parse(anything(rng), **how, control=control, separator=separator)
    else:
        control = rng.choice(["control", text(rng)])
        parts = [
            Component(text(rng), 10 ** rng.uniform(-6, 6), text(rng) if rng.random() < 0.3 else "")
            for _ in range(rng.randrange(4))
        ]
        made = Condition(tuple(parts), rng.choice([None, 0, 6, rng.uniform(0, 1e4)]))
    ConditionTable.from_conditions([made]).arrays()
    label = made.format(control, separator)
    row = {"dose": made.format_doses(separator), "kind": made.format_kinds(separator)}
    read = Condition.parse(label, **row, time=made.time, control=control, separator=separator)
    if read != made:
        msg = f"{made!r} was written as {label!r} and read back as {read!r}"
        raise AssertionError(msg)


def unit(rng: random.Random) -> None:
    """Read doses, times and ages."""
    value = anything(rng)
    if rng.random() < 0.7:
        number = rng.choice(["", "-", "~"]) + str(rng.choice(NUMBERS[:7]))
        value = number + rng.choice(["", "", " ", "-", "/", ":"]) + rng.choice([*UNITS, number])
    named = rng.choice([*UNITS, anything(rng)])
    age_in_years(value, named)
    what = rng.choice(["dose", "time"])
    beside = (
        (anything(rng), rng.choice(UNITS))
        if rng.random() < 0.3
        else (1, "uM" if what == "dose" else "h")
    )
    numbers, _ = to_one_unit([(value, named), beside], what=what)
    if any(map(math.isinf, numbers)):
        msg = f"{value!r} was read as infinite"
        raise AssertionError(msg)


def request(rng: random.Random) -> None:
    """Read a request of a screen with doses, times and kinds."""
    roles = ["dose", "time", "kind", "context", "batch"]
    named: dict[str, Any] = {role: role for role in roles if rng.random() < 0.5}
    keys = ScreenKeys(separator=rng.choice(["+", ";", "_"]), **named)
    columns = ["perturbation", "perturbation_type", *roles, "other"]
    picked = ["perturbation", *named.values()] if rng.random() < 0.5 else columns
    picked = [column for column in picked if rng.random() < 0.8]
    rows = rng.randrange(4)
    usual = {
        "perturbation": "A+B",
        "dose": 1,
        "time": 6,
        "kind": "drug",
        "batch": "b",
        "context": 1,
    }
    asked: Any = {
        column: [usual.get(column) if rng.random() < 0.8 else anything(rng) for _ in range(rows)]
        for column in picked
    }
    asked = (
        pd.DataFrame(asked, dtype=object) if rng.random() < 0.8 else [*map(anything, [rng] * rows)]
    )
    known = [Condition.parse("A+B", dose=1, time=6), Condition.parse("KLF1", dose=2, kind="drug")]
    parse_conditions(request_table(asked, keys), keys, known)
    encode_obs(request_table(asked, keys), keys)


def changed(state: Any, rng: random.Random) -> Any:  # noqa: ANN401 - JSON
    """Return a record in which something was replaced, taken out or put in."""
    if rng.random() < 0.15 or not isinstance(state, dict | list) or not state:
        return rng.choice([None, [], {}, 0, -1, 1.5, True, "", 10**30, [[]], text(rng), {"A": 1}])
    if isinstance(state, list):
        i = rng.randrange(len(state))
        return [*state[:i], changed(state[i], rng), *state[i + rng.randrange(2) :]]
    key = rng.choice([*state])
    made = {name: value for name, value in state.items() if name != key or rng.random() < 0.8}
    return made | {rng.choice([key, key, text(rng)]): changed(state[key], rng)}


def small_screen() -> AnnData:
    """Return a screen of 40 cells."""
    labels = ["control", "A", "B", "A+B"] * 10
    obs = pd.DataFrame({"perturbation": labels, "cell_type": ["T", "B"] * 20})
    obs.index = [f"c{i}" for i in range(40)]
    return AnnData(np.ones((40, 3), np.float32), obs=obs)


def label(rng: random.Random) -> None:
    """Harmonise a screen and look it over."""
    n = rng.randrange(1, 30)
    obs = pd.DataFrame({"perturbation": [text(rng) or "A" for _ in range(n)]}, dtype=object)
    for column in ("perturbation_2", "dose_value", "nperts", "time", "batch", "perturbation_type"):
        if rng.random() < 0.4:
            obs[column] = pd.Series(
                [rng.choice([anything(rng), 1, "2"]) for _ in range(n)], dtype=object
            )
    obs.index = [f"c{i}" for i in range(n)]
    separator = rng.choice([None, *SEPARATORS])
    adata = AnnData(np.ones((n, 2), np.float32), obs=obs)
    validate(adata)
    validate(harmonize(adata, rng.choice(["auto", "scperturb", "canonical"]), separator=separator))


class Files:
    """Files of splits and studies, with something wrong in them, in a folder."""

    STUDY = (
        'methods = ["trivial"]\nseeds = [0, 1]\nworkers = 1\nout = "results"\nmax_folds = 1\n'
        '[[task]]\nname = "a"\nfile = "screen.h5ad"\nsplit = "unseen_perturbation"\n'
        'perturbation_key = "perturbation"\ncontrol = "control"\ncontext_keys = ["cell_type"]\n'
        'n_folds = 2\nshown = 0.0\nmax_cells = 30\nhold_out = ["A"]\nvalues = "counts"\n'
        '[[model]]\nclass = "PerturbDiffusion"\nname = "mine"\noptions = { n_latent = 4 }\n'
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adata = small_screen()
        self.adata.write_h5ad(folder / "screen.h5ad")
        self.state = split(self.adata, "unseen_perturbation").to_dict()

    def split(self, rng: random.Random) -> None:
        """Read a split, from its record or a file, and hold it against the data."""
        state = changed(self.state, rng)
        if rng.random() < 0.9:
            made = Split.from_dict(state)
        else:
            path, written = self.folder / "split.json", json.dumps(state)
            if rng.random() < 0.5:
                written = written[: rng.randrange(len(written) + 1)] + text(rng)
            path.write_bytes(written.encode("utf-8", "surrogatepass"))
            made = Split.from_json(path)
        made.check(self.adata)
        made.leaks(self.adata)

    def study(self, rng: random.Random) -> None:
        """Read a study with lines changed, lost or swapped."""
        lines = self.STUDY.splitlines()
        for _ in range(rng.randrange(1, 4)):
            i = rng.randrange(len(lines))
            key = lines[i].partition("=")[0]
            value = rng.choice([*VALUES, json.dumps(text(rng)), json.dumps([text(rng), 1])])
            lines[i] = rng.choice(
                [f"{key}= {value}", "", text(rng), lines[rng.randrange(len(lines))]]
            )
        path = self.folder / "study.toml"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        read_study(path)


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a check of this package."""
    if isinstance(error, OURS):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    known = isinstance(error, ValueError | TypeError | FileNotFoundError)
    return known and frame.filename.startswith(SOURCE) and line.lstrip().startswith("raise")


def fuzz(n: int, seed: int = 0) -> Outcomes:
    """Try `n` inputs of all kinds and count what becomes of them."""
    rng, outcomes = random.Random(seed), Outcomes()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        kinds: dict[str, Callable[[random.Random], None]] = {
            **{"condition": condition, "unit": unit, "request": request, "label": label},
            **{"split": files.split, "study": files.study},
        }
        for kind in rng.choices([*SHARES], [*SHARES.values()], k=n):
            state = rng.getrandbits(64)
            try:
                kinds[kind](random.Random(state))
            except Exception as error:
                outcome = "refused" if is_ours(error) else "failed"
                if outcome == "failed":
                    told = traceback.format_exception(error, limit=-3)
                    outcomes.failures.append(f"{kind}, seed {state}: {''.join(told)}")
            else:
                outcome = "read"
            outcomes.counts[kind, outcome] += 1
    logging.disable(logging.NOTSET)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the outcomes; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    outcomes = fuzz(options.n, options.seed)
    print(outcomes.table().to_string())
    for failure in outcomes.failures[:10]:
        print(failure.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    return 1 if outcomes.failures else 0


if __name__ == "__main__":
    sys.exit(main())
