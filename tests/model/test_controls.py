"""The training controls that a model keeps: all, or a sample with the sums over all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb._core import Key
from scvi_perturb._state import from_bytes, to_bytes
from scvi_perturb.data.reader import row_sums
from scvi_perturb.model.base import reference
from scvi_perturb.model.base.reference import kept_controls
from tests.model._small import make_screen

N_CELLS, N_GENES = 400, 6


@pytest.fixture
def reader():
    """Cells of two contexts and two batches, half of them controls."""
    random = np.random.default_rng(0)
    codes = {
        Key.CONDITION: random.integers(2, size=N_CELLS),
        Key.CONTEXT: (random.random(N_CELLS) < 0.2).astype(np.int64),
        Key.BATCH: (random.random(N_CELLS) < 0.1).astype(np.int64),
    }
    counts = sparse.csr_matrix(random.poisson(2.0, (N_CELLS, N_GENES)).astype(np.float32))
    return SimpleNamespace(codes=codes, counts=counts, library=None)


def keep(reader):
    names = pd.Index([f"cell{i}" for i in range(N_CELLS)])
    return kept_controls(reader, np.arange(0, N_CELLS - 20), make_screen(), names)


def controls_of(reader):
    return np.flatnonzero(reader.codes[Key.CONDITION][: N_CELLS - 20] == 0)


def test_all_are_kept_where_they_are_few(reader):
    kept, rows = keep(reader), controls_of(reader)
    assert kept.labels.index.tolist() == [f"cell{i}" for i in rows]
    assert kept.sums is None
    assert (kept.counts != reader.counts[rows]).nnz == 0
    np.testing.assert_array_equal(kept.library, row_sums(reader.counts, N_CELLS)[rows])


def test_of_many_a_bounded_part_of_each_context_and_batch_is_kept(reader, monkeypatch):
    monkeypatch.setattr(reference, "KEPT_OF_CONTEXT", 30)
    kept, rows = keep(reader), controls_of(reader)
    own = reader.codes[Key.CONTEXT][rows]
    for context in (0, 1):
        n = int((kept.context == context).sum())
        assert n == (own == context).sum() if (own == context).sum() <= 30 else 30 <= n <= 32
        # Batches have their share, and one cell at least.
        there = reader.codes[Key.BATCH][rows][own == context]
        share = (kept.batch[kept.context == context] == 1).sum()
        assert max(1, n * there.mean() - 2) <= share <= n * there.mean() + 2
    assert keep(reader).labels.index.equals(kept.labels.index), "the seed is fixed"
    monkeypatch.setattr(reference, "KEPT", 20)
    assert len(keep(reader)) <= 24


def test_profiles_of_whole_contexts_and_batches_are_those_of_all_controls(reader, monkeypatch):
    monkeypatch.setattr(reference, "KEPT_OF_CONTEXT", 30)
    kept, rows = keep(reader), controls_of(reader)
    kept = from_bytes(to_bytes(kept), where="here")  # as a saved model has it
    for context in (0, 1):
        whole = np.flatnonzero(kept.context == context)
        own = rows[reader.codes[Key.CONTEXT][rows] == context]
        expected = np.asarray(reader.counts[own].sum(axis=0), np.float64).ravel()
        np.testing.assert_allclose(kept.profile(whole), expected / expected.sum(), rtol=1e-12)
    some = np.flatnonzero(kept.context == 0)[:7]
    expected = np.asarray(kept.counts[some].sum(axis=0)).ravel()
    np.testing.assert_allclose(kept.profile(some), expected / expected.sum(), rtol=1e-6)
    given = replace(kept, sums=None)
    assert not np.allclose(given.profile(whole), kept.profile(whole)) or len(whole) <= 30
