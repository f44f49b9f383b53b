"""The heads under autocast, GradScaler, DistributedDataParallel, torch.compile, deepcopy and state_dict."""

import ast
import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch import multiprocessing as mp

from wespeaker import losses
from wespeaker.losses import PROJECT_TYPES, HeadOutput, RowSparseSGD, build_head
from wespeaker.models import build_model

D, B = 16, 8
LARGE = 5000  # classes enough for the one-buffer dense form
# Every type as it comes, with few classes; and the forms of one type with many.
HEADS = [({"project_type": name}, 40) for name in sorted(PROJECT_TYPES)]
HEADS += [
    ({"project_type": "q_margin", "form": "dense"}, LARGE),
    ({"project_type": "q_margin", "form": "stream"}, LARGE),
    ({"project_type": "q_margin", "form": "stream", "screen": "bf16", "weight_grad": "sparse"}, LARGE),
]
every_head = pytest.mark.parametrize(
    ("args", "num_classes"), HEADS, ids=["-".join([*args.values(), str(count)]) for args, count in HEADS]
)


def make(args, num_classes):
    torch.manual_seed(0)
    return build_head(args, embed_dim=D, num_classes=num_classes)


def batch(num_classes, *, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, D, generator=generator).to(dtype)
    return embeddings.requires_grad_(), torch.randint(num_classes, (B,), generator=generator)


def dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_head(args, num_classes, dtype):
    """A backbone under autocast gives coarse embeddings; the loss is that of the same embeddings in float32."""
    found = []
    for autocast in (True, False):
        head = make(args, num_classes).eval()
        embeddings, labels = batch(num_classes, dtype=dtype)
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            out = head(embeddings, labels)
        assert torch.equal(out.per_sample, head(embeddings.float(), labels).per_sample)
        out.loss.backward()
        assert head.weight.grad.dtype == torch.float32
        found.append((embeddings.grad, dense(head.weight.grad)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


@every_head
def test_grad_scaler_gives_the_gradients_and_the_step_of_a_loss_that_is_not_scaled(args, num_classes):
    heads = [make(args, num_classes) for _ in range(2)]
    optimizers = [RowSparseSGD(head.parameters(), 0.1, momentum=0.9, weight_decay=1e-3) for head in heads]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    embeddings, labels = batch(num_classes)
    scaler.scale(heads[0](embeddings, labels).loss).backward()
    scaler.unscale_(optimizers[0])
    heads[1](embeddings, labels).loss.backward()
    assert heads[0].weight.grad.is_sparse == (args.get("weight_grad") == "sparse")
    mine, theirs = (dense(head.weight.grad) for head in heads)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    scaler.step(optimizers[0])
    scaler.update()
    optimizers[1].step()
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-6, atol=1e-8)


@every_head
def test_a_deep_copy_and_a_loaded_state_give_the_same_and_share_nothing(args, num_classes):
    head = make(args, num_classes)
    head.start_epoch(1)
    head(*batch(num_classes))  # whatever a head remembers, it now does
    torch.manual_seed(5)
    loaded = build_head(args, embed_dim=D, num_classes=num_classes)
    loaded.load_state_dict(copy.deepcopy(head.state_dict()))
    copied = copy.deepcopy(head)
    inputs = batch(num_classes, seed=2)
    expected = head(*inputs).per_sample
    with torch.no_grad():
        head.weight.zero_()
    for other in (copied, loaded):
        assert torch.equal(other(*inputs).per_sample, expected)


# ---- several processes ----


class Network(nn.Module):
    """A backbone and its head in one module, as DistributedDataParallel wants it."""

    def __init__(self, args, num_classes):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(D, D)
        self.head = build_head(args, embed_dim=D, num_classes=num_classes)

    def forward(self, x, labels) -> HeadOutput:
        return self.head(self.backbone(x), labels)


PARALLEL = [({"project_type": name}, 40) for name in ("arc_margin", "sphereface2", "kappa", "ada_margin")] + HEADS[
    -3:-1
]


def gradients(args, num_classes, rank, world_size):
    """Return the gradients of the second of two batches, of which this process takes its part."""
    network = Network(args, num_classes)
    wrapped = nn.parallel.DistributedDataParallel(network) if world_size > 1 else network
    part = slice(rank * B // world_size, (rank + 1) * B // world_size)
    for seed in (1, 2):
        network.zero_grad()
        x, labels = batch(num_classes, seed=seed)
        wrapped(x.detach()[part], labels[part]).loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save([gradients(*case, rank, 2) for case in PARALLEL], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for i, case in enumerate(PARALLEL):
        expected = gradients(*case, 0, 1)
        for rank in range(2):
            torch.testing.assert_close(found[rank][i], expected, rtol=1e-5, atol=1e-6)


# ---- torch.compile ----


def test_a_compiled_backbone_is_one_graph_and_the_head_follows_it():
    torch.manual_seed(0)
    backbone = build_model("ResNet34", feat_dim=80, embed_dim=D, m_channels=2)
    features, labels = torch.randn(2, 40, 80), torch.arange(2)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    head = make({"project_type": "q_margin", "form": "stream"}, LARGE)
    results = []
    for model in (backbone, torch.compile(backbone, backend=backend, fullgraph=True)):  # a break would be an error
        backbone.zero_grad()
        out = head(model(features), labels)
        out.loss.backward()
        results.append([out.loss.detach(), *(p.grad for p in backbone.parameters())])
    torch.testing.assert_close(results[0], results[1])
    assert len(graphs) == 1


# ---- self-contained ----


@pytest.mark.parametrize("path", sorted(Path(losses.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_the_package_imports_nothing_of_the_rest(path):
    """Nor anything but torch, numpy and the standard library."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    own = {name for name in imported if name.split(".")[0] == "wespeaker"}
    assert all(f"{name}.".startswith("wespeaker.losses.") for name in own)
    assert {name.split(".")[0] for name in imported - own} <= {"torch", "numpy", *sys.stdlib_module_names}
