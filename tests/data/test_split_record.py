"""A split is saved, tied to its data, and checked for leaks."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import LeakError, SchemaError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.data.split.kinds import Split, SplitOptions, split
from tests.data._screen import KINDS, screen

LABELS = ["control", "A", "B", "C", "D", "A+B", "C+D"]


@pytest.fixture
def adata():
    return screen(LABELS, doses=("1", "2", "5"), n_cells=4)


def moved(made: Split, cells: np.ndarray, into: str = "train") -> Split:
    """Return a split with some test cells put elsewhere."""
    return dataclasses.replace(
        made,
        test=np.setdiff1d(made.test, cells),
        **{into: np.concatenate([getattr(made, into), cells])},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(adata, kind, tmp_path):
    options = SplitOptions(shown=0.3) if kind == "context_transfer" else None
    made = split(adata, kind, keys=KINDS[kind], options=options)
    made.to_json(tmp_path / "split.json")
    read = Split.from_json(tmp_path / "split.json")
    assert read == made
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(read, part), getattr(made, part))
        assert getattr(read, part).dtype == np.int64
    read.check(adata)
    read.leaks(adata)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cells"])
@pytest.mark.parametrize("into", ["train", "validation"])
def test_a_planted_cell_is_a_leak(adata, kind, into):
    made = split(adata, kind, keys=KINDS[kind])
    for cell in made.test[:: max(1, len(made.test) // 5)]:
        with pytest.raises(LeakError, match="1 cells"):
            moved(made, np.array([cell]), into).leaks(adata)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cells"])
def test_a_relabelled_cell_is_a_leak(adata, kind):
    made = split(adata, kind, keys=KINDS[kind])
    row = adata.obs.iloc[made.test[0]]
    where = adata.obs_names[made.train[0]]
    for column in ("perturbation", "dose", "cell_type"):
        adata.obs.loc[where, column] = row[column]
    with pytest.raises(LeakError, match=row["perturbation"].split("+")[0]):
        made.leaks(adata)
    with pytest.raises(SchemaError, match="made for other data"):
        made.check(adata)


def test_a_new_combination_with_a_held_out_target_is_a_leak(adata):
    made = split(adata, "unseen_perturbation", seed=1)
    target = made.held_out[0]["targets"][0]
    adata.obs.loc[adata.obs_names[made.train[0]], "perturbation"] = f"NEW+{target}"
    adata.obs.loc[adata.obs_names[made.train[0]], "dose"] = "7"
    with pytest.raises(LeakError, match=target):
        made.leaks(adata)


def test_more_than_what_is_shown_is_a_leak():
    adata = screen(["control", "A", "B"], n_cells=20)
    made = split(
        adata,
        "context_transfer",
        keys=ScreenKeys(context="cell_type"),
        options=SplitOptions(shown=0.1),
    )
    made.leaks(adata)
    with pytest.raises(LeakError):
        moved(made, made.test[:1]).leaks(adata)


def test_a_cell_in_two_parts_is_a_leak(adata):
    made = split(adata, "cells")
    with pytest.raises(LeakError, match="1 cells are in two parts"):
        dataclasses.replace(made, train=np.append(made.train, made.test[0]))


def test_a_cell_in_no_part_is_an_error(adata):
    made = split(adata, "cells")
    with pytest.raises(SchemaError, match="in no part"):
        dataclasses.replace(
            made,
            train=made.train[made.train != 0],
            test=made.test[made.test != 0],
            validation=made.validation[made.validation != 0],
        )


def change_label(adata):
    adata.obs.loc["c0", "perturbation"] = (
        "C+D" if adata.obs.loc["c0", "perturbation"] != "C+D" else "A"
    )
    adata.obs.loc["c0", "dose"] = "1"
    return adata


def rename_cell(adata):
    adata.obs_names = ["x", *adata.obs_names[1:]]
    return adata


def rename_gene(adata):
    adata.var_names = ["x", *adata.var_names[1:]]
    return adata


@pytest.mark.parametrize(
    "change",
    [
        change_label,
        rename_cell,
        rename_gene,
        lambda adata: adata[::-1].copy(),
        lambda adata: adata[:, ::-1].copy(),
        lambda adata: adata[:-1].copy(),
        lambda adata: adata[:, :1].copy(),
    ],
)
def test_other_data_are_refused(adata, change):
    made = split(adata, "cells")
    with pytest.raises(SchemaError, match=r"made for other data|these data have"):
        made.check(change(adata.copy()))


def test_another_context_is_refused_only_where_it_counts(adata):
    with_context = split(adata, "cells", keys=ScreenKeys(context="cell_type"))
    without = split(adata, "cells")
    adata.obs["cell_type"] = adata.obs["cell_type"].replace({"B": "b"})
    without.check(adata)
    with pytest.raises(SchemaError, match="cell_type"):
        with_context.check(adata)


def test_the_same_data_in_another_form_pass(adata):
    made = split(adata, "unseen_combination")
    adata.obs["perturbation"] = pd.Categorical(
        adata.obs["perturbation"].replace({"A+B": "B + A", "A": "A+control"})
    )
    adata.obs["new"] = 1
    made.check(adata)
    made.leaks(adata)
    assert split(adata, "unseen_combination") == made


def test_parts_cannot_be_written_to(adata):
    made = split(adata, "cells")
    with pytest.raises(ValueError, match="read-only"):
        made.train[0] = 5


def test_an_unknown_format_is_refused(adata):
    state = split(adata, "cells").to_dict()
    assert json.loads(json.dumps(state)) == state
    with pytest.raises(SchemaError, match="format 9"):
        Split.from_dict(state | {"format": 9})
