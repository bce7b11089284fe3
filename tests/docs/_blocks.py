"""Code in Markdown pages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["python_blocks"]

FENCE = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def python_blocks(page: Path) -> list[str]:
    """Return the blocks of Python of a page, in order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))
