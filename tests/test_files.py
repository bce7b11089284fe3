"""Files are written whole or not at all, only where a file may be, and read within a bound."""

# ruff: noqa: PT012 - what raises is a block in which a file is written
from __future__ import annotations

import ast
import errno
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_perturb import SchemaError, _files
from scvi_perturb._files import (
    read_bytes,
    read_json,
    read_text,
    write_anndata,
    write_bytes,
    write_table,
    write_text,
    writing,
    writing_files,
    writing_folder,
    writing_hdf5,
)
from tests._source import modules


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def adata():
    counts = np.random.default_rng(0).poisson(1.0, (200, 50)).astype("f4")
    obs = pd.DataFrame({"kind": ["A", "B"] * 100}, index=[f"c{i}" for i in range(200)])
    return AnnData(counts, obs=obs)


# What is written ----------------------------------------------------------------------------


def test_file_is_there_when_it_is_complete(tmp_path):
    path = tmp_path / "a.csv"
    write_text(path, "old")
    with writing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".csv")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.csv"
    write_text(path, "old")
    with pytest.raises(error), writing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_files_of_the_user_are_not_touched(tmp_path):
    for name in ("x.part", "x.tmp", "x.partial", ".x.h5ad"):
        (tmp_path / name).write_text("mine")
    write_text(tmp_path / "x", "new")
    write_text(tmp_path / "x.h5ad", "new")
    assert {(tmp_path / name).read_text() for name in ("x.part", "x.tmp", "x.partial")} == {"mine"}
    assert (tmp_path / ".x.h5ad").read_text() == "mine"


def test_permissions_are_those_of_any_file_or_of_the_old_one(tmp_path):
    path = tmp_path / "a"
    (tmp_path / "other").touch()
    write_text(path, "")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    path.chmod(0o640)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_folder_is_made_where_that_is_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="a was not written: the folder does not exist"):
        write_text(tmp_path / "new" / "a", "")
    write_text(tmp_path / "new" / "a", "text", make_folder=True)
    assert (tmp_path / "new" / "a").read_text() == "text"
    for make_folder in (True, False):
        with pytest.raises(OSError, match="what stands for its folder is a file"):
            write_text(tmp_path / "new" / "a" / "b", "", make_folder=make_folder)


# Where nothing is written -------------------------------------------------------------------


def test_only_a_regular_file_is_replaced(tmp_path):
    folder, pipe, link, sock = (tmp_path / name for name in ("folder", "pipe", "link", "sock"))
    folder.mkdir()
    os.mkfifo(pipe)
    (tmp_path / "target").write_text("mine")
    link.symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(sock))
    expected = {
        folder: "is a folder",
        pipe: "is a named pipe",
        sock: "is a socket",
        link: "is a symbolic link to .*target",
        tmp_path / "dangling": "is a symbolic link to .*nothing",
        Path("/dev/null"): "is a device",
    }
    before = names(tmp_path)
    for path, message in expected.items():
        with pytest.raises(OSError, match=message):
            write_text(path, "new")
    assert (tmp_path / "target").read_text() == "mine"
    assert names(tmp_path) == before
    assert Path("/dev/null").is_char_device()


def test_link_that_comes_meanwhile_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("mine")
    with pytest.raises(OSError, match="symbolic link"), writing(tmp_path / "a") as temporary:
        temporary.write_text("new")
        (tmp_path / "a").symlink_to(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"
    assert names(tmp_path) == ["a", "target"]


@pytest.mark.parametrize("path", ["", "  ", "a\0b", None, 3, b"a"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((ValueError, TypeError), match="path="):
        write_text(path, "")
    with pytest.raises((ValueError, TypeError), match="path="):
        read_bytes(path)


def test_name_that_is_too_long_is_refused_at_once(tmp_path):
    with pytest.raises(OSError, match="name is too long"), writing(tmp_path / ("a" * 300)):
        pytest.fail("the work was begun")


def test_open_file_is_not_replaced_by_any_of_its_names(tmp_path, adata):
    path, link = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    write_anndata(path, adata)
    link.hardlink_to(path)
    backed = anndata.read_h5ad(path, backed="r")
    for name in (path, link, tmp_path / ".." / tmp_path.name / "a.h5ad"):
        with pytest.raises(OSError, match="is open in this process"):
            write_text(name, "new")
    backed.file.close()
    for given in (backed, link):  # closed, it is read again when it is needed
        with (
            pytest.raises(OSError, match="holds the data that are read here"),
            writing(path, inputs=[None, AnnData(), given]),
        ):
            pytest.fail("the work was begun")
    np.testing.assert_array_equal(anndata.read_h5ad(path).X, adata.X)
    with writing(path, inputs=[None, AnnData()]) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert link.stat().st_size > 3, "another name of the old file keeps it"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_folder_that_may_not_be_written_to(tmp_path, monkeypatch, code):
    # The system is asked by a stand-in, since to root every folder is open.
    def refuse(path, flags, *arguments):
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), path)
        return opened(path, flags, *arguments)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=r"a was not written: .*ame another path") as raised:
        write_text(tmp_path / "a", "new")
    assert raised.value.errno == code
    assert names(tmp_path) == []


# A full disk --------------------------------------------------------------------------------

#: The writer alone, which is there much sooner than the package.
ALONE = """
import signal, sys, types
alone = types.ModuleType("scvi_perturb")
alone.__path__ = [sys.argv[1]]
sys.modules["scvi_perturb"] = alone
from scvi_perturb import _files
path = sys.argv[2]
"""
LIMITED = """
import resource
import anndata, numpy as np, pandas as pd
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
adata = anndata.AnnData(np.random.default_rng(1).poisson(1.0, (400, 100)).astype("f4"))
frame = pd.DataFrame(np.ones((5000, 4)), columns=list("abcd"))
kinds = [
    (200_000, lambda: _files.write_text(path, "new" * 100_000)),
    (30_000, lambda: _files.write_table(path, frame)),
    (150_000, lambda: _files.write_anndata(path, adata)),
]
for most, write in kinds:
    for limit in range(0, most, most // 40):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write()
        except OSError as error:
            assert "was not written: it grew larger" in str(error), error
        else:
            raise AssertionError(f"written with a limit of {limit}")
print("alive")
"""


def start(code, *arguments):
    command = [sys.executable, "-c", ALONE + code, Path(_files.__file__).parent, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, command)], text=True, **pipes)


def test_disk_that_is_full_is_told_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_text("old")
    process = start(LIMITED, path)
    output, errors = process.communicate()
    assert (process.returncode, output) == (0, "alive\n"), errors
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.h5ad"]


def full_after(monkeypatch, n_bytes):
    """Let files be no longer than `n_bytes`, as on a disk that is full."""

    class Full(io.FileIO):
        def write(self, block):
            if self.tell() + len(block) > n_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(block)

    def opened(self, mode="r", buffering=-1, *arguments, **options):
        if "b" in mode and set(mode) & set("wax+") and not buffering:
            return Full(self, mode)
        return usual(self, mode, buffering, *arguments, **options)

    usual = Path.open
    monkeypatch.setattr(Path, "open", opened)


def test_long_run_stops_at_the_first_block_that_cannot_be_written(tmp_path, monkeypatch):
    full_after(monkeypatch, 20_000)
    path, n_blocks = tmp_path / "new" / "a.h5", 0
    with (
        pytest.raises(OSError, match="the disk is full"),
        writing_hdf5(path, make_folder=True) as (file, check),
    ):
        data = file.create_dataset("x", (0,), "f8", maxshape=(None,), chunks=(1000,))
        for n_blocks in range(1, 100):
            data.resize((1000 * n_blocks,))
            data[-1000:] = n_blocks
            file.flush()
            check()
    assert n_blocks < 4
    assert names(path.parent) == []


# Several at once, and ended from outside ----------------------------------------------------

WRITER = """
for i in range(int(sys.argv[4])):
    with _files.writing(path) as temporary:
        with temporary.open("w") as file:
            for _ in range(100):
                file.write(sys.argv[3] * 1000)
                file.flush()
        if i == 0:
            print("begun", flush=True)
"""


def test_writers_at_once_and_killed_ones_leave_a_whole_file(tmp_path):
    path = tmp_path / "a"
    sizes = {"a": 30, "b": 30, "c": 10**6}
    writers = [start(WRITER, path, letter, n) for letter, n in sizes.items()]
    for writer in writers:
        assert writer.stdout.readline() == "begun\n"
    seen = set()
    while any(writer.poll() is None for writer in writers[:2]):
        text = path.read_text() if path.exists() else ""
        seen |= {(letter, len(text)) for letter in set(text)}
    writers[2].send_signal(signal.SIGKILL)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, -signal.SIGKILL]
    text = path.read_text()
    seen |= {(letter, len(text)) for letter in set(text)}
    assert {size for _, size in seen} == {100_000}, "never half of a file, never of two writers"
    left = [name for name in names(tmp_path) if name != "a"]
    assert len(left) <= 1, "only the killed one could not clean up"
    assert all(name.startswith(_files.UNFINISHED) for name in left)


# Folders ------------------------------------------------------------------------------------


def test_folder_is_replaced_as_a_whole(tmp_path):
    path, own = tmp_path / "new" / "model", ("weights", "stale")
    with writing_folder(path) as temporary:
        (temporary / "weights").write_text("old")
        (temporary / "stale").write_text("old")
        assert not path.exists()
    with pytest.raises(ValueError, match="already exists"), writing_folder(path):
        pytest.fail("the work was begun")
    with writing_folder(path, overwrite=True, own=own) as temporary:
        (temporary / "weights").write_text("new")
        assert (path / "weights").read_text() == "old"
    assert names(path) == ["weights"]
    assert (path / "weights").read_text() == "new"
    (path / "notes").write_text("mine")
    with (
        pytest.raises(ValueError, match="holds notes, which would be lost"),
        writing_folder(path, overwrite=True, own=own),
    ):
        pytest.fail("the work was begun")
    with (
        pytest.raises(ValueError, match="holds notes"),
        writing_folder(tmp_path / "new", overwrite=True, own=["model"]),
    ):
        (tmp_path / "new" / "notes").write_text("mine")
    assert names(path.parent) == ["model", "notes"]
    assert names(path) == ["notes", "weights"]


@pytest.mark.parametrize("exchange", [True, False])
def test_failure_leaves_the_old_folder(tmp_path, monkeypatch, exchange):
    path = tmp_path / "model"
    with writing_folder(path) as temporary:
        (temporary / "weights").write_text("old")
    if not exchange:
        monkeypatch.setattr(sys, "platform", "other")
    with (
        pytest.raises(KeyboardInterrupt),
        writing_folder(path, overwrite=True, own=["weights"]) as temporary,
    ):
        (temporary / "weights").write_text("half")
        raise KeyboardInterrupt
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]
    with writing_folder(path, overwrite=True, own=["weights"]) as temporary:
        (temporary / "weights").write_text("new")
    assert (path / "weights").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_only_a_folder_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")
    for name, message in {
        "file": "is a file; expected a folder",
        "link": "is a symbolic link to",
        "folder": "holds the working directory",
        ".": "holds the working directory",
    }.items():
        with pytest.raises(OSError, match=message), writing_folder(tmp_path / name, overwrite=True):
            pytest.fail("the work was begun")
    assert names(tmp_path) == ["file", "folder", "link"]


def test_files_of_one_run_are_put_in_place_together(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="wrong"), writing_files(out) as folder:
        (folder / "a").write_text("half")
        msg = "wrong"
        raise ValueError(msg)
    assert not out.exists()
    with writing_files(out) as folder:
        (folder / "a").write_text("1")
    (out / "mine").write_text("mine")
    (out / "b").symlink_to(out / "mine")
    with pytest.raises(OSError, match="b is a symbolic link"), writing_files(out) as folder:
        (folder / "a").write_text("2")
        (folder / "b").write_text("2")
    assert (out / "a").read_text() == "1"
    with (
        pytest.raises(OSError, match="holds the data"),
        writing_files(out, inputs=[out / "mine"]) as folder,
    ):
        (folder / "mine").write_text("2")
    assert names(out) == ["a", "b", "mine"]
    assert (out / "mine").read_text() == "mine"


# Content ------------------------------------------------------------------------------------


def test_text_that_spreadsheets_would_run_is_escaped(tmp_path):
    cells = ["=1+2", "+A", "-B", "@C", "\tD", "\rE", "a=b", "", "-", None, "ok"]
    frame = pd.DataFrame(
        {"=head": cells, "number": -np.arange(11.0), "kind": pd.Categorical(cells)}
    )
    before = frame.copy()
    write_table(tmp_path / "a.csv", frame)
    found = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    escaped = ["'=1+2", "'+A", "'-B", "'@C", "'\tD", "'\rE", "a=b", "", "'-", "", "ok"]
    assert found["'=head"].tolist() == escaped
    assert found["kind"].tolist() == escaped
    assert found["number"].tolist() == frame["number"].tolist()
    pd.testing.assert_frame_equal(frame, before)


def test_anndata_is_what_its_own_method_writes(tmp_path, adata):
    adata.uns["info"] = {"seed": 1}
    write_anndata(tmp_path / "a.h5ad", adata.copy())
    adata.write_h5ad(tmp_path / "b.h5ad")
    one, two = (anndata.read_h5ad(tmp_path / name) for name in ("a.h5ad", "b.h5ad"))
    np.testing.assert_array_equal(one.X, two.X)
    pd.testing.assert_frame_equal(one.obs, two.obs)
    assert one.uns == two.uns


def test_input_is_read_within_a_bound(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(5_000_000)))
    assert path.stat().st_size < 10_000
    with pytest.raises(SchemaError, match=r"it holds more than 1,000,000 bytes unpacked"):
        read_bytes(path, most=1_000_000)
    assert len(read_bytes(path)) == 5_000_000
    path.write_bytes(bytes(2000))
    with pytest.raises(SchemaError, match=r"it holds more than 1,000 bytes\."):
        read_text(path, most=1000)


def test_what_is_no_text_or_no_json_is_told(tmp_path):
    path = tmp_path / "a.json"
    whole = gzip.compress(b"text" * 100)
    for content in (whole[:-9], whole[:20] + b"\0\0\0" + whole[23:], b"\x1f\x8bno"):
        path.write_bytes(content)
        with pytest.raises(SchemaError, match=r"a.json is not a text file: the gzip is broken"):
            read_text(path)
    for content in (b"", b"{", b"[" * 100_000, b"\xff", b'{"a": 1} 2', b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(SchemaError, match=r"a.json is not a state: it is not (JSON|in UTF-8)"):
            read_json(path, kind="a state")
    path.write_bytes('\ufeff{"a": 1}'.encode())
    assert read_json(path, kind="a state") == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    for name, error in {"pipe": OSError, "none": FileNotFoundError, "": OSError}.items():
        with pytest.raises(error):
            read_text(tmp_path / name)


# The source ---------------------------------------------------------------------------------

WRITES = {"write_text", "write_bytes", "to_csv", "to_json", "to_parquet", "to_excel", "write_h5ad"}
WRITES |= {"write_zarr", "write_h5mu", "savetxt", "savez", "symlink_to", "hardlink_to", "mkstemp"}
WRITES |= {"mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "copyfile", "copytree"}
MODULES = {"os", "shutil", "torch", "np", "json", "pickle"}
OF_MODULES = {"replace", "rename", "save", "dump", "open", "move", "copy", "makedirs", "remove"}
#: What writes no results: a switch of the system, and the suite for other models.
ELSEWHERE = {("benchmark/_evaluation.py", "write_text"), ("testing.py", "write_h5ad")}


def written(tree):
    """Yield the calls that write files, with their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        method = isinstance(function, ast.Attribute)
        given = node.args[:1] if method and name == "open" else node.args[1:]
        given = [*given, *(k.value for k in node.keywords if k.arg == "mode")]
        modes = [str(a.value) for a in given if isinstance(a, ast.Constant)]
        opens = name in ("open", "File", "fdopen") and any(set(m) & set("wax+") for m in modes)
        if (method and name in WRITES) or opens or (owner in MODULES and name in OF_MODULES):
            yield node.lineno, name, ast.unparse(node)


def test_one_file_writes():
    wrong = [
        f"{module.where}:{line}: {call[:80]}"
        for module in modules()
        if module.where != "_files.py"
        for line, name, call in written(module.tree)
        if (module.where, name) not in ELSEWHERE
        # Into memory, and what gives back text.
        and not (name == "save" and "state" in call)
        and not (name == "to_json" and call.startswith(("self.config", "split.to_json")))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_search_for_writers_finds_them():
    code = "open('a', 'w'); p.open(mode='xb'); p.write_text(''); os.replace(a, b); np.save(f, x)"
    assert len(list(written(ast.parse(code)))) == 5
    assert not list(written(ast.parse("open('a'); p.open('rb'); text.replace('a', 'b')")))


def test_write_bytes_keeps_bytes(tmp_path):
    write_bytes(tmp_path / "a", bytes(range(256)))
    assert read_bytes(tmp_path / "a") == bytes(range(256))
