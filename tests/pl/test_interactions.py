"""The map of pairs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvi_perturb import SchemaError, pl

PAIRS = pd.DataFrame(
    {
        "first": ["A", "B"],
        "second": ["B", "C"],
        "along": [1.5, -3.0],
        "kind": ["synergy", "suppression"],
    }
)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_squares_and_letters_are_those_of_the_pairs():
    ax = pl.interaction_map(PAIRS)
    values = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(
        values, [[np.nan, 0.5, np.nan], [0.5, np.nan, -1], [np.nan, -1, np.nan]]
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B", "C"]
    letters = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert letters == {((0, 1), "S"), ((1, 0), "S"), ((1, 2), "X"), ((2, 1), "X")}


def test_other_tables_are_refused():
    with pytest.raises(SchemaError, match=r"lacks the columns \['along'\]"):
        pl.interaction_map(PAIRS.drop(columns="along"))
    with pytest.raises(SchemaError, match=r"2 rows of A\+B; expected one"):
        pl.interaction_map(
            pd.concat(
                [PAIRS, PAIRS[["second", "first", "along", "kind"]].set_axis(PAIRS.columns, axis=1)]
            )
        )
