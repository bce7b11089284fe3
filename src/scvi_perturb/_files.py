"""Write files whole or not at all, and read text within a bound; nothing else here writes.

A file appears under its name when it is complete and on the disk; until then, and after any
error, what stood there before stands there still.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import gzip
import io
import json
import math
import os
import secrets
import shutil
import stat
import sys
import tempfile
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from scvi_perturb._core import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    import h5py
    import numpy as np
    import pandas as pd
    from anndata import AnnData

__all__ = [
    "finished_files",
    "read_bytes",
    "read_json",
    "read_text",
    "scratch",
    "write_anndata",
    "write_bytes",
    "write_table",
    "write_text",
    "writing",
    "writing_files",
    "writing_folder",
    "writing_hdf5",
]

#: What is being written has a name that begins so; a process that is killed leaves it behind.
UNFINISHED: Final = ".unfinished-"
#: Text and JSON are read up to so many bytes, counted when unpacked.
MOST_BYTES: Final = 1 << 30
_BLOCK: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
#: A spreadsheet takes text that begins so for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_FULL: Final = {
    errno.ENOSPC: "the disk is full. Free space, or name another path",
    errno.EDQUOT: "the quota of this user is used up. Free space, or name another path",
    errno.EFBIG: "it grew larger than a file may be here. Name a path on another disk",
}
_CLOSED: Final = {
    errno.EACCES: "this user may not write there. Change its permissions, or name another path",
    errno.EPERM: "this user may not write there. Change its permissions, or name another path",
    errno.EROFS: "the file system is read-only. Name another path",
    errno.ENOENT: "the folder does not exist. Make it, or name another path",
    errno.EEXIST: "what stands for its folder is a file. Name another path",
    errno.ENOTDIR: "what stands for its folder is a file. Name another path",
    errno.ENAMETOOLONG: "the name is too long. Name a shorter one",
}


def finished_files(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """Return the files of a folder that match, in order, without those that a killed process left.

    A process that is killed while it writes leaves a file whose name begins with `UNFINISHED`.
    """
    found = Path(folder).glob(pattern)
    return sorted(path for path in found if not path.name.startswith(UNFINISHED))


@contextmanager
def writing(
    path: str | os.PathLike[str], *, inputs: Iterable[object] = (), make_folder: bool = False
) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block succeeds.

    `inputs` are paths, and AnnData that may be backed by one, that must not be overwritten.
    `make_folder` makes a folder that is missing.

    Raises `OSError`: If `path` is anything but a regular file or nothing, is open or an input, or
    cannot be written, as on a full disk. Raises `ValueError`: If `path` is empty.
    """
    target = _checked(path)
    _check_unused(target, inputs)
    with _explained(target, _FULL | _CLOSED):
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{target.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _explained(target, _FULL):
            yield temporary
        with _explained(target, _FULL | _CLOSED):
            _keep_mode(temporary, _checked(target))
            _flush(temporary)
            temporary.replace(target)
        _flush_folder(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, make_folder: bool = False) -> None:
    """Write a file; see `writing`."""
    with writing(path, make_folder=make_folder) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str, *, make_folder: bool = False) -> None:
    """Write a file of text in UTF-8; see `writing`."""
    write_bytes(path, text.encode(), make_folder=make_folder)


def write_table(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Write a table as CSV without its index, numbers with six digits; see `writing`.

    Text that a spreadsheet would run as a formula is written with an apostrophe before it. Where
    the name ends in `.parquet` it is written as that, unchanged, which needs pyarrow.
    """
    if Path(path).suffix == ".parquet":
        with writing(path) as temporary:
            frame.to_parquet(temporary, index=False)
        return
    plain = frame.rename(columns=_no_formula)
    texts = [*plain.select_dtypes(exclude=["number", "bool"])]
    plain = plain.assign(**{name: plain[name].astype(object).map(_no_formula) for name in texts})
    # Python before 3.13 does not quote the carriage return, which ends a line.
    split = any("\r" in str(cell) for name in texts for cell in (name, *plain[name]))
    quoting: Literal[0, 1] = csv.QUOTE_ALL if split else csv.QUOTE_MINIMAL
    with writing(path) as temporary:
        plain.to_csv(temporary, index=False, float_format="%.6g", quoting=quoting)


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


@contextmanager
def writing_hdf5(
    path: str | os.PathLike[str], *, inputs: Iterable[object] = (), make_folder: bool = False
) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Yield an HDF5 file to write to, and a check that raises what went wrong meanwhile.

    See `writing`. The check is called now and then in a long run; it is called at the end.
    """
    import h5py

    with writing(path, inputs=inputs, make_folder=make_folder) as temporary:
        with _Sink(temporary) as sink, h5py.File(sink, "w") as file:
            yield file, sink.check
        sink.check()


class _Sink(io.RawIOBase):
    """A file for HDF5, which ends the interpreter when it cannot write while it closes a file.

    It is told that all is well, and the first error is kept for `check`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, block: Any) -> int:  # noqa: ANN401 - any buffer
        """Write a block; after an error, do nothing."""
        left = memoryview(block).cast("B")
        size = len(left)
        try:
            while left and self._error is None:
                left = left[self._file.write(left) :]
        except BaseException as error:  # raised by `check`
            self._error = error
        return size

    def readinto(self, block: Any) -> int:  # noqa: ANN401
        """Read a block; what was not written is zero."""
        view = memoryview(block).cast("B")
        n_read = self._file.readinto(view) or 0
        view[n_read:] = bytes(len(view) - n_read)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or make it longer."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of float32 in a file without a name, which ends with the array.

    Raises `OSError`: If the disk of the temporary folder is too small for it.
    """
    import numpy as np

    n_bytes = 4 * math.prod(shape)
    folder = Path(tempfile.gettempdir())
    with _explained(folder, _FULL | _CLOSED), tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later ends the interpreter
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        return np.memmap(file, np.float32, "w+", shape=shape)


#: What a folder of zarr with AnnData holds.
ZARR_NAMES: Final = frozenset(
    ("X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp", "zarr.json")
)


def write_anndata(path: str | os.PathLike[str], adata: AnnData) -> None:
    """Write an `.h5ad` file, or a folder where the name ends in `.zarr`; see `writing`."""
    from anndata.io import write_elem

    adata.strings_to_categoricals()  # as AnnData's own method does
    if Path(path).suffix == ".zarr":
        import zarr

        with writing_folder(path, overwrite=True, own=ZARR_NAMES) as folder:
            write_elem(zarr.open_group(folder, mode="w", zarr_format=3), "/", adata)
        return
    with writing_hdf5(path) as (file, _):
        write_elem(file, "/", adata)


@contextmanager
def writing_files(
    folder: str | os.PathLike[str], *, inputs: Iterable[object] = ()
) -> Iterator[Path]:
    """Yield a temporary folder; its files move into `folder`, which is made, on success.

    What stands in `folder` is replaced by files of the same names, or stays. `inputs` as for
    `writing`.

    Raises `OSError`: As for `writing`, of any of the files; then none is moved.
    """
    out = _named(folder)
    if not out.is_dir() and os.path.lexists(out):
        msg = f"{out}: there is a file of this name; name a folder."
        raise NotADirectoryError(msg)
    existed = out.is_dir()
    with _explained(out, _FULL | _CLOSED):
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f"{UNFINISHED}{secrets.token_hex(8)}"
        temporary.mkdir()
    try:
        with _explained(out, _FULL):
            yield temporary
        made = sorted(temporary.iterdir())
        for path in made:
            _check_unused(_checked(out / path.name), inputs)
            _flush(path)
        existed = True
        for path in made:
            path.replace(out / path.name)
        _flush_folder(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                out.rmdir()


@contextmanager
def writing_folder(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    own: Collection[str] = (),
) -> Iterator[Path]:
    """Yield a temporary folder to write to; it becomes `path` when the block succeeds.

    With `overwrite` a folder that is there is replaced, at once and as a whole. `own` are the names
    that it may hold.

    Raises `ValueError`: If there is a folder and `overwrite` is false, or it holds other names.
    Raises `OSError`: If `path` is no folder, a link, the working directory or above it, or cannot
    be written.
    """
    target = _named(path)
    check = partial(_check_folder, target, overwrite=overwrite, own=own)
    check()
    with _explained(target, _FULL | _CLOSED):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
        temporary.mkdir()
    try:
        with _explained(target, _FULL):
            yield temporary
            for found in temporary.rglob("*"):
                (_flush_folder if found.is_dir() else _flush)(found)
        with _explained(target, _FULL | _CLOSED):
            _flush_folder(temporary)
            check()
            _swap(temporary, target)
        _flush_folder(target.parent)
    finally:
        # After the swap, this is what was there before.
        shutil.rmtree(temporary, ignore_errors=True)


def _check_folder(target: Path, *, overwrite: bool, own: Collection[str]) -> None:
    """Raise unless a folder may be written there."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        msg = f"{target} is {_kind(target)}; expected a folder or nothing. Name another path."
        raise NotADirectoryError(msg)
    if not overwrite:
        msg = f"{target} already exists. Name another folder, or pass overwrite=True."
        raise ValueError(msg)
    if Path.cwd().is_relative_to(target.resolve()):
        msg = f"{target} holds the working directory and cannot be replaced. Name a folder in it."
        raise OSError(msg)
    others = sorted({found.name for found in target.iterdir()} - set(own))
    if others:
        msg = (
            f"{target} holds {', '.join(others[:5])}, which would be lost. Name another folder, or "
            "move them."
        )
        raise ValueError(msg)


def _swap(new: Path, old: Path) -> None:
    """Put a folder in the place of another, which gets the first one's name, if there is one.

    Linux does it in one step. Elsewhere there is a moment without a folder under the name.
    """
    if not old.exists():
        new.rename(old)
        return
    if sys.platform == "linux":
        exchange, here = 2, -100
        library = ctypes.CDLL(None, use_errno=True)
        rename = getattr(library, "renameat2", None)
        names = os.fsencode(new), os.fsencode(old)
        if rename is not None and rename(here, names[0], here, names[1], exchange) == 0:
            return
    aside = new.with_name(f"{new.name}-before")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


# Reading ------------------------------------------------------------------------------------


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_bytes(
    path: str | os.PathLike[str], *, kind: str = "a file", most: int = MOST_BYTES
) -> bytes:
    """Return what a file holds, unpacked if it is gzipped; `kind` says what it should be.

    Raises `SchemaError`: If it holds more than `most` bytes or is a broken gzip. Raises `OSError`:
    If it is no regular file.
    """
    source = _named(path)
    if not source.exists():
        msg = f"There is no file {source}; expected {kind}. Check the path."
        raise FileNotFoundError(msg)
    if not source.is_file():
        msg = f"{source} is {_kind(source.resolve())}; expected {kind}."
        raise OSError(msg)
    with source.open("rb") as raw:
        packed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        blocks, size = [], 0
        try:
            while block := stream.read(_BLOCK):
                size += len(block)
                if size > most:
                    unpacked = " unpacked" if packed else ""
                    raise _no(source, kind, f"it holds more than {most:,} bytes{unpacked}")
                blocks.append(block)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _no(source, kind, f"the gzip is broken ({error})") from None
    return b"".join(blocks)


def read_text(
    path: str | os.PathLike[str], *, kind: str = "a text file", most: int = MOST_BYTES
) -> str:
    """Return the text of a file in UTF-8, plain or gzipped; see `read_bytes`."""
    content = read_bytes(path, kind=kind, most=most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no(path, kind, f"it is not in UTF-8 ({error})") from None


def read_json(path: str | os.PathLike[str], *, kind: str, most: int = MOST_BYTES) -> Any:  # noqa: ANN401
    """Return what a file of JSON holds; see `read_bytes`."""
    text = read_text(path, kind=kind, most=most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no(path, kind, f"it is not JSON ({error})") from None


def _no(path: str | os.PathLike[str], kind: str, why: str) -> SchemaError:
    return SchemaError(f"{path} is not {kind}: {why}. Check the path, or get the file again.")


# Checks -------------------------------------------------------------------------------------


def _named(path: str | os.PathLike[str]) -> Path:
    """Return a path, or raise when it is none."""
    if not isinstance(path, str | os.PathLike):
        msg = f"path={path!r} is a {type(path).__name__}; expected the path of a file, as text."
        raise TypeError(msg)
    text = os.fspath(path)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        msg = f"path={text!r} is no path; expected the path of a file, as text."
        raise ValueError(msg)
    return Path(text)


def _checked(path: str | os.PathLike[str]) -> Path:
    """Return a path that a file may be written to: nothing is there, or a regular file."""
    target = _named(path)
    with _explained(target, _CLOSED):
        try:
            mode = target.lstat().st_mode
        except FileNotFoundError:
            return target
    if stat.S_ISDIR(mode):
        msg = f"{target} is a folder; expected a file or nothing. Name a file in it."
        raise IsADirectoryError(msg)
    if not stat.S_ISREG(mode):
        msg = f"{target} is {_kind(target)}; expected a regular file or nothing. Name another path."
        raise OSError(msg)
    if not os.access(target, os.W_OK):
        msg = f"{target} was not written: it is write-protected. Lift that, or name another path."
        raise PermissionError(msg)
    return target


def _kind(path: Path) -> str:
    """Return what stands at a path, in words."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {path.readlink()}"
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}
    kinds |= {stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _check_unused(target: Path, inputs: Iterable[object]) -> None:
    """Raise when the file is one of the inputs, or open in this process, by whatever path."""
    try:
        found = _identity(target.lstat())
    except OSError:
        return
    for given in inputs:
        source = given if isinstance(given, str | os.PathLike) else getattr(given, "filename", None)
        if source is not None and Path(source).exists() and target.samefile(source):
            msg = (
                f"{target} holds the data that are read here; writing would destroy them. Name "
                "another path."
            )
            raise shutil.SameFileError(msg)
    if found in _open_hdf5():
        msg = (
            f"{target} is open in this process, e.g. as a backed AnnData. Name another path, or "
            "close it first (`adata.file.close()`)."
        )
        raise shutil.SameFileError(msg)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _open_hdf5() -> set[tuple[int, int]]:
    """Return the identities of the HDF5 files that are open in this process."""
    h5py = sys.modules.get("h5py")
    if h5py is None:
        return set()
    identities = set()
    for opened in h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE):
        # Of a file of another kind, e.g. in memory, there is no such number.
        with suppress(OSError, RuntimeError, ValueError, NotImplementedError):
            identities.add(_identity(os.fstat(opened.get_vfd_handle())))
    return identities


@contextmanager
def _explained(target: Path, reasons: dict[int, str]) -> Iterator[None]:
    """Say of an error of the file system what was not written, and why."""
    try:
        yield
    except OSError as error:
        why = reasons.get(error.errno or 0)
        if why is None:
            raise
        msg = f"{target} was not written: {why}. What was there before is unchanged."
        raise OSError(error.errno, msg) from error


def _keep_mode(temporary: Path, target: Path) -> None:
    """Give a file the permissions of the one that it replaces."""
    if target.exists():
        shutil.copymode(target, temporary)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
