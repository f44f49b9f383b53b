from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wespeaker.config import DatasetArgs, FilterArgs
from wespeaker.data.audio import AudioSource
from wespeaker.data.augment import Augmenter
from wespeaker.data.dataset import TrainingSet, collate, read_training_list
from wespeaker.data.manifest import read_bank
from wespeaker.data.sampler import RunSampler
from wespeaker.data.utterances import make_table
from wespeaker.errors import InputError

ARGS = DatasetArgs(num_frms=60, filter_args=FilterArgs(min_num_frames=50))


def make_set(data_dir, args=ARGS, data_type="raw", seed=7):
    utterances = read_training_list(data_dir / "vox2_dev" / f"{data_type}.list", data_type, args)
    augmenter = Augmenter(
        noises=read_bank(data_dir / "musan" / "wav.scp"),
        rirs=read_bank(data_dir / "rirs" / "wav.scp"),
        aug_prob=args.aug_prob,
        reverb_share=args.reverb_share,
        rate=args.resample_rate,
    )
    return TrainingSet(utterances, args, augmenter, seed=seed)


def batches(dataset, **loader_args):
    sampler = RunSampler(len(dataset), batch_size=6, num_epochs=2, seed=1)
    return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **loader_args))


def test_a_sample_depends_on_seed_epoch_and_utterance_alone(data_dir):
    """Neither the number of loader processes nor the kind of list changes one bit of a batch."""
    one = batches(make_set(data_dir))
    for other in (batches(make_set(data_dir), num_workers=2), batches(make_set(data_dir, data_type="shard"))):
        for a, b in zip(one, other, strict=True):
            assert a.keys == b.keys
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.wav, b.wav)


def test_epochs_and_seeds_draw_anew(data_dir):
    dataset, again = make_set(data_dir), make_set(data_dir, seed=8)
    assert not np.array_equal(dataset[1, 0][0], dataset[2, 0][0])
    assert not np.array_equal(dataset[1, 0][0], again[1, 0][0])


def test_crop_length_and_labels(data_dir):
    dataset = make_set(data_dir)
    assert dataset.num_classes == 18
    seen = set()
    for epoch in range(1, 13):
        for index in range(len(dataset)):
            wav, label, key = dataset[epoch, index]
            assert wav.shape == (59 * 160 + 400,)
            assert wav.dtype == np.float32
            assert label % 6 == dataset.speakers.index(key.split("/")[0])
            seen.add(label // 6)
    assert seen == {0, 1, 2}
    slow = make_set(data_dir, ARGS.model_copy(update={"speed_perturb": False}))
    assert slow.num_classes == 6


def test_short_utterances_are_left_out_and_counted(data_dir, caplog):
    args = DatasetArgs(filter_args=FilterArgs(min_num_frames=160))
    with caplog.at_level("INFO"):
        kept = read_training_list(data_dir / "vox2_dev" / "raw.list", "raw", args)
    assert 0 < len(kept) < 24
    assert f"left out {24 - len(kept)} of 24 utterances" in caplog.text
    too_strict = DatasetArgs(filter_args=FilterArgs(min_num_frames=1000))
    with pytest.raises(InputError, match="at least two speakers, 0 are left"):
        read_training_list(data_dir / "vox2_dev" / "raw.list", "raw", too_strict)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_one_sentence_through_the_loader(data_dir, tmp_path, num_workers):
    dataset = make_set(data_dir)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + b"\0" * 50)
    utterances = list(dataset.utterances)
    utterances[3] = replace(utterances[3], source=AudioSource(str(broken)))
    dataset.utterances = make_table(utterances)
    errors = [batch for batch in batches(dataset, num_workers=num_workers) if isinstance(batch, InputError)]
    assert len(errors) == 2
    assert "broken.wav cannot be read as audio" in str(errors[0])
    assert "\n" not in str(errors[0])
