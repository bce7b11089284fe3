"""What is held out to choose the number of steps, and when the search ends."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scvi_perturb.data import Condition, ConditionTable
from scvi_perturb.metrics import energy_distance
from scvi_perturb.model.latent.fit import (
    HeldOutEnergy,
    HeldOutGroups,
    choose_held_out,
    error_history,
    latent_energy,
)


def codes_of(cells, table):
    """Return codes of `{(label, context): number of cells}`, and the cells of each group."""
    condition, context, groups = [], [], {}
    for (label, place), n in cells.items():
        groups[label, place] = np.arange(len(condition), len(condition) + n)
        condition += [int(table.codes([Condition.parse(label)])[0])] * n
        context += [place] * n
    return {"condition": np.array(condition), "context": np.array(context)}, groups


def choose(cells, *, train=None, seed=0):
    labels = dict.fromkeys(label for label, _ in cells)
    table = ConditionTable.from_conditions([Condition.parse(label) for label in labels])
    codes, groups = codes_of(cells, table)
    train = np.arange(len(codes["condition"])) if train is None else train
    return choose_held_out(codes, train, table, seed=seed), groups


SINGLES = {("control", 0): 50, ("A", 0): 30, ("B", 0): 30, ("C", 0): 30, ("D", 0): 30}
PAIRS = {("A+B", 0): 30, ("A+C", 0): 30, ("B+C", 0): 30}
CONTEXTS = {(label, i): 30 for label in ("control", "A", "B") for i in range(3)}


def test_combinations_of_seen_components_are_held_out_first():
    held, groups = choose({**SINGLES, **PAIRS, **CONTEXTS})
    assert held.kind == "combination"
    assert len(held.groups) == 1, "a tenth, at least one"
    assert any(np.array_equal(held.groups[0], groups[key]) for key in PAIRS)


def test_combination_is_held_out_in_all_its_contexts():
    cells = {**SINGLES, **PAIRS, **{(label, 1): 5 for label, _ in PAIRS}}
    held, groups = choose(cells)
    label = next(label for label, _ in PAIRS if groups[label, 0][0] in held.cells)
    expected = np.concatenate([groups[label, 0], groups[label, 1]])
    np.testing.assert_array_equal(held.cells, np.sort(expected))


def test_combination_with_a_component_never_seen_alone_is_not_held_out():
    cells = {**SINGLES, ("A+B", 0): 30, ("A+X", 0): 30, ("B+X", 0): 30, ("C+X", 0): 30, **CONTEXTS}
    held, _ = choose(cells)
    assert held.kind == "context", "one such combination is too few"


def test_without_combinations_a_context_is_held_out_of_a_condition():
    held, groups = choose(CONTEXTS)
    assert held.kind == "context"
    assert len(held.groups) == 1
    perturbed = [key for key in groups if key[0] != "control"]
    assert any(np.array_equal(held.groups[0], groups[key]) for key in perturbed)


def test_nothing_is_held_out_where_nothing_can_be():
    assert choose(SINGLES)[0] is None
    small = {key: 19 for key in {**PAIRS, **CONTEXTS}} | {("control", 0): 50}
    assert choose(small)[0] is None, "groups of few cells say too little"


def test_control_is_never_held_out():
    cells = {("control", i): 30 for i in range(4)} | {("A", 0): 30}
    assert choose(cells)[0] is None


@pytest.mark.parametrize(("n", "expected"), [(3, 1), (20, 2), (48, 5), (90, 5)])
def test_a_tenth_is_held_out_and_at_most_five(n, expected):
    names = [f"p{i:02d}" for i in range(n + 1)]
    pairs = {(f"{a}+{b}", 0): 20 for a, b in pairwise(names)}
    cells = {("control", 0): 20, **{(name, 0): 20 for name in names}, **pairs}
    held, _ = choose(cells)
    assert len(held.groups) == expected
    assert len(np.unique(held.cells)) == 20 * expected


def test_choice_is_that_of_the_seed():
    chosen = [choose(CONTEXTS, seed=s)[0].cells for s in (0, 0, *range(1, 8))]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert len({cells[0] for cells in chosen}) > 2


def test_training_cells_alone_are_looked_at():
    cells = {**SINGLES, **PAIRS}
    _, groups = choose(cells)
    train = np.setdiff1d(np.arange(sum(cells.values())), groups["A+B", 0][:15])
    held, _ = choose(cells, train=train)
    assert held is None, "one of three combinations has too few training cells left"
    train = np.setdiff1d(np.arange(sum(cells.values())), groups["A+B", 0][:5])
    for seed in range(6):
        held, _ = choose(cells, train=train, seed=seed)
        assert np.isin(held.cells, train).all()


@pytest.mark.parametrize("shape", [(8, 8, 2), (200, 150, 32), (2, 3, 1)])
def test_energy_agrees_with_the_metric(shape):
    n, m, d = shape
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, d, generator=random), 1 + 2 * torch.randn(m, d, generator=random)
    assert latent_energy(a, b) == pytest.approx(energy_distance(a.numpy(), b.numpy()), rel=1e-4)


class Search:
    """Trains nothing: the error at each look is what it is told to be."""

    def __init__(self, errors, **options):
        self.errors = iter(errors)
        n = 40
        self.latent = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
        pairs = {key: torch.zeros(n, dtype=torch.long) for key in ("condition", "context")}
        pairs["reference_mean"] = torch.zeros(n, 2)
        source = _Pairs(pairs)
        held = HeldOutGroups((np.arange(20, 40),), "context")
        options = {"least": 5, "every": 5, "patience": 2, "seed": 0, **options}
        self.callback = HeldOutEnergy(held, self.latent, source, **options)
        self.module = SimpleNamespace(
            table=None,
            latent_scale=torch.ones(2),
            sample_latent=self.sample,
            training=True,
            from_cell=True,
        )
        self.modes = []

    def sample(self, batch, *, sampler, generator):
        self.modes.append(self.module.training)
        self.noise = torch.randn(3, generator=generator)
        return self.latent[20:] + next(self.errors)

    def run(self, n_steps):
        """Return the step at which training stops."""
        trainer = SimpleNamespace(should_stop=False, global_step=0, is_global_zero=True)
        plan = SimpleNamespace(
            module=self.module,
            device=torch.device("cpu"),
            eval=lambda: setattr(self.module, "training", False),
            train=lambda: setattr(self.module, "training", True),
        )
        for step in range(1, n_steps + 1):
            trainer.global_step = step
            self.callback.on_train_batch_end(trainer, plan, None, None, 0)
            if trainer.should_stop:
                return step
        return None


class _Pairs(dict):
    def __getitem__(self, cells):
        return {key: values[torch.from_numpy(cells)] for key, values in self.items()}


def test_search_stops_when_the_error_rises_and_tells_the_best_step():
    search = Search([3.0, 2.0, 1.0, 1.5, 1.2, 0.1])
    assert search.run(100) == 25
    assert search.callback.best_step == 15
    assert list(search.callback.errors) == [5, 10, 15, 20, 25]
    assert search.modes == [False] * 5
    assert search.module.training, "left in training mode"


def test_search_goes_on_while_the_error_falls():
    search = Search(np.linspace(5, 1, 20))
    assert search.run(60) is None
    assert search.callback.best_step == 60


def test_search_that_never_looked_has_a_length():
    search = Search([], least=3, every=7)
    assert search.run(6) is None
    assert search.callback.best_step == 3


def test_search_makes_the_least_number_of_steps():
    search = Search([0.1, 3.0, 2.0, 2.5, 1.0, 1.5, 1.6, 1.7], least=15)
    assert search.run(100) == 35
    assert search.callback.best_step == 25, "the best from there on"


def test_noise_is_the_same_at_every_look():
    search = Search([1.0, 1.0])
    noise = []
    for step in (5, 10):
        search.run(0)
        trainer = SimpleNamespace(should_stop=False, global_step=step, is_global_zero=True)
        plan = SimpleNamespace(
            module=search.module, device=torch.device("cpu"), eval=lambda: 0, train=lambda: 0
        )
        search.callback.on_train_batch_end(trainer, plan, None, None, 0)
        noise.append(search.noise)
    assert torch.equal(*noise)


def test_errors_are_a_table_by_step():
    search = Search([2.0, 1.0])
    search.run(10)
    table = error_history(search.callback.errors)
    assert table.index.tolist() == [5, 10]
    assert table.index.name == "step"
    assert (table.to_numpy() > 0).all()
