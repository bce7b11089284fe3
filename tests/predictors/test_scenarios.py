"""What a request asks, and folds of training that ask the same of the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_perturb.data import Component, Condition, ScreenKeys
from scvi_perturb.data.request import RequestRow, TrainingCoverage
from scvi_perturb.predictors.profiles import TrainingProfiles
from scvi_perturb.predictors.stack.fit import treated_rows
from scvi_perturb.predictors.stack.scenarios import SCENARIOS, folds_of, unit_of
from tests.predictors._screen import make_screen

ASKED_OF_TRAINING = [scenario for scenario in SCENARIOS if scenario != "seen"]


def row(label, *context, time=None, kind=""):
    """Return a request of a label such as "A:3+C": names, a dose where it is not 1."""
    parts = (f"{part}:1".split(":")[:2] for part in label.split("+"))
    components = tuple(Component(name, float(dose), kind) for name, dose in parts)
    return RequestRow(Condition(components, time), context)


TRAINING = [
    *(row("A", context) for context in "TB"),
    row("A:10", "T"),
    row("C", "T"),
    row("A+C", "T"),
    row("D+E", "B"),
    *(row("F", "T", time=time) for time in (2, 8)),
]


@pytest.mark.parametrize(
    ("asked", "regime"),
    [
        (row("A", "T"), "seen perturbation, seen context"),
        (row("A:3", "T"), "seen perturbation, seen context"),
        (row("A:30", "new"), "seen perturbation, new context, dose outside"),
        (row("F", "B", time=20), "seen perturbation, seen context, time outside"),
        (row("A:3+C", "T"), "seen perturbation, seen context"),
        (row("A+D", "T"), "new combination, seen context"),
        (row("Z", "new"), "featured perturbation, new context"),
        (row("A:0.1+Z", None), "featured perturbation, seen context, dose outside"),
        (RequestRow(Condition(()), ("T",)), "control"),
    ],
)
def test_a_regime_names_what_is_new(asked, regime):
    assert TrainingCoverage.of(TRAINING).regime(asked) == regime


@pytest.mark.parametrize(
    ("asked", "scenario"),
    [
        (row("A", "T"), "seen"),
        (row("C+A", "T"), "seen"),
        (row("A:10", None), "seen"),
        (row("A:10", "B"), "context_transfer"),
        (row("A+C", "B"), "context_transfer"),
        (row("A", "new"), "unseen_context"),
        (row("D+E", "new"), "unseen_context"),
        (row("A+D", "T"), "unseen_combination"),
        (row("A:10+C", "new"), "unseen_combination"),
        (row("A+C+D", None), "unseen_combination"),
        (row("A:3", "T"), "dose"),
        (row("A:3", "new"), "dose"),
        (row("A:3+C", "T"), "dose"),
        (row("F", "T", time=4), "dose"),
        (row("A:30", "T"), "dose_beyond"),
        (row("A:0.1", "B"), "dose_beyond"),
        (row("A:3+C:3", "T"), "dose_beyond"),
        (row("Z", "T"), "unseen_perturbation"),
        (row("A+Z", "new"), "unseen_perturbation"),
        (row("A", "T", kind="CRISPRa"), "unseen_perturbation"),
    ],
    ids=str,
)
def test_each_question_is_recognised(asked, scenario):
    assert TrainingCoverage.of(TRAINING).scenario(asked) == scenario


def test_without_contexts_what_was_seen_is_seen():
    assert TrainingCoverage.of([row("A"), row("C")]).scenario(row("A")) == "seen"


@pytest.mark.parametrize(
    ("asked", "scenario"),
    [
        (row("A", "T", None), "seen"),
        (row("A", None, "d2"), "seen"),
        (row("A", None, None), "seen"),
        (row("C", None, "d1"), "context_transfer"),
        (row("C", "T", None), "seen"),
        (row("C", "B", None), "context_transfer"),
        (row("A", "new", None), "unseen_context"),
        (row("A", None, "d9"), "unseen_context"),
        (row("A", "B", "d2"), "unseen_context"),
    ],
    ids=str,
)
def test_what_a_context_leaves_open_is_taken_for_what_was_seen(asked, scenario):
    seen = TrainingCoverage.of([row("A", "T", "d1"), row("A", "T", "d2"), row("C", "T", "d2"),
                    row("D", "B", "d1")])  # fmt: skip
    assert seen.scenario(asked) == scenario


LABELS = ["A:0.1", "A", "A:10", "C", "C:10", "D", "A+C", "A+D", "C+D", "A:10+D", "D+E", "A+C+D"]
DESIGNS = st.lists(
    st.builds(row, st.sampled_from(LABELS), st.sampled_from("TBMN")), unique=True, min_size=2
)


def is_new(scenario, asked, kept):
    """Whether a row asks a scenario of the rows kept, told from the scenario's words."""
    conditions = {other.condition for other in kept}
    here = {other.condition for other in kept if other.context == asked.context}
    components = {part for condition in conditions for part in condition.components}
    part, *more = asked.condition.components
    doses = [np.nan] if more else [own.dose for own in components if own.name == part.name]
    low, high = min(doses, default=np.nan), max(doses, default=np.nan)
    elsewhere = asked.condition in conditions - here
    combined = bool(more) and {part, *more} <= components
    return {
        "unseen_context": elsewhere and not here,
        "context_transfer": elsewhere and bool(here),
        "unseen_combination": combined and asked.condition not in conditions,
        "dose": low < part.dose < high and asked.condition not in conditions,
        "dose_beyond": part.dose > high,
        "unseen_perturbation": not set(asked.condition.names) <= {own.name for own in components},
    }[scenario]


@given(DESIGNS, st.sampled_from(ASKED_OF_TRAINING), st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=300)
def test_folds_ask_their_question_of_what_is_kept(rows, scenario, n_folds, seed):
    for fold in folds_of(scenario, rows, n_folds=n_folds, seed=seed):
        kept = [row for i, row in enumerate(rows) if i not in fold.removed]
        assert kept
        assert fold.asked.size
        assert set(fold.asked) <= set(fold.removed)
        assert all(is_new(scenario, rows[i], kept) for i in fold.asked)


@given(DESIGNS, st.sampled_from(ASKED_OF_TRAINING), st.integers(2, 5))
@settings(max_examples=200)
def test_what_could_be_asked_is_asked(rows, scenario, n_folds):
    """A removed row that is not asked would not ask this scenario."""
    for fold in folds_of(scenario, rows, n_folds=n_folds, seed=0):
        kept = [row for i, row in enumerate(rows) if i not in fold.removed]
        silent = [rows[i] for i in np.setdiff1d(fold.removed, fold.asked)]
        assert not any(is_new(scenario, row, kept) for row in silent)


@given(DESIGNS, st.sampled_from(["unseen_context", "context_transfer", "unseen_combination"]))
@settings(max_examples=100)
def test_each_row_is_left_out_once(rows, scenario):
    removed = [i for fold in folds_of(scenario, rows, n_folds=3, seed=0) for i in fold.removed]
    assert len(removed) == len(set(removed))


def grid(n_names, n_contexts):
    return [row(f"p{i}", f"t{k}") for i in range(n_names) for k in range(n_contexts)]


@pytest.mark.parametrize(("n_contexts", "n_made"), [(6, 6), (7, 3), (12, 3)])
def test_few_contexts_are_left_out_one_at_a_time(n_contexts, n_made):
    rows = grid(2, n_contexts)
    folds = folds_of("unseen_context", rows, n_folds=3, seed=0)
    assert len(folds) == n_made
    left = [{rows[i].context for i in fold.asked} for fold in folds]
    assert sum(map(len, left)) == n_contexts
    assert set.union(*left) == {own.context for own in rows}
    for fold in folds:
        np.testing.assert_array_equal(fold.asked, fold.removed)


@pytest.mark.parametrize("scenario", ["context_transfer", "unseen_perturbation"])
def test_there_are_as_many_folds_as_asked_for(scenario):
    folds = folds_of(scenario, grid(9, 4), n_folds=5, seed=0)
    assert len(folds) == 5
    assert sum(len(fold.asked) for fold in folds) == 36


def test_a_name_is_left_out_with_all_its_combinations():
    rows = [row(label) for label in ("A", "C", "D", "A+C", "A+D")]
    folds = folds_of("unseen_perturbation", rows, n_folds=3, seed=0)
    assert {tuple(fold.removed) for fold in folds} == {(0, 3, 4), (1, 3), (2, 4)}


def test_a_dose_is_left_out_between_others_or_above_them():
    rows = [row(f"{name}:{dose}") for name in "AC" for dose in (0.1, 1, 3, 10)] + [row("D:3")]
    for scenario, expected in (("dose", {1, 2, 5, 6}), ("dose_beyond", {3, 7})):
        folds = folds_of(scenario, rows, n_folds=2, seed=0)
        assert {i for fold in folds for i in fold.asked} == expected
        assert {i for fold in folds for i in fold.removed} == expected


def test_a_dose_is_left_out_of_names_that_keep_as_many_as_others_have():
    """As one has of which a dose is asked; where all have as many, all are left out."""
    whole = [row(f"{name}:{dose}") for name in "AC" for dose in (0.1, 1, 3, 10)]
    shorter = [row(f"D:{dose}") for dose in (0.1, 1, 3)]
    for scenario, expected in (("dose", {1, 2, 5, 6}), ("dose_beyond", {3, 7})):
        for rows in (whole, [*whole, *shorter], [*whole, *shorter, row("E:3")]):
            folds = folds_of(scenario, rows, n_folds=2, seed=0)
            assert {i for fold in folds for i in fold.asked} == expected


@pytest.mark.parametrize(
    ("scenario", "rows"),
    [
        ("seen", grid(3, 3)),
        ("unseen_context", grid(3, 1)),
        ("context_transfer", grid(3, 1)),
        ("unseen_combination", grid(3, 3)),
        ("unseen_combination", [row("A+C"), row("D+E")]),
        ("dose", grid(3, 3)),
        ("dose_beyond", [row("A"), row("C:3")]),
        ("unseen_perturbation", grid(1, 3)),
    ],
)
def test_where_nothing_can_be_asked_there_is_no_fold(scenario, rows):
    assert folds_of(scenario, rows, n_folds=3, seed=0) == []


def test_folds_follow_the_seed_alone():
    rows = grid(12, 1)
    first, again, other = (
        [fold.removed.tolist() for fold in folds_of("unseen_perturbation", rows, n_folds=4, seed=s)]
        for s in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_names_of_a_combination_are_dealt_in_their_own_order():
    """Not in that of a set, which changes from process to process."""
    singles = [row(name) for name in "ABCDEF"]
    combined = row("A+B+C+D+E+F")
    first, last = (
        [
            {rows[i].condition.names[0] for i in fold.removed if rows[i] != combined}
            for fold in folds_of("unseen_perturbation", rows, n_folds=6, seed=0)
        ]
        for rows in ([combined, *singles], [*singles, combined])
    )
    assert first == last


def test_units_are_contexts_or_conditions():
    asked = row("A:3+C", "T")
    for scenario in ASKED_OF_TRAINING:
        expected = asked.context if scenario == "unseen_context" else asked.condition
        assert unit_of(scenario, asked) == expected


@pytest.fixture
def profiles():
    groups = [(p, t) for t in ("T", "B") for p in ("control", "A", "C", "A+C")]
    keys = ScreenKeys("perturbation")
    return TrainingProfiles.from_screen(
        make_screen(groups),
        None,
        keys=replace(keys, context=["cell_type"]),
        kind="pseudobulk",
        with_variances=True,
    )


def test_rows_are_those_with_a_treatment_and_point_to_their_group(profiles):
    rows, groups = treated_rows(profiles)
    assert len(rows) == 6
    assert [profiles.conditions[i] for i in groups] == [own.condition for own in rows]
    assert [profiles.contexts[i] for i in groups] == [own.context for own in rows]
    assert not any(own.condition.is_control for own in rows)


@pytest.mark.parametrize("scenario", ASKED_OF_TRAINING)
def test_controls_stay(profiles, scenario):
    rows, groups = treated_rows(profiles)
    n_asked = 0
    for fold in folds_of(scenario, rows, n_folds=10, seed=0):
        kept = profiles.without(groups[fold.removed].tolist())
        for context in (("T",), ("B",)):
            expected = profiles.control_profile(context)
            np.testing.assert_array_equal(kept.control_profile(context), expected)
        assert len(kept.conditions) == len(profiles.conditions) - len(fold.removed)
        for i in fold.asked:
            assert rows[i].context not in kept.deltas.get(rows[i].condition, {})
            n_asked += 1
    assert (n_asked > 0) == (not scenario.startswith("dose"))
