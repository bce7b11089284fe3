"""Tanimoto's similarity of sets, counts and shares; products of what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.similarity.kernels import LinearKernel, ModalityKernel, tanimoto

RNG = np.random.default_rng(0)
TABLES = {
    "sets": RNG.integers(0, 2, (30, 40)),
    "few of each": RNG.poisson(1.0, (30, 40)),
    "many of some": RNG.poisson(np.repeat([0.5, 100.0], 20), (30, 40)),
    "shares": RNG.random((30, 40)) * RNG.integers(0, 2, (30, 40)),
    "shares and counts": np.hstack([RNG.random((30, 9)), RNG.poisson(2.0, (30, 9))]),
    "nothing": np.zeros((30, 4)),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_it_is_the_sum_of_least_by_the_sum_of_most(table):
    table = table.astype(np.float32)
    table[3] = 0
    left, right = table[:12], table[8:]
    least = np.minimum(left[:, None], right[None]).sum(axis=2, dtype=float)
    most = np.maximum(left[:, None], right[None]).sum(axis=2, dtype=float)
    expected = np.divide(least, most, out=np.zeros_like(most), where=most > 0)
    np.testing.assert_allclose(tanimoto(left, right), expected, rtol=1e-6, atol=1e-12)
    learned = ModalityKernel.learn(table, table)(left, right)
    np.testing.assert_allclose(learned, expected, rtol=1e-6, atol=1e-12)


def test_products_are_those_of_centred_features_and_one_on_average():
    known, asked = RNG.normal(3, 2, (20, 5)).astype(np.float32), np.ones((2, 5), np.float32)
    kernel = LinearKernel.learn(known)
    assert np.diagonal(kernel(known, known)).mean() == pytest.approx(1)
    np.testing.assert_allclose(kernel(known, known).sum(axis=0), 0, atol=1e-5)
    centred = [x - known.mean(axis=0, dtype=float) for x in (asked, known)]
    size = (centred[1] ** 2).sum() / 20
    np.testing.assert_allclose(kernel(asked, known), centred[0] @ centred[1].T / size)
    np.testing.assert_array_equal(LinearKernel.learn(known[:1])(known[:1], asked), 0)
