"""Networks that read a condition: denoiser, counts, splines."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scvi_perturb.nn import ConditionalNetwork, CountNetwork, SplineChain

# Conditional ---------------------------------------------------------------------------


N_LATENT, N_CONDITION, N_CELLS = 3, 5, 7


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield ConditionalNetwork(N_LATENT, N_CONDITION, width=16, n_blocks=2)


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    shapes = {"x_t": N_LATENT, "reference": N_LATENT, "condition": N_CONDITION}
    made = {k: torch.randn(N_CELLS, n, generator=random) for k, n in shapes.items()}
    return made | {"time": torch.rand(N_CELLS, generator=random)}


def apply(network, inputs, **changes):
    given = {**inputs, **changes}
    modulation = network.modulation(given["time"], given["condition"])
    return network(given["x_t"], given["reference"], modulation)


def stir(network):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)


def test_starts_at_zero_whatever_goes_in(network, inputs):
    assert torch.equal(apply(network, inputs), torch.zeros(N_CELLS, N_LATENT))
    modulation = network.modulation(inputs["time"], inputs["condition"])
    assert torch.equal(modulation, torch.zeros(N_CELLS, 48))


def test_gradients_reach_the_output_from_the_first_step_and_all_weights_later(network, inputs):
    apply(network, inputs).sub(1).square().sum().backward()
    assert network.output.weight.grad.abs().max() > 0
    stir(network)
    network.zero_grad()
    apply(network, inputs).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad.abs().max() == 0]
    assert still == []


@pytest.mark.parametrize("name", ["x_t", "reference", "condition", "time"])
def test_every_input_matters_to_its_own_cell_alone(network, inputs, name):
    stir(network)
    moved = inputs[name].clone()
    moved[2] += 0.5
    moves = (apply(network, inputs, **{name: moved}) - apply(network, inputs)).abs().amax(1)
    assert moves[2] > 1e-3
    assert moves[torch.arange(N_CELLS) != 2].max() < 1e-5


def test_one_modulation_serves_all_cells_of_a_condition(network, inputs):
    stir(network)
    time, condition = inputs["time"][:1], inputs["condition"][:1]
    once = network(inputs["x_t"], inputs["reference"], network.modulation(time, condition))
    many = apply(
        network,
        inputs,
        time=time.expand(N_CELLS),
        condition=condition.expand(N_CELLS, -1),
    )
    torch.testing.assert_close(once, many, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_the_divergence_is_the_trace_of_the_jacobian(n_blocks):
    torch.manual_seed(0)
    network = ConditionalNetwork(4, 3, width=16, n_blocks=n_blocks).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    x, reference = torch.randn(2, 6, 4, dtype=torch.float64)
    for n_rows in (6, 1):
        modulation = torch.randn(n_rows, 48, dtype=torch.float64)
        output, trace = network.with_divergence(x, reference, modulation)
        torch.testing.assert_close(output, network(x, reference, modulation))
        for i in range(6):
            rows = modulation[i % n_rows][None]
            jacobian = torch.autograd.functional.jacobian(
                lambda point, i=i, rows=rows: network(point[None], reference[i][None], rows)[0],
                x[i],
            )
            torch.testing.assert_close(trace[i], jacobian.trace())


# Count network -------------------------------------------------------------------------


def test_asked_places_have_the_logits_they_have_among_all():
    torch.manual_seed(0)
    network = CountNetwork(7, 5, 3, width=16, n_blocks=1).eval()
    inputs = [torch.randn(4, 7) for _ in range(4)]
    rest = (torch.rand(4), torch.randn(4, 3))
    everywhere = torch.ones(4, 7, dtype=torch.bool)
    whole = network(inputs, *rest, everywhere).view(4, 7, 5)
    places = torch.rand(4, 7) < 0.4
    places[1], places[:, 2] = False, False  # neither this cell nor this gene
    torch.testing.assert_close(network(inputs, *rest, places), whole[places])
    assert network(inputs, *rest, torch.zeros_like(places)).shape == (0, 5)


# Splines -------------------------------------------------------------------------------


N_DIM, SPLINES_N_CONDITION = 5, 3


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return (
        SplineChain(N_DIM, SPLINES_N_CONDITION, n_transforms=3, n_bins=4, width=16)
        .double()
        .requires_grad_(requires_grad=False)
    )


def draws(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_way_back_is_the_way_forth(chain):
    noise, condition = 2 * draws(50, N_DIM), draws(50, SPLINES_N_CONDITION, 2)
    points = chain(noise, condition)
    assert float((points - noise).abs().max()) > 0.1
    back, _ = chain.inverse(points, condition)
    assert float((back - noise).abs().max()) < 1e-8


def test_volume_is_that_of_the_jacobian(chain):
    points, condition = draws(4, N_DIM), draws(4, SPLINES_N_CONDITION, 2)
    _, volume = chain.inverse(points, condition)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, i=i: chain.inverse(x[None], condition[i : i + 1])[0][0], points[i]
        )
        torch.testing.assert_close(volume[i], jacobian.det().abs().log())


def test_the_condition_matters(chain):
    noise = draws(4, N_DIM)
    a, b = (
        chain(noise, c * torch.ones(4, SPLINES_N_CONDITION, dtype=torch.float64))
        for c in (0.0, 1.0)
    )
    assert float((a - b).abs().max()) > 1e-3
    alone = chain(noise[:1], torch.zeros(1, SPLINES_N_CONDITION, dtype=torch.float64))
    torch.testing.assert_close(a[:1], alone)


def test_all_dimensions_are_moved(chain):
    noise, condition = draws(20, N_DIM), draws(20, SPLINES_N_CONDITION, 2)
    assert ((chain(noise, condition) - noise).abs().amax(0) > 1e-3).all()
