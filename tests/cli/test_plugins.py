"""Commands of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from scvi_perturb import registry as registry_module
from scvi_perturb.cli import main
from scvi_perturb.registry import registry

GOOD = '''
from scvi_perturb.cli import UsageError

def count(file: str, *, at_least: int = 1) -> int:
    """Count letters.

    Parameters
    ----------
    at_least
        How many are enough.
    """
    if not file:
        raise UsageError("Name a file.")
    print(len(file))
    return 0 if len(file) >= at_least else 1
'''


@pytest.fixture(autouse=True)
def _plugins(monkeypatch):
    """Two packages: one works, one does not."""
    Path("plugin_good.py").write_text(GOOD, encoding="utf-8")
    Path("plugin_broken.py").write_text("import no_such_module\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    points = (
        EntryPoint("count", "plugin_good:count", "scvi_perturb.commands"),
        EntryPoint("broken", "plugin_broken:run", "scvi_perturb.commands"),
        EntryPoint("demo", "plugin_broken:run", "scvi_perturb.commands"),
    )
    monkeypatch.setattr(registry_module, "_installed", lambda group: points)
    monkeypatch.setattr(registry("commands"), "_loaded", {})


def test_its_function_is_a_command(capsys):
    assert main(["count", "abc"]) == 0
    assert capsys.readouterr().out == "3\n"
    assert main(["count", "abc", "--at-least", "4"]) == 1
    assert main(["count", "abc", "--at-least", "x"]) == 2
    assert "--at-least" in capsys.readouterr().err
    assert main(["count", ""]) == 2
    assert capsys.readouterr().err == "scvi-perturb: Name a file.\n"


def test_help_names_it_without_loading_it(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "count" in printed
    assert "broken" in printed
    assert main(["count", "--help"]) == 0
    assert "How many are enough." in capsys.readouterr().out


def test_a_broken_one_is_named(capsys):
    assert main(["broken"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "scvi_perturb.commands 'broken' of" in err
    assert "(plugin_broken:run) does not load" in err
    assert "No module named 'no_such_module'" in err


def test_others_work_beside_a_broken_one(capsys):
    assert main(["check", "absent.h5ad"]) == 2
    assert "There is no file absent.h5ad" in capsys.readouterr().err


def test_our_own_commands_are_not_replaced(capsys):
    assert main(["demo", "--help"]) == 0
    assert "--held-out" in capsys.readouterr().out
