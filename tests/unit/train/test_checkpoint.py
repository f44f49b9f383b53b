import errno
import io
import os
import pickle

import pytest
import torch
from torch import nn

from wespeaker.errors import InputError
from wespeaker.train import checkpoint


def state(value, counter=3):
    half = torch.full((2,), value, dtype=torch.float16)
    return {"w": torch.full((2,), value), "n": torch.tensor(counter), "half": half}


@pytest.fixture
def models(tmp_path):
    for epoch in (5, 7, 8, 9, 10):
        checkpoint.save(state(float(epoch), counter=epoch), checkpoint.model_path(tmp_path, epoch))
    (tmp_path / "best_model.pt").write_bytes(b"what WeSpeaker's glob would have averaged")
    return tmp_path


def test_the_average_is_of_the_last_epochs(models):
    average = checkpoint.load(checkpoint.average_models(models, 3))
    assert average["w"].tolist() == [9.0, 9.0]
    assert average["half"].dtype == torch.float16
    assert int(average["n"]) == 10
    assert checkpoint.epochs_saved(models) == [5, 7, 8, 9, 10]


def test_averaging_more_than_there_are_names_what_is_missing(models, tmp_path):
    with pytest.raises(InputError, match=r"averaging 6 epochs needs model_6\.pt .* found epochs \[5, 7, 8, 9, 10\]"):
        checkpoint.average_models(models, 6)
    with pytest.raises(InputError, match=r"no model_<epoch>\.pt .* run the training stage"):
        checkpoint.average_models(tmp_path / "empty", 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("w"), "w missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra missing, left over"),
        (lambda state: state.update(w=torch.zeros(3)), "w missing, left over or of another size"),
        (lambda state: state.update(n="three"), "n missing, left over or of another size or kind"),
    ],
)
@pytest.mark.parametrize("epoch", [9, 10])
def test_epochs_of_different_networks_are_not_averaged(models, change, named, epoch):
    odd = state(9.0)
    change(odd)
    checkpoint.save(odd, checkpoint.model_path(models, epoch))
    with pytest.raises(
        InputError,
        match=r"model_(8|9)\.pt and model_10\.pt in .* not of one network, or damaged: "
        + (named if epoch == 9 else ""),
    ):
        checkpoint.average_models(models, 3)
    assert not (models / checkpoint.AVERAGE).exists()


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_reading_executes_nothing(tmp_path, capsys):
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "evil.pt")
    with open(tmp_path / "pickle.pt", "wb") as file:
        pickle.dump(Evil(), file, protocol=2)
    with pytest.raises(InputError, match=r"pickle\.pt cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "pickle.pt")
    assert "executed" not in capsys.readouterr().out


def test_only_zip_files_are_read(tmp_path):
    """torch's reader of its format before 1.6 is a pickle with bytes behind it, and there is one of tar files."""
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.load(path, weights_only=True)["w"].tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match=r"old\.pt cannot be read as a checkpoint: it is no file of torch since 1\.6"):
        checkpoint.load(path)


def test_damaged_and_missing_files(models):
    path = checkpoint.model_path(models, 5)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"model_5\.pt cannot be read"):
        checkpoint.load(path)
    path.unlink()
    with pytest.raises(InputError, match=r"model_5\.pt .* does not exist; run the training stage"):
        checkpoint.load(path)
    torch.save([1], path)
    with pytest.raises(InputError, match="holds a list, expected a dict"):
        checkpoint.load(path)


@pytest.mark.parametrize("junk", [b"junk\n", b"", b"\0" * 100, bytes(range(256)), b"PK\x03\x04 cut off"])
def test_any_damaged_bytes_are_a_sentence(tmp_path, junk):
    (tmp_path / "avg_model.pt").write_bytes(junk)
    with pytest.raises(InputError, match=r"avg_model\.pt cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "avg_model.pt")


def test_a_failed_write_leaves_the_old_file(models):
    path = checkpoint.model_path(models, 5)
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint.save({"x": lambda: None}, path)
    assert path.read_bytes() == before
    assert not [p for p in models.iterdir() if "partial" in p.name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("weight"), "weight missing"),
        (lambda state: state.update({"extra": torch.zeros(1)}), "extra missing, left over"),
        (lambda state: state.update({"bias": torch.zeros(7)}), "bias missing, left over or of another size or kind"),
        (lambda state: state.update({"bias": "text"}), "bias missing, left over or of another size or kind"),
        (lambda state: state.update({"bias": torch.zeros(2, dtype=torch.complex64)}), "bias missing"),
        (lambda state: state.update({"bias": torch.zeros(2, dtype=torch.int64)}), "bias missing"),
        (lambda state: state.update({"bias": torch.zeros(2).to_sparse()}), "bias missing"),
        (lambda state: state.update({3: torch.zeros(1)}), "3 missing, left over"),
    ],
)
def test_weights_of_another_network_are_refused_and_a_head_is_passed_over(change, named):
    """WeSpeaker loads what fits and warns; the embeddings are then random, and extraction exits with 0."""
    trained, backbone = nn.Linear(3, 2), nn.Linear(3, 2)
    weights = {**trained.state_dict(), "projection.weight": torch.zeros(5, 2)}
    checkpoint.load_backbone(backbone, weights)
    assert torch.equal(backbone.weight, trained.weight)
    weights = dict(weights)
    change(weights)
    with pytest.raises(InputError, match=named):
        checkpoint.load_backbone(nn.Linear(3, 2), weights)


@pytest.mark.parametrize("count", [torch.tensor(1706.0), torch.tensor(1706, dtype=torch.int64)])
def test_counters_that_an_average_made_fractions_are_whole_again(count):
    """WeSpeaker divides the sum of all entries of the last epochs, these integers too, by their number."""
    trained, backbone = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    checkpoint.load_backbone(backbone, {**trained.state_dict(), "num_batches_tracked": count})
    assert backbone.num_batches_tracked.dtype == torch.int64
    assert backbone.num_batches_tracked == 1706
    with pytest.raises(InputError, match="num_batches_tracked missing, left over or of another size or kind"):
        checkpoint.load_backbone(backbone, {**trained.state_dict(), "num_batches_tracked": torch.tensor(torch.nan)})


def test_averaged_weights_lie_in_models_or_beside_the_config(tmp_path):
    with pytest.raises(InputError, match=r"neither .*models/avg_model\.pt nor .*/avg_model\.pt exists; average"):
        checkpoint.weights_of(tmp_path)
    for path in (tmp_path / "avg_model.pt", tmp_path / "models" / "avg_model.pt"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        assert checkpoint.weights_of(tmp_path) == path


class SmallDisk(io.BytesIO):
    def write(self, data):
        if self.tell() + len(data) > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_that_is_full_within_a_file_is_an_error_of_the_system():
    weights = {"weight": torch.zeros(1000)}
    with pytest.raises(RuntimeError, match="unexpected pos"):  # what torch makes of it
        torch.save(weights, SmallDisk())
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.write(weights, SmallDisk())
