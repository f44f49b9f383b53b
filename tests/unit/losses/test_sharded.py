"""Heads whose classes are split over processes: the numbers of one process that holds them all, in float64."""

import pytest
import torch
from torch import distributed
from torch import multiprocessing as mp

from wespeaker.losses import PROJECT_TYPES, Shards, build_head, heads
from wespeaker.losses.shards import RankRows, sample, uniforms

C, D = 37, 12  # 37 classes: uneven on two processes and on three
SIZES = {1: [12], 2: [7, 5], 3: [6, 1, 5]}  # rows of each process
LABELS = {
    "any": torch.arange(12) * 7 % C,
    "of the last process": C - 1 - torch.arange(12) % 8,
    "of one class": torch.full((12,), 5),
}
ALPHAS = (1.05, 1.25, 1.5, 1.75, 2.0, 2.5)
TYPES = [{"project_type": name} for name in PROJECT_TYPES]
TYPES += [{"project_type": "q_margin", "alpha": alpha, "scale": 12.0} for alpha in ALPHAS]
TYPES += [{"project_type": "mag_margin", "alpha": 1.5, "scale": 12.0, "place": "log_q"}]
TYPES += [{"project_type": "elastic_arc", "plus": "none", "alpha": 1.25, "scale": 20.0}]
TYPES += [{"project_type": "softmax", "sample_rate": 0.4}, {"project_type": "add_margin", "sample_rate": 0.4}]
STREAM = [{**args, "form": "stream"} for args in TYPES if args["project_type"] in ("q_margin", "entmax", "sparsemax")]
STREAM += [{"project_type": "q_margin", "alpha": 1.5, "form": "stream", "screen": "bf16", "weight_grad": "sparse"}]
BUFFERED = [
    {**args, "form": "dense"} for args in TYPES if args["project_type"] in ("q_margin", "add_margin", "arc_margin")
]
BUFFERED = [args for args in BUFFERED if args.get("alpha", 1.0) <= 2.0]
CASES = [(form, args) for form, many in (("dense", TYPES), ("stream", STREAM), ("buffered", BUFFERED)) for args in many]


def batch(labels, *, seed=3):
    """Embeddings near, at and opposite to the prototypes that a head of seed 0 starts with, and anywhere."""
    torch.manual_seed(0)
    weight = build_head({"project_type": "q_margin"}, embed_dim=D, num_classes=C).weight.detach().double()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(12, D, generator=generator, dtype=torch.float64)
    nearness = torch.tensor([0.0, 0.3, 1.0, 1e-3, -1.0, 0.6]).repeat(2).double().unsqueeze(1)
    return (
        20.0
        * (nearness.abs() + 1.0)
        * (0.3 * noise + nearness * weight[labels] / weight[labels].norm(dim=1, keepdim=True))
    )


def steps(args, labels, *, rank=0, world_size=1, dtype=torch.float64):
    """Take two steps of training; return all that is to be equal: this process's rows, and the whole of the rest."""
    torch.manual_seed(0)
    shards = Shards(C, rank, world_size)
    head = build_head(args, embed_dim=D, num_classes=C, shards=shards).to(dtype)
    rows = RankRows(SIZES[world_size], rank).mine_at
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    found = []
    for epoch in (1, 2):
        head.start_epoch(epoch)
        embeddings = batch(labels, seed=epoch)[rows].to(dtype).requires_grad_()
        out = head(embeddings, labels[rows])
        optimizer.zero_grad()
        # As a trainer does: the mean over the ranks of these is the mean over all samples, and what DDP would average.
        (out.loss * len(embeddings) * world_size / len(labels)).backward()
        for parameter in head.parameters():
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        found.append(
            {
                "per_sample": out.per_sample.detach(),
                "correct": out.correct,
                "support": out.support,
                "target_posterior": out.target_posterior,
                "of_embeddings": embeddings.grad / world_size,
            }
        )
        found[-1] |= {f"of_{name}": parameter.grad.clone() for name, parameter in head.named_parameters()}
        optimizer.step()
    return found, {key: value.clone() for key, value in head.state_dict().items()}, sorted(head.sharded_names)


# Every type where the labels are anywhere; the odd ways in which labels can lie, for one head of each kind.
FEW = ("softmax", "arc_margin", "q_margin", "sphereface2", "curricular")
RUNS = [
    (name, number)
    for number, (_, args) in enumerate(CASES)
    for name in LABELS
    if name == "any" or (args["project_type"] in FEW and "alpha" not in args)
]


def traffic(args, num_classes, rank, world_size):
    """Return the sizes in bytes of the collectives of a step of training, and its iterations of the normaliser."""
    torch.manual_seed(0)
    head = build_head(args, embed_dim=D, num_classes=num_classes, shards=Shards(num_classes, rank, world_size))
    generator = torch.Generator().manual_seed(rank)
    embeddings = torch.randn(6, D, generator=generator).requires_grad_()
    labels = torch.randint(num_classes, (6,), generator=generator)
    sizes, names = [], ("all_reduce", "all_gather", "reduce_scatter")

    def counted(function):
        def call(first, *rest, **options):
            sent = rest[0] if rest else first  # in both of the others it comes second
            sizes.append(sum(x.nbytes for x in sent) if isinstance(sent, list) else sent.nbytes)
            return function(first, *rest, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(distributed, name, counted(getattr(distributed, name)))
        head(embeddings, labels).loss.backward()
    return sizes


TRAFFIC = [{"project_type": "q_margin", "form": form} for form in ("dense", "stream")]
TRAFFIC += [{"project_type": "q_margin", "alpha": 1.05, "scale": 64.0}, {"project_type": "arc_margin"}]
MANY = (60, 6000, 13000, 52000)  # the first two and the last two take the same form


def worker(rank, world_size, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    found = {}
    for name, number in RUNS:
        form, args = CASES[number]
        heads.FEW_CLASSES = 1 if form == "buffered" else 4096
        found[number, name] = steps(args, LABELS[name], rank=rank, world_size=world_size)
    heads.FEW_CLASSES = 4096
    for number, args in enumerate(TRAFFIC):
        found["traffic", number] = [traffic(args, num_classes, rank, world_size) for num_classes in MANY]
    head = build_head({"project_type": "q_margin"}, embed_dim=D, num_classes=C, shards=Shards.of_all_ranks(C))
    try:
        head(torch.ones(2, D), torch.tensor([0, C if rank == 1 else 1]))
    except ValueError as error:
        found["bad label"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def processes(request, tmp_path_factory):
    """What each of two or three processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def title(run):
    name, number = run
    form, args = CASES[number]
    return "-".join([form, *map(str, args.values()), name])


@pytest.mark.parametrize(("name", "number"), RUNS, ids=[title(run) for run in RUNS])
def test_several_processes_find_what_one_finds(processes, name, number, monkeypatch):
    form, args = CASES[number]
    if form == "buffered":
        monkeypatch.setattr(heads, "FEW_CLASSES", 1)
    expected, state, sharded = steps(args, LABELS[name])
    parts = [found[number, name] for found in processes]
    tolerance = {"rtol": 1e-6, "atol": 1e-9}
    for step, one in enumerate(expected):
        for key, value in one.items():
            several = [part[0][step][key] for part in parts]
            if key.startswith("of_") and key != "of_embeddings" and key.removeprefix("of_") not in sharded:
                for other in several:
                    torch.testing.assert_close(other, value, **tolerance)
            else:
                torch.testing.assert_close(torch.cat(several), value, **tolerance, msg=lambda m, key=key: f"{key}: {m}")
    for key, value in state.items():
        several = [part[1][key] for part in parts]
        if key in sharded:
            torch.testing.assert_close(torch.cat(several), value, **tolerance)
        else:
            for other in several:
                torch.testing.assert_close(other, value, **tolerance)


@pytest.mark.parametrize("number", range(len(TRAFFIC)))
def test_traffic_does_not_grow_with_the_classes(processes, number):
    """Three gathers and their ways back, and a few numbers a row for each look at the normaliser."""
    world_size = len(processes)
    for found in processes:
        few, many, more, most = found["traffic", number]
        rows = 6 * world_size
        for sizes in (few, many, more, most):
            assert len(sizes) <= 30
            assert max(sizes) == rows * D * 4  # the gradients of everyone's embeddings
            assert sum(size > 5 * rows * 8 for size in sizes) == 1
        for small, large in ((few, many), (more, most)):
            assert sum(large) < 1.3 * sum(small)  # the number of looks may differ


def test_a_bad_label_is_an_error_on_all_processes(processes):
    sentence = f"labels must be in [0, {C}); found 0 to {C}"
    assert [found["bad label"] for found in processes] == [sentence] * len(processes)


def test_prototypes_start_alike_on_any_number_of_processes():
    """Not as where every process seeds its generator alike and fills its own rows: all parts would be equal."""
    for project_type in ("q_margin", "arc_margin_intertopk_subcenter", "softmax"):

        def weight(rank, world_size, project_type=project_type):
            torch.manual_seed(7)
            shards = Shards(C, rank, world_size)
            return build_head({"project_type": project_type}, embed_dim=D, num_classes=C, shards=shards).weight

        for world_size in (2, 3):
            parts = [weight(rank, world_size) for rank in range(world_size)]
            assert torch.equal(torch.cat(parts), weight(0, 1))
            assert not torch.equal(parts[0][:12], parts[1][:12])


def test_the_table_of_uniforms_is_one_whatever_part_is_drawn():
    table = uniforms(0, 50, 3, seed=5)
    assert table.min() >= 0.0
    assert table.max() < 1.0
    for first, last in ((0, 1), (7, 8), (13, 50)):
        assert (uniforms(first, last, 3, seed=5) == table[first:last]).all()
    assert (uniforms(0, 50, 3, seed=5, draw=1) != table).all()
    assert (uniforms(0, 50, 3, seed=6) != table).all()


def test_sampled_classes_are_the_labels_and_a_share_of_the_others():
    labels = torch.tensor([3, 999, 3, 500])
    whole = sample(Shards(1000), labels, 0.2, seed=1, draw=1).chosen
    assert set(labels.tolist()) <= set(whole.tolist())
    assert 150 < len(whole) < 260
    parts = [Shards(1000, rank, 3) for rank in range(3)]
    drawn = [uniforms(part.first, part.last, 1, seed=1, draw=1)[:, 0] < 0.2 for part in parts]
    chosen = [torch.from_numpy(mask).nonzero().squeeze(1) + part.first for mask, part in zip(drawn, parts, strict=True)]
    assert set(torch.cat(chosen).tolist()) | {3, 500, 999} == set(whole.tolist())
    assert whole.tolist() != sample(Shards(1000), labels, 0.2, seed=1, draw=2).chosen.tolist()


def test_classes_that_were_not_sampled_have_no_gradient_and_evaluation_sees_all():
    torch.manual_seed(0)
    head = build_head({"project_type": "add_margin", "sample_rate": 0.1}, embed_dim=D, num_classes=500)
    full = build_head({"project_type": "add_margin"}, embed_dim=D, num_classes=500)
    full.load_state_dict({"weight": head.weight.detach()})
    embeddings, labels = torch.randn(4, D), torch.arange(4) * 100
    out = head(embeddings, labels)
    out.loss.backward()
    touched = head.weight.grad.any(1)
    assert int(touched.sum()) == int(out.support[0]) < 100
    assert touched[labels].all()
    assert torch.equal(head.eval()(embeddings, labels).per_sample, full(embeddings, labels).per_sample)


def test_fewer_classes_than_processes():
    with pytest.raises(ValueError, match="2 classes cannot be split over 3 processes"):
        Shards(2, 0, 3)


def test_shards_of_another_number_of_classes():
    with pytest.raises(ValueError, match="shards are of 5 classes, the head is to have 6"):
        build_head({"project_type": "q_margin"}, embed_dim=D, num_classes=6, shards=Shards(5))
