"""Methods that did not answer, and the versions that made the others', in a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_perturb.benchmark._view._reading import title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_perturb.benchmark.results import Record

__all__ = ["troubles", "versions_of"]

_LONGEST = 300


def troubles(records: Sequence[Record], titles: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for each method that refused or failed, with its first message."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.status != "ok":
            found.setdefault((record.method, record.status), []).append(record)
    lines = []
    for (method, status), every in found.items():
        total = sum(record.method == method for record in records)
        message = " ".join(every[0].message.split())
        short = message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "..."
        lines.append(
            f"{title_of(method, titles)} {status} in {len(every)} of {total} trials: {short}"
        )
    return lines


def versions_of(records: Sequence[Record]) -> str:
    """Return the versions that made the records; all of them, where there are several."""
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        for name, number in record.provenance.get("versions", {}).items():
            versions.setdefault(name, {})[number] = None
    named = [f"{name} {' and '.join(numbers)}" for name, numbers in versions.items()]
    return f"Versions: {', '.join(named) or 'not known'}"
