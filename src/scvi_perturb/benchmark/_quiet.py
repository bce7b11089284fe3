"""Silence what packages say to programmers while a study or a command runs."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quiet"]

_LOUD = ("lightning.fabric", "lightning.pytorch", "scvi", "scvi_perturb")


@contextmanager
def quiet() -> Iterator[None]:
    """Show errors only inside the block; what users need to know is raised or written down."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
