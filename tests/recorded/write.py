"""Write the record of outputs anew: `python -m tests.recorded.write [GROUP ...]`.

Without names of groups, all are written; with them, those whose name holds one of the names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from tests.recorded._outputs import GROUPS
from tests.recorded._summary import flatten, summarize

RECORD = Path(__file__).with_name("record.json")


def outputs_of(group: str) -> dict[str, str]:
    """Return the summaries of a group of outputs by name."""
    return {name: summarize(value) for name, value in flatten("", GROUPS[group]()).items()}


def read() -> dict[str, dict[str, str]]:
    """Return the recorded summaries by group and name."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def write(*names: str) -> None:
    """Record the groups that are named, or all; groups that are no more are dropped."""
    old = read() if RECORD.exists() else {}
    chosen = [group for group in GROUPS if not names or any(name in group for name in names)]
    made = {group: outputs_of(group) if group in chosen else old[group] for group in GROUPS}
    text = json.dumps(made, indent=0, ensure_ascii=False)
    RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write(*sys.argv[1:])
