import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from wespeaker.config import DatasetArgs, FbankArgs, FilterArgs, SpecAugArgs
from wespeaker.data.audio import AudioSource
from wespeaker.data.augment import Augmenter
from wespeaker.data.bank import BankFile, read_bank
from wespeaker.data.dataset import TrainingSet, collate, read_training_list
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


def batches(dataset, *, rank=0, world_size=1, start_step=0, **loader_args):
    sampler = RunSampler(
        len(dataset), batch_size=5 // world_size, num_epochs=2, seed=1, rank=rank, world_size=world_size,
        start_step=start_step,
    )  # fmt: skip
    return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **loader_args))


def assert_same(batches, others):
    for a, b in zip(batches, others, strict=True):
        assert (a.keys, a.bad) == (b.keys, b.bad)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.wav, b.wav)
        assert torch.equal(a.masks, b.masks)


WITH_MASKS = ARGS.model_copy(update={"spec_aug": True})


def test_a_sample_depends_on_seed_epoch_and_utterance_alone(data_dir):
    """Neither loader processes, nor the kind of list, nor where a run starts changes one bit of a batch."""
    dataset = make_set(data_dir, WITH_MASKS)
    one = batches(dataset)
    assert len(one) == 10  # of 24 utterances twice, in batches of 5
    for num_workers in (1, 2):
        assert_same(one, batches(dataset, num_workers=num_workers))
    assert_same(one, batches(make_set(data_dir, WITH_MASKS, data_type="shard")))
    for start_step in (3, 5, 7):
        assert_same(one[start_step:], batches(dataset, start_step=start_step))
    assert_same(one[7:], batches(dataset, start_step=7, num_workers=2))


def test_the_number_of_processes_changes_no_sample(data_dir):
    dataset = make_set(data_dir, WITH_MASKS)

    def samples(world_size):
        found = [batch for rank in range(world_size) for batch in batches(dataset, rank=rank, world_size=world_size)]
        return {
            (key, label, wav.tobytes(), masks.tobytes())
            for batch in found
            for key, label, wav, masks in zip(
                batch.keys, batch.labels.tolist(), batch.wav.numpy(), batch.masks.numpy(), strict=True
            )
        }

    assert len(samples(1)) == 48
    assert samples(1) == samples(2)


def test_epochs_and_seeds_draw_anew(data_dir):
    dataset, again = make_set(data_dir), make_set(data_dir, seed=8)
    assert not np.array_equal(dataset[1, 0].wav, dataset[2, 0].wav)
    assert not np.array_equal(dataset[1, 0].wav, again[1, 0].wav)


def labels_of(dataset):
    """Return pairs (speaker, label) over some epochs."""
    items = [(epoch, index) for epoch in range(1, 13) for index in range(len(dataset))]
    examples = [dataset[item] for item in items]
    return {(dataset.speakers.index(example.key.split("/")[0]), example.label) for example in examples}


def test_each_speed_is_a_speaker_unless_it_is_not(data_dir):
    dataset = make_set(data_dir)
    assert dataset.num_classes == 18
    assert labels_of(dataset) == {(spk, spk + 6 * speed) for spk in range(6) for speed in range(3)}
    shared = make_set(data_dir, ARGS.model_copy(update={"speed_as_new_speaker": False}))
    assert shared.num_classes == 6
    assert labels_of(shared) == {(spk, spk) for spk in range(6)}
    np.testing.assert_array_equal(shared[1, 3].wav, dataset[1, 3].wav)
    one_speed = make_set(data_dir, ARGS.model_copy(update={"speed_perturb": False}))
    assert one_speed.num_classes == 6


def test_examples_are_as_long_as_the_crop(data_dir):
    dataset = make_set(data_dir)
    for index in range(len(dataset)):
        wav = dataset[1, index].wav
        assert wav.shape == (59 * 160 + 400,)
        assert wav.dtype == np.float32


def test_spec_augment_changes_no_other_draw(data_dir):
    plain = make_set(data_dir)[1, 2]
    masked = make_set(data_dir, WITH_MASKS.model_copy(update={"spec_aug_args": SpecAugArgs(prob=1.0)}))[1, 2]
    assert np.array_equal(plain.wav, masked.wav)
    assert plain.masks.shape == (0, 2)
    assert masked.masks.shape == (2, 2)
    assert (masked.masks[:, 1] > masked.masks[:, 0]).all()


def test_dither_is_gaussian_noise_of_the_asked_level(data_dir):
    silent = ARGS.model_copy(update={"aug_prob": 0.0, "speed_perturb": False, "fbank_args": FbankArgs(dither=0.0)})
    loud = silent.model_copy(update={"fbank_args": FbankArgs(dither=3.0)})
    without, dithered = make_set(data_dir, silent), make_set(data_dir, loud)
    noises = [32768 * (dithered[epoch, 0].wav - without[epoch, 0].wav) for epoch in (1, 2)]
    for noise in noises:
        assert noise.mean() == pytest.approx(0, abs=0.15)
        assert noise.std() == pytest.approx(3, rel=0.05)
        assert np.mean(np.abs(noise) < 3) == pytest.approx(0.683, abs=0.03)  # of a Gaussian, within one deviation
    assert abs(np.corrcoef(*noises)[0, 1]) < 0.05


def test_short_utterances_are_left_out_and_counted(data_dir, caplog):
    args = DatasetArgs(filter_args=FilterArgs(min_num_frames=160))
    with caplog.at_level("INFO"):
        kept = read_training_list(data_dir / "vox2_dev" / "raw.list", "raw", args)
    assert 0 < len(kept) < 24
    assert f"left out {24 - len(kept)} of 24 utterances" in caplog.text
    too_strict = DatasetArgs(filter_args=FilterArgs(min_num_frames=1000))
    with pytest.raises(InputError, match="at least two speakers, 0 are left"):
        read_training_list(data_dir / "vox2_dev" / "raw.list", "raw", too_strict)


def damage(dataset, index, path):
    utterances = list(dataset.utterances)
    utterances[index] = replace(utterances[index], source=AudioSource(str(path)))
    dataset.utterances = make_table(utterances)
    return utterances[index].key


def broken_header(path):
    path.write_bytes(b"RIFF" + b"\0" * 50)


def empty(path):
    soundfile.write(path, np.zeros(0), 16000)


def not_a_number(path):
    soundfile.write(path, np.full(40_000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (broken_header, r"cannot be read as audio"),
        (empty, r"shorter than its entry says|no audio|0 samples"),
        (not_a_number, r"not finite numbers"),
        (None, r"does not exist|cannot be read"),
    ],
)
def test_an_utterance_that_cannot_be_used_is_replaced_and_named(data_dir, tmp_path, make, reason, num_workers):
    dataset = make_set(data_dir)
    path = tmp_path / "bad.wav"
    if make:
        make(path)
    key = damage(dataset, 3, path)
    found = batches(dataset, num_workers=num_workers)
    assert [len(batch.keys) for batch in found] == [len(batch.keys) for batch in batches(make_set(data_dir))]
    assert not any(key in batch.keys for batch in found)
    bad = [utt for batch in found for utt in batch.bad]
    assert [utt for utt, _ in bad] == [key, key]  # once in each of the two epochs
    assert re.search(reason, bad[0][1])
    assert "bad.wav" in bad[0][1]
    assert "\n" not in bad[0][1]
    assert_same(found, batches(dataset))


def test_data_of_which_nothing_can_be_read_is_one_sentence(data_dir, tmp_path):
    dataset = make_set(data_dir)
    for index in range(len(dataset)):
        damage(dataset, index, tmp_path / "gone.wav")
    found = batches(dataset)
    assert all(isinstance(batch, InputError) for batch in found)
    assert re.fullmatch(r"10 utterances in a row cannot be used for training; the last: \S*gone.wav.*", str(found[0]))


def test_a_broken_noise_file_is_not_the_utterances_fault(data_dir, tmp_path):
    dataset = make_set(data_dir, ARGS.model_copy(update={"aug_prob": 1.0, "reverb_share": 0.0}))
    noise = dataset.augmenter.noises[0]
    dataset.augmenter.noises = [BankFile(noise.key, AudioSource(str(tmp_path / "noise.wav")), noise.length)]
    error = dataset[1, 0]
    assert isinstance(error, InputError)
    assert "noise.wav does not exist" in str(error)


@pytest.mark.parametrize(
    ("data_type", "match"),
    [
        ("feat", r"there is no data type 'feat'; .*feat\.list: this is a list of features .*tools/make_raw_list\.py"),
        ("shards", "there is no data type 'shards'; did you mean 'shard'"),
    ],
)
def test_other_kinds_of_lists_are_refused(data_type, match):
    with pytest.raises(InputError, match=match):
        read_training_list(Path("feat.list"), data_type, ARGS)
