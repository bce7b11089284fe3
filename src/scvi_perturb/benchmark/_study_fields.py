"""Keys of a study file, read one by one: what is wrong is said with the key that is meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["Fields", "refuse_unknown"]

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_NAMES |= {list: "a list", dict: "a table"}


def refuse_unknown(given: Iterable[str], known: Iterable[str], *, where: str, what: str) -> None:
    """Raise for the first name that is not known, with the nearest one that is.

    Raises
    ------
    SchemaError
        Naming it, and those that are known.
    """
    legal = sorted(known)
    for name in given:
        if name not in legal:
            near = get_close_matches(name, legal, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            msg = f"{where}: {what} {name!r} is not known{hint} Known are {', '.join(legal)}."
            raise SchemaError(msg)


class Fields:
    """One table of a study file.

    Parameters
    ----------
    table
        Its content.
    where
        How messages call it.
    folder
        Folder to which files are relative.
    known
        Keys that it may have.

    Raises
    ------
    SchemaError
        If it has another key.
    """

    def __init__(
        self, table: Mapping[str, Any], *, where: str, folder: Path, known: Iterable[str]
    ) -> None:
        refuse_unknown(table, known, where=where, what="key")
        self.where, self.folder, self._table = where, folder, table

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise for a key that has the wrong value, or none.

        Raises
        ------
        SchemaError
            Always.
        """
        if key not in self._table:
            msg = f"{self.where}: {key!r} is missing; expected {expected}."
            raise SchemaError(msg)
        value = self._table[key]
        kind = _NAMES.get(type(value), type(value).__name__)
        msg = f"{self.where}: {key} = {value!r} ({kind}); expected {expected}."
        raise SchemaError(msg)

    def _one(self, key: str, fits: Callable[[Any], bool], expected: str, default: object) -> Any:  # noqa: ANN401
        """Return a value that fits; `...` as default means that there is none."""
        if key not in self._table and default is not ...:
            return default
        if key not in self._table or not fits(self._table[key]):
            self.refuse(key, expected)
        return self._table[key]

    def text(self, key: str, default: object = ...) -> Any:  # noqa: ANN401
        """Return text that is not empty."""
        fits = lambda value: isinstance(value, str) and bool(value.strip())  # noqa: E731
        return self._one(key, fits, "text", default)

    def whole(self, key: str, default: object = ..., *, least: int = 1) -> Any:  # noqa: ANN401
        """Return a whole number of at least `least`."""
        fits = lambda value: _is_whole(value, least)  # noqa: E731
        return self._one(key, fits, f"a whole number of at least {least}", default)

    def share(self, key: str, default: object = ...) -> Any:  # noqa: ANN401
        """Return a number from 0 to below 1."""
        fits = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1  # noqa: E731
        return self._one(key, fits, "a share, from 0 to below 1", default)

    def wholes(self, key: str, default: object = ...) -> Any:  # noqa: ANN401
        """Return a tuple of whole numbers of at least 0, none twice."""
        found = self._one(key, _are_wholes, "a list of different whole numbers", default)
        return tuple(found)

    def texts(self, key: str, default: object = ...) -> Any:  # noqa: ANN401
        """Return a tuple of texts."""
        fits = lambda value: _are_all(value, str)  # noqa: E731
        return tuple(self._one(key, fits, "a list of texts, such as ['a', 'b']", default))

    def choice(self, key: str, legal: Iterable[str], default: object = ...) -> Any:  # noqa: ANN401
        """Return one of `legal`."""
        listed = sorted(legal)
        expected = f"one of {', '.join(listed)}"
        return self._one(key, lambda value: value in listed, expected, default)

    def table(self, key: str) -> dict[str, Any]:
        """Return a table; empty if there is none."""
        found: dict[str, Any] = self._one(key, lambda v: isinstance(v, dict), "a table", {})
        return found

    def tables(self, key: str) -> list[dict[str, Any]]:
        """Return the tables of `[[key]]`; none if there are none."""
        fits = lambda value: _are_all(value, dict)  # noqa: E731
        found: list[dict[str, Any]] = self._one(key, fits, f"tables under [[{key}]]", [])
        return found

    def items(self, key: str) -> list[Any]:
        """Return a list of texts and tables; empty if there is none."""
        fits = lambda value: _are_all(value, (str, dict))  # noqa: E731
        found: list[Any] = self._one(key, fits, "a list of labels, such as ['a', 'b']", [])
        return found

    def file(self, key: str) -> Path:
        """Return a file that exists.

        Raises
        ------
        SchemaError
            If it does not.
        """
        return self._existing(key, self.text(key))

    def files(self, key: str) -> tuple[Path, ...]:
        """Return files that exist; none if the key is left out."""
        return tuple(self._existing(key, name) for name in self.texts(key, ()))

    def name(self, what: str) -> str:
        """Return the name under which results are kept.

        Raises
        ------
        SchemaError
            If it cannot be that of a file.
        """
        name: str = self.text("name")
        kept = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.strip())
        if kept != name.replace("-", "_"):
            self.refuse(
                "name",
                f"letters, digits, '_' and '-' only, such as {kept!r}, since it names files; "
                f"`title` may say more about the {what}",
            )
        return name

    def _existing(self, key: str, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            self.refuse(key, f"a file that is there, from {self.folder.resolve()}")
        return path.resolve()


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_wholes(value: object) -> bool:
    if not isinstance(value, list) or not all(_is_whole(one, 0) for one in value):
        return False
    return len(value) > 0 and len(set(value)) == len(value)


def _are_all(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, kind) for v in value)
