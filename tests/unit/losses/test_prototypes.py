"""Prototype re-initialisation, the optimiser's memory of it, and class statistics over processes."""

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed
from torch.nn import functional as F

from wespeaker.losses import build_head, forget_momentum
from wespeaker.losses.shards import rows_of_all_ranks

D, C, B = 5, 6, 8


def make(**args):
    torch.manual_seed(0)
    return build_head({"project_type": "a3m", "reinit_epoch": 3, **args}, embed_dim=D, num_classes=C).double()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, D, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(C - 1, (B,), generator=generator)  # the last class is never seen


def test_a3m_is_entmax_until_the_prototypes_are_turned():
    head = make(alpha=1.5)
    torch.manual_seed(0)
    plain = build_head({"project_type": "entmax", "alpha": 1.5}, embed_dim=D, num_classes=C).double()
    assert torch.equal(head(*batch(1)).per_sample, plain(*batch(1)).per_sample)


def test_prototypes_are_turned_to_the_embeddings_of_the_epoch_before():
    head = make()
    before = head.weight.detach().clone()
    directions = {}
    for epoch in (1, 2):
        assert not len(head.start_epoch(epoch))
        for seed in (10 * epoch, 10 * epoch + 1):
            embeddings, labels = batch(seed)
            head(embeddings, labels)
            if epoch == 2:
                for x, y in zip(embeddings, labels.tolist(), strict=True):
                    directions[y] = directions.get(y, 0) + x / x.norm()
    assert torch.equal(head.weight, before)
    rows = head.start_epoch(3)
    assert rows.tolist() == sorted(directions)
    assert C - 1 not in directions
    for c in range(C):
        expected = before[c]
        if c in directions:
            expected = before[c].norm() * directions[c] / directions[c].norm()
        torch.testing.assert_close(head.weight[c], expected)
    turned = head.weight.detach().clone()
    assert not len(head.start_epoch(3))  # a resumed run may say it twice
    head(*batch(1))
    assert not len(head.start_epoch(4))
    assert torch.equal(head.weight, turned)


def test_only_classes_that_got_no_posterior_are_turned():
    head = make(reinit_zero_share=0.75)
    head.start_epoch(2)
    zeros, counts = torch.zeros(C), torch.zeros(C)
    for seed in range(6):
        embeddings, labels = batch(seed)
        p_y = head(embeddings, labels).target_posterior
        counts.index_add_(0, labels, torch.ones(B))
        zeros.index_add_(0, labels, (p_y == 0).float())
    rows = head.start_epoch(3)
    expected = ((counts > 0) & (zeros / counts >= 0.75)).nonzero().squeeze(1)
    assert torch.equal(rows, expected)
    assert 0 < len(rows) < C - 1


@pytest.mark.parametrize("epoch", [0, 5])
def test_prototypes_stay_when_it_is_not_time(epoch):
    head = make(reinit_epoch=epoch)
    before = head.weight.detach().clone()
    for number in (1, 2, 3):
        assert not len(head.start_epoch(number))
        head(*batch(number))
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_momentum_of_turned_rows_is_forgotten(optimizer):
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    other = torch.nn.Parameter(torch.ones(2))
    args = {"momentum": 0.9} if optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, optimizer)([parameter, other], lr=0.1, **args)
    rows = torch.tensor([1, 3])
    forget_momentum(optimizer, parameter, rows)  # before the first step there is nothing to forget
    (parameter.square().sum() + other.sum()).backward()
    optimizer.step()
    forget_momentum(optimizer, parameter, rows)
    (name,) = {"momentum_buffer", "exp_avg"} & set(optimizer.state[parameter])
    momentum = optimizer.state[parameter][name]
    assert not momentum[rows].any()
    assert momentum[[0, 2]].all()
    assert optimizer.state[other][name].all()


# ---- two processes have the statistics of one ----

TYPES = ("ada_margin", "curricular", "elastic_arc", "kappa", "a3m")


def states_after_an_epoch(rank, world_size):
    """Train on a part of each batch; return the buffers of every head and its losses."""
    found = {}
    for project_type in TYPES:
        torch.manual_seed(0)
        args = {"reinit_epoch": 2} if project_type == "a3m" else {}
        head = build_head({"project_type": project_type, **args}, embed_dim=D, num_classes=C)
        losses = []
        for epoch in (1, 2):
            head.start_epoch(epoch)
            for seed in (1, 2):
                embeddings, labels = batch(seed)
                part = slice(rank * B // world_size, (rank + 1) * B // world_size)
                losses.append(head(embeddings[part].float(), labels[part]).per_sample.detach())
        found[project_type] = (head.state_dict(), torch.cat([F.pad(x, (0, 0)) for x in losses]).view(4, -1))
    return found


def worker(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(states_after_an_epoch(rank, 2), f"{folder}/{rank}.pt")
    torch.save(rows_of_all_ranks(torch.arange(4)[2 * rank : 3 + rank].view(-1, 1)), f"{folder}/rows_{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_statistics_of_one(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    expected = states_after_an_epoch(0, 1)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank in range(2):  # three rows of the first process and two of the second
        assert torch.load(tmp_path / f"rows_{rank}.pt").tolist() == [[0], [1], [2], [2], [3]]
    for project_type in TYPES:
        state, losses = expected[project_type]
        for rank in range(2):
            for key, value in state.items():
                torch.testing.assert_close(found[rank][project_type][0][key], value, rtol=1e-5, atol=1e-6)
        both = torch.cat([found[rank][project_type][1] for rank in range(2)], dim=1)
        torch.testing.assert_close(both, losses, rtol=1e-5, atol=1e-5)
