"""What is held out by name, by cluster, and by how many singles are seen."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_perturb._core import LeakError, SchemaError
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.split.kinds import Split, SplitOptions, split
from tests.data._screen import screen

PAIRS = ["A+B", "B+C", "A+C", "C+D", "E+F", "A+G", "G+H"]
SINGLES = list("ABCDEF")


@pytest.fixture(scope="module")
def adata():
    return screen(["control", *SINGLES, *PAIRS, "A+B+C"], contexts=("T",), n_cells=3)


def held_names(made):
    return {frozenset(row["perturbation"].split("+")) for row in made.held_out}


def seen_names(adata, made):
    cells = np.concatenate([made.train, made.validation])
    return {frozenset(label.split("+")) for label in adata.obs["perturbation"].iloc[cells]}


def signatures(names):
    """Return a table of one row a perturbation, without controls."""
    obs = pd.DataFrame({"perturbation": names}, index=[f"s{i}" for i in range(len(names))])
    return AnnData(obs=obs, var=pd.DataFrame(index=["g0"]))


@settings(max_examples=80)
@given(
    st.sampled_from([0, 1, 2]),
    st.integers(0, 10_000),
    st.sampled_from([0.2, 0.5, 0.9]),
    st.lists(st.sampled_from(PAIRS), min_size=2, max_size=7, unique=True),
    st.sets(st.sampled_from("ABCDEFGH"), min_size=2),
)
def test_as_many_singles_are_seen_as_asked(n, seed, fraction, pairs, singles):
    able = [pair for pair in pairs if len(singles & {*pair.split("+")}) >= n]
    data = screen(["control", "X", *sorted(singles), *pairs], contexts=("T",), n_cells=2)
    options = SplitOptions(singles_seen=n)
    if not able:
        with pytest.raises(SchemaError, match=f"no combination of two has {n} components"):
            split(data, "unseen_combination", options=options)
        return
    made = split(data, "unseen_combination", seed=seed, fraction=fraction, options=options)
    made.leaks(data)
    cells = np.concatenate([made.train, made.validation, made.test])
    np.testing.assert_array_equal(np.sort(cells), np.arange(data.n_obs))
    seen, held = seen_names(data, made), held_names(made)
    assert not seen & held
    combinations = [row for row in made.held_out if row["stratum"] == "combination"]
    assert combinations
    for row in combinations:
        alone = [name for name in row["perturbation"].split("+") if {name} in seen]
        assert len(alone) == row["singles_seen"] == n
    # a single is hidden only for a pair that is held out
    needed = {name for row in combinations for name in row["perturbation"].split("+")}
    hidden = {row["perturbation"] for row in made.held_out if row["stratum"] == "single"}
    assert hidden <= needed & singles
    if n == 0:
        assert hidden == needed & singles
    if n == 2:
        assert not hidden


def test_no_single_is_hidden_unless_asked(adata):
    made = split(adata, "unseen_combination", fraction=0.5)
    assert all(len(names) > 1 for names in held_names(made))
    assert all("stratum" not in row for row in made.held_out)


def test_pairs_that_share_a_component_agree_on_what_is_hidden(adata):
    for seed in range(6):
        options = SplitOptions(singles_seen=1, held_out=["A+B", "B+C", "G+A", "C+D"])
        made = split(adata, "unseen_combination", seed=seed, options=options)
        count = {row["perturbation"]: row["singles_seen"] for row in made.held_out}
        assert [count[pair] for pair in ("A+B", "B+C", "A+G", "C+D")] == [1, 1, 1, 1]
        # G was never measured alone, so A is seen, B hidden, C seen and D hidden.
        assert {n for names in held_names(made) if len(names) == 1 for n in names} == set("BD")


def test_an_odd_ring_is_refused_by_name_and_thinned_at_random(adata):
    options = SplitOptions(singles_seen=1, held_out=["A+B", "B+C", "A+C"])
    with pytest.raises(SchemaError, match="odd ring"):
        split(adata, "unseen_combination", options=options)
    ring = screen(["control", *"ABC", "A+B", "B+C", "A+C"], n_cells=2)
    options = SplitOptions(singles_seen=1)
    made = split(ring, "unseen_combination", fraction=1.0, options=options)
    pairs = [row for row in made.held_out if row["stratum"] == "combination"]
    assert [row["singles_seen"] for row in pairs] == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_combinations_by_name(adata, seed):
    options = SplitOptions(held_out=["D + C", "F+E"])
    made = split(adata, "unseen_combination", seed=seed, fold=3, options=options)
    assert held_names(made) == {frozenset("CD"), frozenset("EF")}
    assert len(made.test) == 6


def test_larger_combinations_go_with_the_named_one(adata):
    made = split(adata, "unseen_combination", options=SplitOptions(held_out="B+A"))
    assert held_names(made) == {frozenset("AB"), frozenset("ABC")}


def test_perturbations_by_name(adata):
    made = split(adata, "unseen_perturbation", options=SplitOptions(held_out=["G", "E"]))
    assert held_names(made) == {frozenset(n) for n in ("E", "EF", "AG", "GH")}
    assert {name for row in made.held_out for name in row["targets"]} == {"E", "G"}


def test_names_with_another_separator():
    adata = screen(["control", "A", "B", "A+B", "B+C"], n_cells=2)
    adata.obs["perturbation"] = adata.obs["perturbation"].str.replace("+", "_", regex=False)
    keys = ScreenKeys("perturbation", separator="_")
    options = SplitOptions(held_out=["B_A"])
    made = split(adata, "unseen_combination", keys=keys, options=options)
    assert {row["perturbation"] for row in made.held_out} == {"A_B"}


@pytest.mark.parametrize(
    ("kind", "named", "message"),
    [
        ("unseen_combination", "A+D", r"'A\+D' is not a combination .* Nearest: 'C\+D'"),
        ("unseen_combination", "A", "'A' is not a combination"),
        ("unseen_perturbation", "A+B", r"'A\+B' is not a perturbation"),
        ("unseen_perturbation", "control", "'control' is not a perturbation"),
    ],
)
def test_unknown_names_raise(adata, kind, named, message):
    with pytest.raises(SchemaError, match=message):
        split(adata, kind, options=SplitOptions(held_out=[named]))


def test_a_named_pair_needs_enough_singles(adata):
    options = SplitOptions(held_out=["G+H"], singles_seen=1)
    with pytest.raises(SchemaError, match="not a pair with 1 or more singles"):
        split(adata, "unseen_combination", options=options)


@pytest.mark.parametrize("kind", ["cells", "dose", "unseen_context", "context_transfer"])
def test_a_kind_that_ignores_names_refuses_them(adata, kind):
    with pytest.raises(ValueError, match=f"held_out is not for kind '{kind}'"):
        split(adata, kind, options=SplitOptions(held_out=["A"]))
    with pytest.raises(ValueError, match="singles_seen is not for kind"):
        split(adata, kind, options=SplitOptions(singles_seen=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"singles_seen": 3}, "singles_seen=3"),
        ({"held_out": []}, "held_out is empty"),
        ({"held_out": ["A"], "groups": {"A": "1"}}, "`groups` or `held_out`"),
        ({"groups": {"A": ""}}, "no cluster for 'A'"),
        ({"groups": {"A": float("nan")}}, "no cluster for 'A'"),
        ({"groups": pd.Series(["1", "2"], index=["A", "A"])}, "'A' in two clusters"),
    ],
)
def test_messages_of_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SplitOptions(**options)


@pytest.mark.parametrize(
    ("kind", "options", "contexts"),
    [
        ("unseen_combination", {"singles_seen": np.int64(1)}, ()),
        ("unseen_combination", {"held_out": ("A+B", "C+D"), "singles_seen": 0}, ()),
        ("unseen_perturbation", {"held_out": pd.Series(["A"])}, ()),
        ("unseen_perturbation", {"groups": pd.Series(range(8), index=list("ABCDEFGH"))}, ()),
        ("unseen_context", {"context": {"donor": np.int64(1)}}, ("donor",)),
        ("unseen_context", {"context": np.int64(1)}, ("donor",)),
        ("context_transfer", {"shown": np.float32(0.25)}, ("donor",)),
    ],
)
def test_options_survive_json(adata, tmp_path, kind, options, contexts):
    adata = adata.copy()
    adata.obs["donor"] = np.arange(adata.n_obs) % 2
    options = SplitOptions(**options)
    made = split(
        adata,
        kind,
        seed=np.int64(2),
        fold=np.int64(0),
        fraction=np.float32(0.25),
        keys=ScreenKeys(context=contexts),
        options=options,
    )
    made.to_json(tmp_path / "split.json")
    read = Split.from_json(tmp_path / "split.json")
    assert read == made
    assert read.parameters == made.parameters
    read.check(adata)
    read.leaks(adata)
    again = SplitOptions(**read.parameters["options"])
    assert again == options
    assert (
        split(adata, kind, seed=2, fraction=0.25, keys=ScreenKeys(context=contexts), options=again)
        == made
    )


def test_a_file_without_the_new_options_is_read(adata, tmp_path):
    state = split(adata, "unseen_combination").to_dict()
    for name in ("singles_seen", "held_out"):
        assert state["parameters"]["options"].pop(name) is None
    (tmp_path / "old.json").write_text(json.dumps(state), encoding="utf-8")
    read = Split.from_json(tmp_path / "old.json")
    read.check(adata)
    read.leaks(adata)
    old = SplitOptions(**read.parameters["options"])
    assert old == SplitOptions()
    assert {field.name for field in fields(old)} >= set(read.parameters["options"])


def test_a_hidden_single_in_training_is_a_leak(adata):
    options = SplitOptions(held_out=["C+D"], singles_seen=0)
    state = split(adata, "unseen_combination", options=options).to_dict()
    single = [i for i in state["test"] if adata.obs["perturbation"].iloc[i] == "D"]
    state["test"].remove(single[0])
    state["train"].append(single[0])
    with pytest.raises(LeakError, match=r"D \(1 cells\)"):
        Split.from_dict(json.loads(json.dumps(state))).leaks(adata)


@pytest.mark.parametrize("labels", [list("ABCDEFGHIJ"), [*"ABCDEFGH", "A+B"]])
def test_signatures_without_controls(labels, tmp_path):
    adata = signatures(labels)
    keys = ScreenKeys("perturbation")
    held = []
    for fold in range(4):
        made = split(adata, "unseen_perturbation", keys=keys, fraction=0.25, fold=fold)
        assert len(made.validation) == 0
        assert "0 validation" in repr(made)
        made.to_json(tmp_path / "split.json")
        read = Split.from_json(tmp_path / "split.json")
        assert read == made
        assert read.validation.dtype == np.int64
        held += sorted({name for row in made.held_out for name in row["targets"]})
    assert sorted(held) == sorted({name for label in labels for name in label.split("+")})


def test_duplicates_of_a_molecule_stay_together():
    adata = signatures(list("ABCDEF"))
    smiles = dict(zip("ABCDEF", ["CCO", "CCO", "C", "CC", "CCC", "CCC"], strict=True))
    for fold in range(4):
        made = split(
            adata,
            "unseen_perturbation",
            fraction=0.25,
            fold=fold,
            options=SplitOptions(groups=pd.Series(smiles)),
        )
        names = {row["perturbation"] for row in made.held_out}
        rest = set("ABCDEF") - names
        assert not {smiles[n] for n in names} & {smiles[n] for n in rest}


def test_a_share_of_single_rows_is_nothing():
    with pytest.raises(SchemaError, match="holds out no cell"):
        split(signatures(list("ABCDEF")), "cells")


@pytest.mark.parametrize("named", [["T", "NK"], [{"cell_type": "T"}, "NK"]])
def test_several_contexts_by_name(named, tmp_path):
    adata = screen(["control", "A", "B"], n_cells=4)
    options = SplitOptions(context=named)
    made = split(adata, "unseen_context", keys=ScreenKeys(context=["cell_type"]), options=options)
    held = adata.obs.iloc[made.test]
    assert set(held["cell_type"]) == {"T", "NK"}
    assert not (held["perturbation"] == "control").any()
    assert len(held) == 2 * 2 * 4
    made.to_json(tmp_path / "split.json")
    assert Split.from_json(tmp_path / "split.json") == made
    assert SplitOptions(**options.to_dict()) == options
    with pytest.raises(SchemaError, match="No cell has context"):
        split(adata, "unseen_context", keys=ScreenKeys(context=["cell_type"]),
              options=SplitOptions(context=["T", "X"]))  # fmt: skip
    with pytest.raises(ValueError, match="context is empty"):
        SplitOptions(context=[])
