"""Types shared by tensors and data."""

from __future__ import annotations

from typing import TypeAlias

import torch

__all__ = ["Batch"]

#: A batch: `X (B, G)`, `condition (B,)`, `context (B,)`, `batch (B,)`, `library (B,)`, and where
#: the storage knows them `rows` and `columns` of the non-zero counts.
Batch: TypeAlias = dict[str, torch.Tensor]
