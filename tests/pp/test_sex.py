"""Words for sexes."""

from __future__ import annotations

import pytest

from scvi_perturb.pp._sex import canonical_sex


@pytest.mark.parametrize(
    ("sex", "words"),
    [
        ("female", ["female", "Female", " F ", "f", "woman", "XX", "PATO:0000383"]),
        ("male", ["male", "MALE", "M", "man", "xy", "PATO:0000384"]),
    ],
)
def test_words(sex, words):
    assert {canonical_sex(word) for word in words} == {sex}


@pytest.mark.parametrize("value", [1, 2, "1", "mixed", "femal", "pooled male and female", "", None])
def test_anything_else_is_neither(value):
    assert canonical_sex(value) is None
