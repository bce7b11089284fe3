"""Batches: every index once, in an order of the seed and the epoch, in equal shares."""

from __future__ import annotations

from itertools import chain
from math import ceil
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from scvi_perturb.data.datamodule import BatchSampler, ScreenDataModule

INDICES = np.random.default_rng(1).permutation(1000)[:37]


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def order(epoch=0, **options):
    return np.concatenate(batches(BatchSampler(INDICES, 8, **options), epoch))


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    seed=st.none() | st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_index_comes_once(n, batch_size, seed, epoch):
    sampler = BatchSampler(np.arange(n) + 5, batch_size, seed=seed)
    made = batches(sampler, epoch)
    assert len(made) == len(sampler) == ceil(n / batch_size)
    assert {len(batch) for batch in made[:-1]} <= {batch_size}
    assert sorted(np.concatenate(made)) == list(range(5, n + 5))


def test_order_depends_on_seed_and_epoch_alone():
    np.testing.assert_array_equal(order(seed=3, epoch=2), order(seed=3, epoch=2))
    others = [order(seed=s, epoch=e) for s, e in ((3, 2), (3, 1), (2, 3), (4, 2))]
    assert len({tuple(other) for other in others}) == 4
    sampler = BatchSampler(INDICES, 8, seed=3)
    batches(sampler, 0)
    np.testing.assert_array_equal(np.concatenate(batches(sampler, 2)), order(seed=3, epoch=2))


def test_order_does_not_read_or_move_global_random_numbers():
    before = torch.get_rng_state()
    first = order(seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        np.testing.assert_array_equal(order(seed=0), first)


def test_without_a_seed_the_order_is_kept():
    np.testing.assert_array_equal(order(seed=None, epoch=4), INDICES)


@given(
    n=st.integers(1, 40),
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    seed=st.none() | st.integers(0, 3),
)
def test_shares_are_of_equal_size_and_cover_everything(n, world_size, batch_size, seed):
    shares = []
    for rank in range(world_size):
        sampler = BatchSampler(
            np.arange(n), batch_size, seed=seed, rank=rank, world_size=world_size
        )
        made = batches(sampler, epoch=1)
        assert len(made) == len(sampler)
        shares.append(np.concatenate(made))
    assert {len(share) for share in shares} == {ceil(n / world_size)}
    every = np.concatenate(shares)
    assert set(every) == set(range(n))
    # As few as possible come twice.
    assert len(every) - n < world_size


def test_no_index_makes_no_batch():
    for world_size in (1, 2):
        sampler = BatchSampler(np.zeros(0, int), 4, seed=0, world_size=world_size)
        assert batches(sampler) == []
        assert len(sampler) == 0


class Squares:
    """A source whose items tell which they are."""

    def __len__(self):
        return 1000

    def __getitem__(self, indices):
        return {"index": torch.from_numpy(indices), "square": torch.from_numpy(indices) ** 2}


def module(**options):
    parts = {"train_idx": INDICES[:30], "val_idx": INDICES[30:]}
    return ScreenDataModule(Squares(), **{**parts, "batch_size": 8, "seed": 0, **options})


def read(loader):
    return [batch["index"].tolist() for batch in loader]


def joined(batches_read):
    return list(chain.from_iterable(batches_read))


def test_loaders_read_whole_batches_from_the_source():
    made = module()
    train = read(made.train_dataloader())
    assert sorted(joined(train)) == sorted(INDICES[:30])
    assert [len(batch) for batch in train] == [8, 8, 8, 6]
    for batch in made.train_dataloader():
        assert torch.equal(batch["square"], batch["index"] ** 2)
    assert read(made.val_dataloader()) == [INDICES[30:].tolist()]
    assert (made.n_train, made.n_val, len(made.test_idx)) == (30, 7, 0)


def test_training_is_shuffled_by_the_seed_and_validation_is_not():
    first, again, other = (read(module(seed=s).train_dataloader()) for s in (0, 0, 1))
    assert first == again != other
    assert joined(first) != INDICES[:30].tolist()
    loader = module().train_dataloader()
    assert isinstance(loader, DataLoader)
    # What Lightning calls before each epoch.
    loader.sampler.set_epoch(1)
    assert read(loader) != first


def test_without_a_seed_one_is_drawn():
    one, two = module(seed=None), module(seed=None)
    assert one.seed != two.seed
    assert read(one.train_dataloader()) == read(one.train_dataloader())


def test_no_validation_cells_make_no_loader():
    made = module(val_idx=np.zeros(0, int))
    assert made.n_val == 0
    assert list(made.val_dataloader()) == []


def test_processes_get_their_own_shares():
    shares = []
    for rank in range(2):
        made = module()
        on_cpu = SimpleNamespace(root_device=torch.device("cpu"))
        made.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=on_cpu)
        shares.append(joined(read(made.train_dataloader())))
    assert len(shares[0]) == len(shares[1]) == 15
    assert sorted(joined(shares)) == sorted(INDICES[:30])
