import pytest
import torch

from wespeaker.losses import HeadOutput
from wespeaker.train.distributed import Ranks
from wespeaker.train.meter import Meter


def output(loss, support, target_posterior, path="dense", scanned=0):
    per_sample = torch.tensor(loss, requires_grad=True)
    correct = torch.tensor(loss) < 1.0
    return HeadOutput(
        per_sample.mean(), per_sample, correct, torch.tensor(support), torch.tensor(target_posterior), path, scanned
    )


def test_a_row_is_of_all_samples_since_the_last_one():
    meter = Meter(Ranks(0, 1, torch.device("cpu")))
    meter.update(output([0.0, 2.0], [1, 9], [1.0, 0.0], scanned=20), waited=0.0)
    meter.update(output([4.0], [5], [0.0], path="stream", scanned=7), waited=0.0)
    row = meter.row()
    assert row["loss"] == pytest.approx(2.0)  # a mean of samples, not of batches
    assert row["accuracy"] == row["zero_loss"] == pytest.approx(1 / 3)
    assert (row["support"], row["support_max"]) == (pytest.approx(5.0), 9)
    assert row["zero_target"] == pytest.approx(2 / 3)
    assert (row["streamed"], row["scanned"]) == (0.5, pytest.approx(9.0))
    meter.update(output([1.0], [2], [0.5]), waited=0.0)
    again = meter.row()
    assert (again["loss"], again["support_max"], again["zero_target"]) == (1.0, 2, 0.0)


def test_a_meter_goes_on_from_the_sums_of_others():
    """As of two ranks whose run goes on with one."""
    outputs = [output([0.0, 2.0], [1, 9], [1.0, 0.0], scanned=20), output([4.0], [5], [0.0], path="stream", scanned=7)]
    ranks = Ranks(0, 1, torch.device("cpu"))
    parts, whole, later = [Meter(ranks), Meter(ranks)], Meter(ranks), Meter(ranks)
    for part, out in zip(parts, outputs, strict=True):
        part.update(out, waited=0.0)
        whole.update(out, waited=0.0)
    later.load([part.state() for part in parts])
    assert not later.empty
    assert later.mean_loss() == whole.mean_loss() == pytest.approx(2.0)
    clock = {"samples_per_sec", "data_wait"}
    expected, found = whole.row(), later.row()
    assert {key: found[key] for key in found.keys() - clock} == {key: expected[key] for key in expected.keys() - clock}
    assert later.empty
