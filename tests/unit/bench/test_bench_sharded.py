"""PartialFC's algorithm, which the sharded heads are timed against, is ArcFace; its traffic is counted by hand."""

import pytest
import torch
from baselines import partial_fc
from bench_head import inputs
from bench_sharded import BASELINE, OURS, REPLICATED, Case, Traffic
from torch import distributed
from torch import multiprocessing as mp

from wespeaker.losses import Shards, build_head

C, D, B = 5001, 32, 16
ARC = {"project_type": "arc_margin", "scale": 32.0, "margin": 0.2, "gradient": "straight_through"}


def arc_margin(embeddings, weight, labels, first):
    head = build_head(ARC, embed_dim=D, num_classes=C, shards=Shards.of_all_ranks(C))
    head.weight = weight
    return head(embeddings, labels).loss


def found(loss, data, shards, rows):
    weight = torch.nn.Parameter(data[0][shards.first : shards.last].clone())
    embeddings = data[1][rows].clone().requires_grad_()
    mean = loss(embeddings, weight, data[2][rows], shards.first)
    mean.backward()
    return {"loss": mean.detach(), "of_embeddings": embeddings.grad, "of_weight": weight.grad}


def worker(rank, world_size, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    shards, share = Shards.of_all_ranks(C), B // world_size
    rows = slice(rank * share, (rank + 1) * share)
    results = {}
    for regime in ("trained", "random"):
        data = inputs(regime, C, D, batch=B)
        for name, loss in (("baseline", partial_fc), ("ours", arc_margin)):
            results[regime, name] = found(loss, data, shards, rows)
    for size, variant in [*((C, name) for name in (BASELINE, *OURS, REPLICATED)), (4 * C, "q_margin")]:
        weight, embeddings, labels = inputs("trained", size, D, batch=B)
        its = Shards(size) if variant == REPLICATED else Shards.of_all_ranks(size)
        case = Case(variant, its, weight[its.first : its.last].clone(), embeddings[rows], labels[rows])
        with Traffic() as traffic:
            case.step()
        gradient = case.weight.grad.to_dense() if case.weight.grad.is_sparse else case.weight.grad
        results[size, variant] = {"gradient": gradient, "calls": traffic.calls, "bytes": traffic.bytes}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2])
def processes(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    if request.param == 1:
        worker(0, 1, folder)
    else:
        mp.spawn(worker, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("regime", ["trained", "random"])
def test_partial_fc_is_our_arcface(processes, regime):
    theirs, ours = ([each[regime, name] for each in processes] for name in ("baseline", "ours"))
    for their, our in zip(theirs, ours, strict=True):
        for key in ("of_embeddings", "of_weight"):
            scale = our[key].abs().max().item()
            torch.testing.assert_close(their[key], our[key], rtol=2e-5, atol=2e-6 * scale)
        # theirs is the mean over everyone's rows, ours over this process's
        torch.testing.assert_close(their["loss"], torch.stack([each["loss"] for each in ours]).mean())


def test_all_q_margin_heads_of_the_bench_find_the_same_gradient(processes):
    replicated = processes[0][C, REPLICATED]["gradient"]
    for variant in OURS:
        if variant.startswith("q_margin"):
            sharded = torch.cat([each[C, variant]["gradient"] for each in processes])
            torch.testing.assert_close(sharded, replicated, rtol=1e-4, atol=2e-6 * replicated.abs().max().item())


def test_traffic_is_what_a_ring_sends(processes):
    """Of float32: two gathers, of embeddings and int64 labels, a scatter of embeddings, three numbers a row."""
    others = len(processes) - 1
    for each in processes:
        baseline, replicated = each[C, BASELINE], each[C, REPLICATED]
        assert baseline["calls"] == {"all_gather": 2, "all_reduce": 3, "reduce_scatter": 1}
        rows = B // len(processes)
        assert baseline["bytes"] == others * rows * (4 * D + 8 + 4 * D + 2 * 3 * 4)
        assert replicated["calls"] == {"all_reduce": 1}
        assert replicated["bytes"] == 2 * others / len(processes) * 4 * C * D


def test_traffic_of_four_times_as_many_classes_differs_by_newton_steps_only(processes):
    """A step is a sum of four float64 a row."""
    others = len(processes) - 1
    for each in processes:
        few, many = each[C, "q_margin"], each[4 * C, "q_margin"]
        steps = many["calls"].pop("all_reduce", 0) - few["calls"].pop("all_reduce", 0)
        assert abs(steps) <= 4
        assert many["calls"] == few["calls"]
        assert many["bytes"] - few["bytes"] == steps * 2 * others / len(processes) * 4 * B * 8
