"""What each kind of split holds out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError
from scvi_perturb.data.condition import ScreenKeys
from scvi_perturb.data.split.kinds import Split, SplitOptions, split
from tests.data._screen import IN_CONTEXTS, KINDS, screen


@pytest.fixture(scope="module")
def adata():
    labels = ["control", "A", "B", "C", "D", "E", "F", "A+B", "C+D", "A+G", "G+H", "A+B+C"]
    return screen(labels, doses=("0.1", "1", "10"), n_cells=5)


def conditions(adata, cells):
    """Return the distinct (names, dose, context) of cells."""
    obs = adata.obs.iloc[cells][["perturbation", "dose", "cell_type"]].astype(str)
    return {(frozenset(p.split("+")), d, c) for p, d, c in obs.itertuples(index=False)}


def seen(adata, made):
    return conditions(adata, np.concatenate([made.train, made.validation]))


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 10_000),
    st.sampled_from([0.1, 0.2, 0.34, 0.5]),
    st.integers(1, 7),
)
def test_parts_are_disjoint_cover_all_cells_and_hide_what_is_held_out(kind, seed, fraction, n):
    adata = screen(["control", "A", "B", "C", "A+B", "B+C"], doses=("1", "2", "5"), n_cells=n)
    made = split(adata, kind, seed=seed, fraction=fraction, keys=KINDS[kind])
    cells = np.concatenate([made.train, made.validation, made.test])
    np.testing.assert_array_equal(np.sort(cells), np.arange(adata.n_obs))
    made.check(adata)
    made.leaks(adata)
    if kind == "cells":
        return
    assert len(made.test)
    assert sum(row["n_cells"] for row in made.held_out) == len(made.test)
    assert not (adata.obs["perturbation"].iloc[made.test] == "control").any()
    assert not conditions(adata, made.test) & seen(adata, made)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(adata, kind):
    keys = KINDS[kind]
    made = split(adata, kind, seed=3, keys=keys)
    assert split(adata, kind, seed=3, keys=keys) == made
    others = [split(adata, kind, seed=seed, keys=keys) for seed in range(6)]
    assert len({tuple(other.test) for other in others}) > 1
    if kind != "cells":
        return
    assert not np.array_equal(made.validation, others[0].validation)


@pytest.mark.parametrize("kind", ["cells", "unseen_combination", "unseen_perturbation"])
def test_folds_share_nothing_and_cover(adata, kind):
    folds = [split(adata, kind, fold=fold) for fold in range(5)]
    if kind == "unseen_perturbation":
        held = [{name for row in fold.held_out for name in row["targets"]} for fold in folds]
        assert set().union(*held) == set("ABCDEFGH")
    elif kind == "unseen_combination":
        held = [{row["perturbation"] for row in fold.held_out} - {"A+B+C"} for fold in folds]
        assert set().union(*held) == {"A+B", "C+D", "A+G", "G+H"}
    else:
        held = [set(fold.test.tolist()) for fold in folds]
        assert len(set().union(*held)) == adata.n_obs
    assert sum(map(len, held)) == len(set().union(*held))


def test_cells_are_drawn_from_each_condition(adata):
    made = split(adata, "cells", fraction=0.2, keys=IN_CONTEXTS)
    obs = adata.obs.assign(part=made.labels()).query("perturbation != 'control'")
    by = obs.groupby(["perturbation", "dose", "cell_type"])["part"]
    assert (by.apply(lambda part: (part == "test").sum()) == 1).all()
    assert len(made.validation) == pytest.approx(0.08 * adata.n_obs, rel=0.25)
    assert made.held_out == ()


def test_a_share_never_takes_all_cells_of_a_condition():
    adata = screen(["control", "A", "B"], contexts=("T",), n_cells=2)
    made = split(adata, "cells", fraction=0.9, fold=0)
    assert set(adata.obs["perturbation"].iloc[made.train]) == {"control", "A", "B"}


def test_unseen_combination_keeps_singles_and_hides_larger_combinations(adata):
    for seed in range(8):
        made = split(adata, "unseen_combination", seed=seed)
        names = {names for names, _, _ in seen(adata, made)}
        assert {frozenset(single) for single in "ABCDEF"} <= names
        held = {frozenset(row["perturbation"].split("+")) for row in made.held_out}
        assert not any(h <= other for h in held for other in names)
        for row in made.held_out:
            singles = set(row["perturbation"].split("+")) & set("ABCDEF")
            assert row["singles_seen"] == len(singles)


def test_unseen_perturbation_hides_all_combinations_with_the_target(adata):
    made = split(adata, "unseen_perturbation", seed=1)
    targets = {name for row in made.held_out for name in row["targets"]}
    assert len(targets) == 2
    for names, _, _ in seen(adata, made):
        assert not names & targets
    for names, _, _ in conditions(adata, made.test):
        assert names & targets


def test_clusters_are_held_out_whole(adata):
    clusters = dict(zip("ABCDEFGH", "11223344", strict=True))
    made = split(adata, "unseen_perturbation", options=SplitOptions(groups=clusters))
    targets = {name for row in made.held_out for name in row["targets"]}
    assert len(targets) == 2
    assert len({clusters[name] for name in targets}) == 1
    with pytest.raises(SchemaError, match=r"no cluster for \['H'\]"):
        split(
            adata,
            "unseen_perturbation",
            options=SplitOptions(groups={k: v for k, v in clusters.items() if k != "H"}),
        )


@pytest.mark.parametrize("shown", [0.0, 0.1, 0.3])
def test_context_transfer_shows_a_share(shown):
    adata = screen(["control", "A", "B", "A+B"], n_cells=20)
    options = SplitOptions(shown=shown)
    made = split(adata, "context_transfer", keys=ScreenKeys(context="cell_type"), options=options)
    for row in made.held_out:
        total = row["n_cells"] + row["n_shown"]
        assert total == 20
        assert row["n_shown"] == pytest.approx(20 * shown)
        assert row["contexts_seen"] >= 1
    names = {
        (frozenset(r["perturbation"].split("+")), r["context"]["cell_type"]) for r in made.held_out
    }
    for perturbation, context in names:
        assert any(p == perturbation and c != context for p, _, c in seen(adata, made))
        larger = {n for n, c in names if c == context}
        if perturbation in (frozenset("A"), frozenset("B")):
            assert frozenset("AB") in larger


def test_more_is_shown_on_top_of_less():
    adata = screen(["control", "A", "B"], n_cells=30)
    made = [
        split(
            adata,
            "context_transfer",
            keys=ScreenKeys(context="cell_type"),
            options=SplitOptions(shown=s),
        )
        for s in (0.0, 0.1, 0.3)
    ]
    assert set(made[2].test) < set(made[1].test) < set(made[0].test)


def test_a_named_context(adata):
    made = split(
        adata,
        "unseen_context",
        keys=ScreenKeys(context="cell_type"),
        options=SplitOptions(context="B"),
    )
    obs = adata.obs.iloc[made.test]
    expected = (adata.obs["cell_type"] == "B") & (adata.obs["perturbation"] != "control")
    assert set(obs.index) == set(adata.obs_names[expected])
    transferred = split(
        adata,
        "context_transfer",
        keys=ScreenKeys(context="cell_type"),
        options=SplitOptions(context="B"),
    )
    assert {row["context"]["cell_type"] for row in transferred.held_out} == {"B"}


def test_a_context_of_several_columns(adata):
    adata = adata.copy()
    adata.obs["donor"] = np.random.default_rng(0).integers(1, 3, adata.n_obs)
    keys = ["cell_type", "donor"]
    options = SplitOptions(context={"cell_type": "B"})
    made = split(adata, "unseen_context", keys=ScreenKeys(context=keys), options=options)
    assert {row["context"]["donor"] for row in made.held_out} == {"1", "2"}
    assert {row["context"]["cell_type"] for row in made.held_out} == {"B"}
    with pytest.raises(SchemaError, match="one context key"):
        split(
            adata,
            "unseen_context",
            keys=ScreenKeys(context=keys),
            options=SplitOptions(context="B"),
        )


def test_a_named_context_is_hidden_also_where_it_has_no_controls():
    adata = screen(["control", "A"], n_cells=6)
    adata.obs["donor"] = np.where(adata.obs["cell_type"] == "B", "1", "2")
    extra = (adata.obs["cell_type"] == "B") & (adata.obs["perturbation"] == "A")
    adata.obs.loc[adata.obs_names[extra][:2], "donor"] = "3"
    options = SplitOptions(context={"cell_type": "B"})
    made = split(
        adata, "unseen_context", keys=ScreenKeys(context=["cell_type", "donor"]), options=options
    )
    assert len(made.test) == 6


@pytest.mark.parametrize(("which", "dose"), [("inner", "1"), ("top", "10")])
def test_dose(adata, which, dose):
    made = split(adata, "dose", fraction=1.0, options=SplitOptions(dose=which))
    assert {row["stratum"] for row in made.held_out} == {which}
    for names, seen_dose, _ in seen(adata, made):
        if names & set("ABCDEF"):
            assert dose not in seen_dose.split("+")
        else:
            assert names in ({"control"}, {"G", "H"})
    some = split(adata, "dose", fraction=0.2, options=SplitOptions(dose=which))
    assert 0 < len(some.test) < len(made.test)


def test_top_dose_is_the_largest_number_not_the_last_text():
    adata = screen(["control", "A"], doses=("2", "10", "9"))
    made = split(adata, "dose", fraction=1.0, options=SplitOptions(dose="top"))
    assert [row["dose"] for row in made.held_out] == ["10"]


def test_keys_and_labels(adata):
    renamed = adata.copy()
    renamed.obs = adata.obs.rename(columns={"perturbation": "gene", "dose": "d"})
    renamed.obs["gene"] = renamed.obs["gene"].replace({"control": "NT"})
    keys = ScreenKeys("gene", dose="d", control="NT")
    made = split(renamed, "unseen_combination", keys=keys)
    np.testing.assert_array_equal(made.test, split(adata, "unseen_combination").test)
    assert made.parameters["keys"]["control"] == "NT"
    labels = made.labels()
    assert list(labels.categories) == ["train", "validation", "test"]
    np.testing.assert_array_equal(np.flatnonzero(labels == "test"), made.test)


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("guides", {}, ValueError, "'cells', 'context_transfer', 'dose'"),
        ("cells", {"fraction": 0.0}, ValueError, "above 0 and at most 1"),
        ("cells", {"fold": 5}, ValueError, "fold=5 does not exist"),
        (
            "cells",
            {"keys": ScreenKeys(context="donor")},
            SchemaError,
            "'donor' is not in adata.obs",
        ),
        ("unseen_combination", {}, SchemaError, "No cell has a combination"),
        ("unseen_perturbation", {"fold": 4}, ValueError, "2 items and fraction=0.2 make 2 folds"),
        ("unseen_perturbation", {"fraction": 1.0}, SchemaError, "no perturbed cell to train on"),
        ("context_transfer", {}, SchemaError, "No perturbation is seen in the context"),
        ("unseen_context", {}, SchemaError, "no perturbed cell to train on"),
        ("dose", {}, SchemaError, "No perturbation has three doses"),
    ],
)
def test_messages(kind, options, error, message):
    adata = screen(["control", "A", "B"])
    with pytest.raises(error, match=message):
        split(adata, kind, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shown": 1.0}, "shown=1.0"), ({"dose": "low"}, "'inner', 'top'")],
)
def test_messages_of_options(options, message):
    with pytest.raises(ValueError, match=message):
        SplitOptions(**options)


def test_an_unknown_context_is_named(adata):
    with pytest.raises(SchemaError, match=r"No cell has context.*'cell_type': 'NK'"):
        split(
            adata,
            "unseen_context",
            keys=ScreenKeys(context="cell_type"),
            options=SplitOptions(context="M"),
        )


def test_missing_context_labels_are_counted(adata):
    adata = adata.copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].replace({"B": None})
    with pytest.raises(SchemaError, match="missing labels"):
        split(adata, "unseen_context", keys=ScreenKeys(context="cell_type"))


def test_repr(adata):
    assert repr(split(adata, "unseen_combination")).startswith("Split('unseen_combination', seed=0")
    assert isinstance(split(adata, "cells"), Split)
