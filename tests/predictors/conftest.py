"""What tests of predictors share."""

from __future__ import annotations

import pytest

from tests.predictors._screen import make_screen


@pytest.fixture
def screen():
    groups = [(p, t) for t in ("T", "B") for p in ("control", "A", "C")]
    return make_screen(groups)
