"""Which cells are meant by `indices`."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.model.base.latents import chosen_rows


def test_none_is_every_cell():
    assert chosen_rows(None, 4, None).tolist() == [0, 1, 2, 3]
    assert chosen_rows(None, 4, "key").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("asked", [[3, 0, 3], (3, 0, 3), np.array([3, 0, 3], dtype=np.int32)])
def test_numbers_are_kept_in_their_order(asked):
    found = chosen_rows(asked, 4, None)
    assert found.tolist() == [3, 0, 3]
    assert found.dtype == np.int64


@pytest.mark.parametrize("kind", [list, np.array])
def test_mask_means_where_it_is_true(kind):
    # As for scvi-tools. Taken for numbers it would mean the first two cells.
    assert chosen_rows(kind([False, True, False, True]), 4, None).tolist() == [1, 3]
    assert chosen_rows(kind([False, False]), 2, None).tolist() == []


def test_nothing_is_no_cell():
    assert chosen_rows([], 4, None).tolist() == []
    with pytest.raises(ValueError, match="leave `indices` out"):
        chosen_rows([1], 4, "key")
