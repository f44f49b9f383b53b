"""The two forms of a bank: the same files, the same draws, the same samples."""

import io
import pickle

import numpy as np
import pytest
import soundfile
from conftest import RATE
from test_augment import noise_like
from test_lmdb import write_database

from wespeaker.data.audio import read_audio
from wespeaker.data.augment import Augmenter
from wespeaker.data.bank import read_bank
from wespeaker.data.randomness import generator
from wespeaker.errors import InputError


def wav(samples, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, **{"format": "WAV", "subtype": "PCM_16", **options})
    return file.getvalue()


NOISES = {
    "noise/a/noise-1.wav": wav(noise_like(0.1, 9000, 1)),
    "noise/a/noise-0.wav": wav(noise_like(0.1, 18_000, 2)),
    "music/a/music.wav": wav(noise_like(0.1, 40_000, 6)),
    "speech/b/speech.wav": wav(noise_like(0.1, 700, 9)),
    "speech/b/stereo.wav": wav(np.stack([noise_like(0.1, 50_000, n) for n in (3, 4)], axis=1)),
    "babble.wav": wav(noise_like(0.1, 30_000, 5), format="FLAC"),
}
ROOMS = {f"simulated_rirs/r/{n}.wav": wav(np.eye(1, 40 + n)[0]) for n in range(9)}


def as_scp(folder, files):
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    (folder / "wav.scp").write_text("".join(f"{key} {folder / key}\n" for key in files))
    return folder / "wav.scp"


def as_lmdb(folder, files):
    """Write the files and WeSpeaker's list of them, ``__keys__``, whose pickle must not be touched."""
    values = {key.encode(): data for key, data in files.items()}
    write_database(folder / "lmdb", {**values, b"__keys__": pickle.dumps(list(files))}, at_a_time=3)
    return folder / "lmdb"


def test_bank_kinds(data_dir):
    kinds = sorted(file.key.split("/")[0] for file in read_bank(data_dir / "musan" / "wav.scp"))
    assert kinds == ["music", "noise", "speech"]
    assert all(file.length[1] == RATE for file in read_bank(data_dir / "rirs" / "wav.scp"))


def test_the_files_of_both_forms_are_the_same(tmp_path):
    scp, database = (sorted(read_bank(form(tmp_path, NOISES)), key=lambda file: file.key) for form in (as_scp, as_lmdb))
    assert [(file.key, file.length) for file in database] == [(file.key, file.length) for file in scp]
    for one, other in zip(scp, database, strict=True):
        np.testing.assert_array_equal(read_audio(one.source, 100, 300), read_audio(other.source, 100, 300))


def test_augmentation_with_both_forms_is_the_same(tmp_path):
    """Every draw, every sample."""
    augmenters = []
    for form in (as_scp, as_lmdb):
        noises, rooms = (read_bank(form(tmp_path / name, files)) for name, files in (("n", NOISES), ("r", ROOMS)))
        augmenters.append(Augmenter(noises, rooms, aug_prob=0.9, reverb_share=0.5, rate=RATE))
    speech = noise_like(0.1, 8000, 7)
    for number in range(60):
        one, other = (augment(speech, generator("both forms", number)) for augment in augmenters)
        np.testing.assert_array_equal(one, other)


def test_a_crop_of_a_value_reads_its_own_bytes_only(tmp_path):
    """A hundred seconds of noise, of which 0.1 s are read: the rest may be anything."""
    path = as_lmdb(tmp_path, {"noise/long.wav": wav(noise_like(0.1, 100 * RATE))})
    (file,) = read_bank(path)
    expected = read_audio(file.source, 50 * RATE, 1600)
    data = bytearray((path / "data.mdb").read_bytes())
    start = file.source.offset + 44 + 2 * 50 * RATE
    data[:start] = bytes(start)
    data[start + 3200 :] = bytes(len(data) - start - 3200)
    (path / "data.mdb").write_bytes(data)
    np.testing.assert_array_equal(read_audio(file.source, 50 * RATE, 1600), expected)


@pytest.mark.parametrize("form", [as_scp, as_lmdb])
def test_a_bad_file_is_named_by_its_key(tmp_path, form):
    with pytest.raises(InputError, match=r"music/x/bad\.wav: .* cannot be read as audio"):
        read_bank(form(tmp_path, {**NOISES, "music/x/bad.wav": b"RIFF is not enough"}))
    quiet = read_bank(form(tmp_path / "r", {"simulated_rirs/silent.wav": wav(np.zeros(90))}))
    augment = Augmenter((), quiet, aug_prob=1.0, reverb_share=1.0, rate=RATE)
    with pytest.raises(InputError, match=r"simulated_rirs/silent\.wav \(of the room bank\): .* is silent"):
        augment(noise_like(0.1), generator("silent"))


def test_a_folder_that_is_no_database(tmp_path):
    with pytest.raises(InputError, match=r"holds no data\.mdb; give a wav\.scp, or the folder of an LMDB database"):
        read_bank(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"data\.mdb is no LMDB database of audio files, or is damaged \(no head"):
        read_bank(tmp_path)
