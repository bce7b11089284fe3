"""Parts by name: ours, those of other packages, and those of a session."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from scvi_perturb import registry as module
from scvi_perturb.registry import KINDS, Registry, UnknownNameError, registry


@pytest.mark.parametrize("kind", KINDS)
def test_every_own_part_loads(kind):
    found = Registry(kind)
    assert len(found) == len({*found}) > 0
    assert all(found[name] is not None for name in found)


def test_there_is_one_registry_of_a_kind():
    assert registry("models") is registry("models")
    with pytest.raises(ValueError, match=r"kind='model' is not known.*'models'"):
        registry("model")


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(UnknownNameError, match=r"models has no 'PerturbDifusion'\. Did you mean "):
        Registry("models")["PerturbDifusion"]
    assert "PerturbDifusion" not in Registry("models")


def test_parts_of_a_session():
    found = Registry("samplers")
    found.register("mine", len)
    assert found["mine"] is len
    assert "mine" in list(found)
    with pytest.raises(ValueError, match="has 'mine' already"):
        found.register("mine", max)
    found.register("mine", max, replace=True)
    assert found["mine"] is max
    found.unregister("mine")
    assert "mine" not in found


def test_parts_of_other_packages_come_after_ours(monkeypatch):
    group = "scvi_perturb.samplers"
    others = (
        EntryPoint("theirs", "math:sqrt", group),
        EntryPoint("heun", "math:sin", group),
        EntryPoint("broken", "no_such_package:part", group),
    )
    monkeypatch.setattr(module, "_installed", lambda _: others)
    found = Registry("samplers")
    assert found["theirs"](4) == 2
    assert found["heun"].__module__ == "scvi_perturb.generative.samplers"
    with pytest.raises(ImportError, match=r"'broken' .*no_such_package:part.* does not load"):
        found["broken"]
