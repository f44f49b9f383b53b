import kaldiio
import numpy as np
import pytest
import torch
from conftest import RATE, ROOT, SMALL, write_wav

from wespeaker.config import load_config
from wespeaker.data.audio import AudioSource, audio_length
from wespeaker.data.manifest import Utterance, read_manifest
from wespeaker.errors import InputError
from wespeaker.eval.embeddings import write_embeddings
from wespeaker.eval.extraction import embed_utterances
from wespeaker.speaker_net import SpeakerNet


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return SpeakerNet(load_config(ROOT / "conf" / "mini_qmargin.yaml", SMALL)).eval()


def embed(net, utterances, **options):
    return embed_utterances(net, utterances, rate=RATE, num_workers=options.get("num_workers", 0))


def utterance(path):
    source = AudioSource(str(path))
    return Utterance(f"s/{path.name}", "s", source, audio_length(source))


def test_files_are_kaldis_sorted_and_complete(net, data_dir, tmp_path):
    utterances = read_manifest(data_dir / "vox1")
    scp = write_embeddings(tmp_path / "e", embed(net, utterances), expected=12)
    loaded = kaldiio.load_scp(str(scp))
    assert list(loaded) == sorted(utt.key for utt in utterances)
    matrix = np.stack(list(loaded.values()))
    assert matrix.shape == (12, 16)
    np.testing.assert_allclose(np.load(tmp_path / "e" / "mean_vec.npy"), matrix.mean(axis=0), atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["mean_vec.npy", "xvector.ark", "xvector.scp"]


def test_means_of_speakers_are_those_of_wespeaker(tmp_path):
    """Of the embeddings as they are, one vector for each speaker, in an ark of its own."""
    rng = np.random.default_rng(0)
    utt2spk = {f"utt{n:02d}": f"spk{n % 3}" for n in range(11)}
    vectors = {utt: rng.standard_normal(5).astype(np.float32) for utt in utt2spk}
    write_embeddings(tmp_path, list(vectors.items())[::-1], expected=11, utt2spk=utt2spk)
    found = kaldiio.load_scp(str(tmp_path / "spk_xvector.scp"))
    assert list(found) == ["spk0", "spk1", "spk2"]
    for spk, mean in found.items():
        assert mean.dtype == np.float32
        of_spk = [vector for utt, vector in vectors.items() if utt2spk[utt] == spk]
        np.testing.assert_allclose(mean, np.mean(of_spk, axis=0, dtype=np.float64), rtol=1e-6)
    write_embeddings(tmp_path, vectors.items(), expected=11)  # those of other embeddings do not stay
    assert not (tmp_path / "spk_xvector.scp").exists()


def test_extraction_is_deterministic_and_of_whole_utterances(net, data_dir):
    """WeSpeaker embeds the training set from one random crop, unseeded."""
    utterances = read_manifest(data_dir / "vox1")
    once, again = (dict(embed(net, utterances, num_workers=n)) for n in (0, 2))
    assert all(np.array_equal(once[key], again[key]) for key in once)
    for utt in utterances[:3]:
        with torch.inference_mode():
            wav = torch.from_numpy(read_whole(utt.source.path))[None]
            np.testing.assert_allclose(once[utt.key], net(wav)[0].numpy(), atol=1e-5)


def read_whole(path):
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


def test_an_embedding_does_not_depend_on_its_neighbours(net, tmp_path):
    rng = np.random.default_rng(0)
    utterances = [utterance(write_wav(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(RATE))) for i in range(5)]
    together = dict(embed(net, utterances))
    for utt in utterances:
        np.testing.assert_allclose(together[utt.key], dict(embed(net, [utt]))[utt.key], atol=1e-5)


def test_another_sample_rate_is_resampled(net, tmp_path):
    time = np.arange(2 * RATE) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 300 * time) + 0.2 * np.sin(2 * np.pi * 900 * time)
    same = utterance(write_wav(tmp_path / "a.wav", tone))
    double = utterance(
        write_wav(tmp_path / "b.wav", np.interp(np.arange(4 * RATE) / 2, np.arange(2 * RATE), tone), 2 * RATE)
    )
    a, b = dict(embed(net, [same, double])).values()
    assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.9


def test_failures_are_listed_and_leave_the_old_files(net, data_dir, tmp_path):
    """WeSpeaker prints "Failed to extract", exits with 0, and scoring dies of it later."""
    good = read_manifest(data_dir / "vox1")
    write_embeddings(tmp_path / "e", embed(net, good), expected=12)
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    short = utterance(write_wav(tmp_path / "short.wav", np.zeros(1000)))
    gone = utterance(write_wav(tmp_path / "gone.wav", np.zeros(RATE)))
    (tmp_path / "gone.wav").unlink()
    with pytest.raises(InputError) as caught:
        write_embeddings(tmp_path / "e", embed(net, [*good, short, gone]), expected=14)
    message = str(caught.value)
    assert "2 of 14 utterances have no embedding" in message
    assert "s/short.wav is too short: 0.062 s, the model needs 0.105 s" in message
    assert "gone.wav does not exist" in message
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}


def test_a_wrong_count_is_an_error(net, data_dir, tmp_path):
    utterances = read_manifest(data_dir / "vox1")
    with pytest.raises(InputError, match=r"13 embeddings were expected .*, 12 came"):
        write_embeddings(tmp_path, embed(net, utterances), expected=13)


def test_an_embedding_that_is_not_finite_is_named(data_dir, net):
    broken = SpeakerNet(load_config(ROOT / "conf" / "mini_qmargin.yaml", SMALL)).eval()
    torch.nn.init.constant_(broken.model.seg_1.bias, float("nan"))
    with pytest.raises(InputError, match=r"12 of 12 utterances have no embedding: .* not finite"):
        list(embed(broken, read_manifest(data_dir / "vox1")))
