"""Seeds without global state."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["forked_seed", "generator"]


def generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded with `seed`, or from the operating system when None."""
    made = torch.Generator(device=device)
    if seed is None:
        made.seed()
    else:
        made.manual_seed(int(seed))
    return made


@contextmanager
def forked_seed(seed: int | None) -> Iterator[None]:
    """Seed torch's and NumPy's global generators inside the block and restore them after it.

    Layers' initial values, dropout and shuffling read the global generators; this keeps a
    seeded call reproducible without changing the caller's random numbers.
    """
    if seed is None:
        yield
        return
    state = np.random.get_state()  # noqa: NPY002 - saved and restored, not drawn from
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(seed))
        np.random.seed(int(seed) % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
