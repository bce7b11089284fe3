"""Curves over doses as a picture."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scvi_perturb as svp
from tests.tl.test_doses import DOSES, hill, predicted


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tables():
    effects = np.column_stack(
        [hill(DOSES, 0.3, 1.0, 1.0), hill(DOSES, 300.0, 50.0, 1.0), 0 * DOSES]
    )
    data = predicted(effects, std=0.05)
    return svp.tl.dose_response(data), svp.tl.dose_response(data, points=True)


def test_curves_pass_through_what_was_fitted(tables):
    curves, points = tables
    _, ax = plt.subplots()
    assert svp.pl.dose_response(curves, points, ax=ax) is ax
    assert ax.get_xscale() == "log"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["0", "1", "2"]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 200]
    assert len(lines) == 1  # the second is open above, and the third flat
    x, y = lines[0].get_data()
    assert np.interp(0.3, x, y) == pytest.approx(0.5, abs=0.01)
    bar = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2][-1]
    np.testing.assert_allclose(bar, curves.loc[0, ["ec50_lower", "ec50_upper"]].to_list())


def test_what_cannot_be_drawn_is_refused(tables):
    curves, points = tables
    with pytest.raises(svp.SchemaError, match=r"lacks the columns \['lower', 'upper'\]"):
        svp.pl.dose_response(curves, points.drop(columns=["lower", "upper"]))
    with pytest.raises(svp.SchemaError, match="points has no rows of"):
        svp.pl.dose_response(curves.assign(gene="other"), points)
    with pytest.raises(ValueError, match="Found 0 curves"):
        svp.pl.dose_response(curves.iloc[:0], points)
