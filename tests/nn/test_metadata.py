"""Metadata as vectors and as targets: what is missing is marked and teaches nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional

from scvi_perturb.nn import MetadataEncoder, MetadataSpec
from scvi_perturb.nn.metadata import MetadataHead

TISSUE, SEX, AGE = MetadataSpec("tissue", 3), MetadataSpec("sex", 2), MetadataSpec("age", 0)
N_OUT = 4


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make(*specs, **changes):
    """Return an encoder whose every vector is its own."""
    made = MetadataEncoder(specs or (TISSUE, SEX, AGE), N_OUT, **changes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def fields(tissue=(0,), sex=(0,), age=(1.0,)):
    return {"tissue": torch.tensor(tissue), "sex": torch.tensor(sex), "age": torch.tensor(age)}


def test_vectors_of_columns_add():
    encoder = make()
    a, b, c, d = encoder(fields((0, 1, 0, 1), (0, 0, 1, 1), (2.0,) * 4))[0]
    torch.testing.assert_close(a + d, b + c)
    young, old = encoder(fields((0, 0), (0, 0), (2.0, 5.0)))[0]
    again = encoder(fields((2, 2), (1, 1), (2.0, 5.0)))[0]
    torch.testing.assert_close(again[1] - again[0], old - young)
    assert (old - young).abs().max() > 1e-3


def test_what_is_missing_has_its_own_vector_and_widens():
    encoder = make()
    full, none = encoder(fields((0, -1), (0, -1), (1.0, torch.nan)))[0]
    assert not torch.allclose(full, none)
    torch.testing.assert_close(none, sum(encoder.missing.values()))
    variance = encoder(fields((0, -1, -1), (1, 1, -1), (1.0, 1.0, 1.0)))[1]
    assert torch.equal(variance[0], torch.zeros(N_OUT))
    extra = {k: functional.softplus(v) for k, v in encoder.missing_variance.items()}
    torch.testing.assert_close(variance[1:], torch.stack([extra["0"], extra["0"] + extra["1"]]))


def test_labels_without_training_cells_are_as_good_as_missing():
    encoder = make()
    encoder.prepare(fields((0, 2, 2, -1), (0, 1, 1, 0), (1.0,) * 4))
    values = torch.tensor([0, 1, 2, -1, 7])
    assert encoder.present(0, values).tolist() == [True, False, True, False, False]
    unseen, missing = encoder(fields((1, -1), (0, 0), (1.0, 1.0)))[0]
    assert torch.equal(unseen, missing)


def test_numbers_are_seen_by_their_training_mean_and_spread():
    encoder = make()
    known = torch.tensor([10.0, 20.0, 60.0])
    encoder.prepare(fields((0,) * 4, (0,) * 4, (10.0, 20.0, 60.0, torch.nan)))
    values = torch.tensor([30.0, torch.nan, torch.inf, 60.0])
    assert encoder.present(2, values).tolist() == [True, False, False, True]
    expected = (values[[0, 3]] - known.mean()) / known.std(correction=0)
    torch.testing.assert_close(encoder.standardised(2, values)[[0, 3]], expected)
    assert encoder.standardised(2, values)[1] == 0
    encoder.prepare(fields(age=(5.0,)))
    assert torch.isfinite(encoder(fields(age=(5.0,)))[0]).all()
    encoder.prepare(fields(age=(torch.nan,)))
    assert encoder.centre_2 == 5


def test_values_are_left_out_while_training_only():
    encoder = make(TISSUE, dropout=0.3)
    n = 2000
    codes = {"tissue": torch.zeros(n, dtype=torch.long)}
    kept = encoder.embeddings["0"].weight[0]
    assert (encoder(codes)[0] == kept).all()
    dropped = (encoder.train()(codes)[0] == encoder.missing["0"]).all(1).float().mean()
    assert abs(dropped - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    assert (make(TISSUE, dropout=0.0).train()(codes)[1] == 0).all()


def test_without_columns_nothing_is_known():
    mean, variance = MetadataEncoder((), N_OUT)({})
    assert torch.equal(mean.expand(3, N_OUT), torch.zeros(3, N_OUT))
    assert torch.equal(variance.expand(3, N_OUT), torch.zeros(3, N_OUT))


def test_without_columns_vectors_are_where_the_encoder_is():
    mean, variance = MetadataEncoder((), N_OUT).to("meta")({})
    assert mean.device.type == variance.device.type == "meta"


def test_what_is_learned_of_training_is_saved():
    encoder, again = make(), make()
    encoder.prepare(fields((0, 2), (0, 1), (3.0, 9.0)))
    again.load_state_dict(encoder.state_dict())
    asked = fields((0, 1, 2), (1, 1, -1), (4.0, torch.nan, 1.0))
    for one, other in zip(encoder(asked), again(asked), strict=True):
        assert torch.equal(one, other)


def test_label_loss_is_the_cross_entropy_of_labels_that_are_there():
    head, latent = MetadataHead(2, TISSUE), torch.randn(5, 2)
    target = torch.tensor([0, 2, -1, 1, -1])
    there = target >= 0
    expected = nn.CrossEntropyLoss()(head(latent[there]), target[there])
    torch.testing.assert_close(head.loss(latent, target, there), expected)


def test_number_loss_is_the_normal_one_up_to_a_constant():
    head, latent = MetadataHead(2, AGE), torch.randn(5, 2)
    target = torch.tensor([0.3, torch.nan, -2.0, 1.0, torch.nan])
    there = torch.isfinite(target)
    mean, log_sd = head(latent[there]).T
    constant = Normal(0.0, 1.0).log_prob(torch.zeros(()))
    expected = -Normal(mean, log_sd.exp()).log_prob(target[there]).mean() + constant
    torch.testing.assert_close(head.loss(latent, target, there), expected)


@pytest.mark.parametrize("spec", [TISSUE, AGE], ids=["labels", "numbers"])
def test_nothing_there_costs_nothing(spec):
    head, latent = MetadataHead(2, spec), torch.randn(3, 2, requires_grad=True)
    missing = torch.full((3,), torch.nan) if spec.is_numeric else torch.full((3,), -1)
    assert head.loss(latent, missing, torch.zeros(3, dtype=torch.bool)) == 0
