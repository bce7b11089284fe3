"""From scores of conditions to a table: sums, the best opponent, the replicate, intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb.benchmark import summarize


def rows(method, role, values, *, metric="nmse", below=None, seed=0):
    below = np.ones(len(values)) if below is None else below
    return pd.DataFrame(
        {
            "task": "task",
            "method": method,
            "role": role,
            "seed": seed,
            "fold": 0,
            "condition": [f"c{i}" for i in range(len(values))],
            "metric": metric,
            "numerator": values,
            "denominator": below,
        }
    )


def table(*parts, **options):
    found = summarize(pd.concat(parts, ignore_index=True), **{"n_boot": 200} | options)
    return found.set_index(["metric", "method"])


def test_ratio_of_sums_and_the_score():
    below = np.array([4.0, 1.0, -0.5])  # the last: an effect below its noise
    found = table(
        rows("ours", "model", [1.0, 0.5, 0.0], below=below),
        rows("mean", "mean", [2.0, 1.0, 0.0], below=below),
        rows("nothing", "mean", [4.0, 1.0, -0.5], below=below),
        rows("replicate", "replicate", [0.5, 0.1, 0.0], below=below),
    ).loc["nmse"]
    assert found.loc["ours", "u"] == pytest.approx(1.5 / 4.5)
    assert found.loc["ours", "best_trivial"] == "mean"
    assert found.loc["ours", "b"] == pytest.approx(3 / 4.5)
    assert found.loc["ours", "r"] == pytest.approx(0.6 / 4.5)
    assert found.loc["ours", "s"] == pytest.approx((3 - 1.5) / (3 - 0.6))
    assert found.loc["mean", "s"] == 0
    assert found.loc["replicate", "s"] == 1
    assert found.loc["nothing", "s"] < 0  # not clipped


def test_seeds_are_averaged_before_conditions():
    found = table(
        rows("ours", "model", [1.0, 2.0], seed=0),
        rows("ours", "model", [3.0, 2.0], seed=1),
    ).loc["nmse"]
    assert found.loc["ours", "u"] == 2
    assert found.loc["ours", "n_seeds"] == 2
    assert found.loc["ours", "n_conditions"] == 2
    assert found.loc["ours", "u_low"] == found.loc["ours", "u_high"] == 2


def test_interval_covers_the_mean_of_conditions():
    """Percentiles of the bootstrap: near the normal interval for many conditions."""
    values = np.random.default_rng(0).normal(1.0, 0.5, 400)
    found = table(rows("ours", "model", values), n_boot=2000).loc["nmse"].loc["ours"]
    error = values.std() / np.sqrt(400)
    assert found["u_low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found["u_high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_higher_is_better():
    found = table(
        rows("ours", "model", [0.8], metric="cosine_delta"),
        rows("a", "mean", [0.2], metric="cosine_delta"),
        rows("b", "cells", [0.4], metric="cosine_delta"),
        rows("replicate", "replicate", [0.9], metric="cosine_delta"),
    ).loc["cosine_delta"]
    assert found.loc["ours", "best_trivial"] == "b"
    assert found.loc["ours", "s"] == pytest.approx(0.8)


def test_distances_from_the_best_value_do_not_cancel():
    found = table(
        rows("ours", "model", [1.1, 0.95], metric="variance_ratio"),
        rows("wild", "cells", [2.0, 0.5], metric="variance_ratio"),
        rows("replicate", "replicate", [1.02, 0.99], metric="variance_ratio"),
    ).loc["variance_ratio"]
    losses = {name: np.abs(np.log(v)).mean() for name, v in
              {"ours": [1.1, 0.95], "wild": [2.0, 0.5], "again": [1.02, 0.99]}.items()}  # fmt: skip
    expected = (losses["wild"] - losses["ours"]) / (losses["wild"] - losses["again"])
    assert found.loc["ours", "s"] == pytest.approx(expected)


def test_only_where_all_are_defined():
    found = table(
        rows("ours", "model", [1.0, np.nan, 1.0]),
        rows("mean", "mean", [2.0, 9.0, 2.0]),
        rows("replicate", "replicate", [0.5, 0.5, np.nan]),
    ).loc["nmse"]
    assert found.loc["ours", "n_conditions"] == 2
    assert (found.loc["ours", "b"], found.loc["ours", "r"]) == (2.0, 0.5)  # over c0 alone
    assert found.loc["ours", "s"] == pytest.approx(1 / 1.5)


def test_an_opponent_that_refuses_some_is_still_one():
    """What it leaves open is filled in from the best that answers all."""
    found = table(
        rows("ours", "model", [1.0, 1.0, 1.0]),
        rows("mean", "mean", [2.0, 2.0, 2.0]),
        rows("worse", "mean", [3.0, 3.0, 3.0]),
        rows("choosy", "mean", [0.5, 0.5, np.nan]),
        rows("replicate", "replicate", [0.2, 0.2, 0.2]),
    ).loc["nmse"]
    assert found.loc["ours", "best_trivial"] == "choosy"
    assert found.loc["ours", "b"] == pytest.approx((0.5 + 0.5 + 2.0) / 3)
    assert found.loc["choosy", "u"] == 0.5  # its own value is over what it answered
    assert found.loc["choosy", "s"] == 0


def test_no_score_without_room_or_replicate():
    found = table(
        rows("ours", "model", [1.0]), rows("mean", "mean", [0.4]),
        rows("replicate", "replicate", [0.5]),
    )  # fmt: skip
    assert np.isnan(found.loc[("nmse", "ours"), "s"])
    alone = table(rows("ours", "model", [1.0]), rows("mean", "mean", [0.4]))
    assert alone.loc[("nmse", "ours"), "b"] == 0.4
    assert np.isnan(alone.loc[("nmse", "ours"), ["r", "s", "s_low"]].astype(float)).all()


def test_energy_ratio_lies_between_replicate_and_shifted_control():
    found = table(
        rows("ours", "model", [1.0, 2.0], metric="energy"),
        rows("shifted_control", "cells", [3.0, 6.0], metric="energy"),
        rows("replicate", "replicate", [0.0, -0.1], metric="energy"),
    )
    assert found.loc[("energy_ratio", "ours"), "u"] == pytest.approx((1.0 + 2.1) / (3.0 + 6.1))
    assert found.loc[("energy_ratio", "shifted_control"), "u"] == 1
    assert found.loc[("energy_ratio", "replicate"), "u"] == 0
