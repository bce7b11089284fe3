"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

mpl.use("Agg")
torch.set_num_threads(1)
# The same examples in every run; time limits would depend on the machine.
settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
settings.load_profile("seeded")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real screens; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SCVI_PERTURB_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real screens here: set SCVI_PERTURB_DATA to the folder that holds them")
    return folder


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, so that nothing is left in the repository."""
    monkeypatch.chdir(tmp_path)
