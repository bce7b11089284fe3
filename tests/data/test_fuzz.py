"""Random input is read or refused by a check of ours; `benchmarks.hostile.fuzz` tries a million."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile.fuzz import SHARES, fuzz, is_ours, main
from scvi_perturb import SchemaError


@given(st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_random_input_is_read_or_refused(seed):
    outcomes = fuzz(400, seed)
    assert not outcomes.failures, outcomes.failures[0]
    assert outcomes.table().to_numpy().sum() == 400
    assert set(outcomes.table().index) == set(SHARES)


def test_errors_of_others_are_told_from_ours():
    with pytest.raises(ValueError, match="could not convert") as raised:
        float("x")
    assert not is_ours(raised.value)
    assert is_ours(SchemaError("found, expected, what to do"))


def test_the_command_prints_a_table(capsys):
    assert main(["--n", "50", "--seed", "3"]) == 0
    assert "condition" in capsys.readouterr().out
