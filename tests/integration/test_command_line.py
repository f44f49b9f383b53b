"""``python -m wespeaker`` as its users meet it: every command, its exit codes, and its sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import RATE, run_command, voice, write_m4a, write_wav
from tiny_models import DIM, decision, tiny_card, write_onnx, write_run

from wespeaker.cli import CONSENT, main
from wespeaker.data.trials import Trials
from wespeaker.deploy.embedder import load_embedder
from wespeaker.eval.embeddings import load_embeddings
from wespeaker.eval.scoring import cosine_scores

PITCHES = {"anna": 95, "berta": 150, "carla": 240}


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Call the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["wespeaker-q"])
    monkeypatch.delenv("WESPEAKER_Q_MODEL", raising=False)

    def call(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of each of three voices, and one that is doubtful."""
    folder, rng = tmp_path_factory.mktemp("wavs"), np.random.default_rng(0)
    for name, pitch in PITCHES.items():
        for i in (1, 2, 3):
            write_wav(folder / f"{name}{i}.wav", voice(rng, pitch, 1.5))
    write_wav(folder / "anna-phone.wav", voice(rng, 2 * PITCHES["anna"], 0.8), 8000)
    write_m4a(folder / "anna.m4a", voice(rng, PITCHES["anna"], 1.5))
    write_wav(folder / "silence.wav", np.zeros(RATE))
    write_wav(folder / "short.wav", voice(rng, 100, 0.02))
    return folder


@pytest.fixture(scope="module")
def models(wavs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder and an ONNX file, whose cards have the mean of some voices and thresholds between theirs."""
    folder = tmp_path_factory.mktemp("models")
    write_run(folder / "run")
    write_onnx(folder / "bare.onnx", tiny_card())
    for source, write in (
        (write_run(folder / "bare"), lambda card: card.write(folder / "run" / "models" / "card.json")),
        (folder / "bare.onnx", lambda card: write_onnx(folder / "final.onnx", card)),
    ):
        embedder = load_embedder(source)
        names = [f"{name}{i}.wav" for name in PITCHES for i in (1, 2, 3)]
        embeddings = np.stack([embedder.embed(embedder.read(str(wavs / name)).wav) for name in names])
        mean = embeddings.mean(axis=0).astype(np.float64)
        trials = Trials(names, np.array([0, 0]), np.array([1, 3]), np.array([True, False]))
        same, other = cosine_scores(trials, names, embeddings, mean_vec=mean)
        assert same > other
        between = decision(**{"0.01": (same + other) / 2, "0.1": -1.0, "0.001": same + 0.0001, "1e-05": 1.1})
        write(embedder.card.model_copy(update={"mean_vec": tuple(mean.tolist()), "decision": between}))
    return folder


@pytest.fixture(params=["run", "final.onnx"])
def model(request: pytest.FixtureRequest, models: Path) -> Path:
    return models / request.param


def test_two_recordings_are_compared(cli: Cli, model: Path, wavs: Path):
    done = cli("compare", "--model", model, "--far", "0.01", wavs / "anna1.wav", wavs / "anna2.wav")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("score     0.")
    assert "decision  accept   the score reaches" in done.out
    assert "of 10,000 trials of different speakers, 100 were accepted (95 %: 0.5–2 %; at most 2 %" in done.out
    done = cli("compare", "--model", model, "--far", "0.01", wavs / "anna1.wav", wavs / "berta1.wav")
    assert done.code == 2
    assert "decision  reject   the score is below" in done.out


def test_the_score_is_that_of_stage_5(cli: Cli, model: Path, wavs: Path, tmp_path: Path):
    files = [str(wavs / f"{name}{i}.wav") for name in PITCHES for i in (1, 2)]
    assert cli("embed", "--model", model, "--output", tmp_path / "xvectors", *files).code == 0
    utts, embeddings = load_embeddings(tmp_path / "xvectors" / "xvector.scp")
    trials = Trials(utts, np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    expected = cosine_scores(trials, utts, embeddings, mean_vec=load_embedder(model).card.mean_vec)
    for test, score in zip(utts[1:3], expected, strict=True):
        found = cli("compare", "--model", model, "--json", utts[0], test).json
        assert found["score"] == pytest.approx(score, abs=1e-6)


def test_json_says_all(cli: Cli, model: Path, wavs: Path):
    found = cli("compare", "--model", model, "--json", wavs / "anna1.wav", wavs / "anna-phone.wav")
    assert found.err == ""
    values = found.json
    assert values["score_kind"] == "cosine after mean subtraction"
    assert values["far"] == 0.001  # the lowest that 10,000 trials show: that of 1e-05 is not the default
    assert values["decision"] == {0: "accept", 2: "reject"}[found.code]
    assert values["measured"]["trials"] == "vox1_O_cleaned"
    assert values["llr"] == pytest.approx(20 * values["score"] - 8)
    assert values["fingerprint"] == load_embedder(model).card.fingerprint
    first, second = values["files"]
    assert (first["warnings"], len(second["warnings"])) == ([], 1)
    assert second["seconds"] == pytest.approx(1.6)


def test_rates_that_were_not_measured_are_errors(cli: Cli, model: Path, wavs: Path):
    pair = (wavs / "anna1.wav", wavs / "anna2.wav")
    done = cli("compare", "--model", model, "--far", "0.5", *pair)
    assert (done.code, done.out) == (1, "")
    assert "no threshold was measured for FAR 0.5 on vox1_O_cleaned, there are 0.01, 0.1, 0.001" in done.err
    done = cli("compare", "--model", model, "--far", "1e-5", *pair)
    assert done.code == 1
    assert "the 10,000 nontarget trials of vox1_O_cleaned are too few to show FAR 1e-05" in done.err


@pytest.mark.parametrize("bare", ["bare", "bare.onnx"])
def test_a_model_without_thresholds_gives_a_score_and_no_decision(cli: Cli, models: Path, wavs: Path, bare: str):
    done = cli("compare", "--model", models / bare, wavs / "anna1.wav", wavs / "berta1.wav")
    assert (done.code, done.err) == (3, "")
    score, decided = done.out.splitlines()
    assert score.endswith("cosine")
    assert decided.startswith("decision  none     no threshold was measured for this model; score trials with --target")


def test_doubtful_recordings_are_warned_of(cli: Cli, model: Path, wavs: Path):
    done = cli("compare", "--model", model, wavs / "anna1.wav", wavs / "anna-phone.wav")
    assert done.err.startswith("wespeaker-q: warning: ")
    assert "anna-phone.wav has 8,000 samples a second" in done.err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("silence", "is silent: all of its samples are equal"),
        ("short", "is too short: 0.020 s"),
        ("x", "does not exist"),
    ],
)
def test_recordings_that_cannot_be_used(cli: Cli, models: Path, wavs: Path, name: str, sentence: str):
    done = cli("compare", "--model", models / "final.onnx", wavs / "anna1.wav", wavs / f"{name}.wav")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("wespeaker-q: error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_the_model_may_come_from_the_environment(cli: Cli, models: Path, wavs: Path, monkeypatch: pytest.MonkeyPatch):
    pair = (wavs / "anna1.wav", wavs / "anna2.wav")
    done = cli("compare", *pair)
    assert (done.code, done.err) == (
        1, "wespeaker-q: error: no model is named; give --model or set WESPEAKER_Q_MODEL\n"
    )  # fmt: skip
    monkeypatch.setenv("WESPEAKER_Q_MODEL", str(models / "final.onnx"))
    assert cli("compare", "--far", "0.1", *pair).code == 0


def test_embeddings_as_text_json_and_array(cli: Cli, model: Path, wavs: Path, tmp_path: Path):
    files = [wavs / "anna1.wav", wavs / "anna.m4a"]
    assert cli("embed", "--model", model, "--output", tmp_path / "x.npy", *files).code == 0
    array = np.load(tmp_path / "x.npy")
    assert (array.shape, array.dtype) == ((2, DIM), np.float32)
    values = cli("embed", "--model", model, "--json", *files).json["embeddings"]
    lines = cli("embed", "--model", model, *files).out.splitlines()
    for file, row, line in zip(files, array, lines, strict=True):
        np.testing.assert_array_equal(np.array(values[str(file)], np.float32), row)
        key, numbers = line.split("  ")
        assert key == str(file)
        np.testing.assert_array_equal(np.array(numbers.strip("[] ").split(), np.float32), row)


def test_names_that_kaldi_cannot_have(cli: Cli, models: Path, wavs: Path, tmp_path: Path):
    onnx, spaced = models / "final.onnx", tmp_path / "a b.wav"
    spaced.write_bytes((wavs / "anna1.wav").read_bytes())
    assert "in Kaldi's formats no key has a space" in cli("embed", "--model", onnx, spaced).err
    assert cli("embed", "--model", onnx, "--output", tmp_path / "x.npy", spaced).code == 0
    assert "is given more than once" in cli("embed", "--model", onnx, wavs / "anna1.wav", wavs / "anna1.wav").err


def test_people_are_enrolled_verified_identified_and_forgotten(cli: Cli, model: Path, wavs: Path, tmp_path: Path):
    store = tmp_path / "people.sqlite"
    of_model, of_store = ("--model", model), ("--store", store)
    done = cli("enroll", *of_model, *of_store, "anna", wavs / "anna1.wav")
    assert (done.code, done.err) == (0, "")
    assert f"{store} is new. {CONSENT}" in done.out
    done = cli("enroll", *of_model, *of_store, "berta", wavs / "berta1.wav", wavs / "berta2.wav")
    assert done.out == f"berta is enrolled in {store} with 2 files, 3.0 s\n"
    assert "'anna' is enrolled" in cli("enroll", *of_model, *of_store, "anna", wavs / "anna2.wav").err
    assert cli("enroll", *of_model, *of_store, "--replace", "anna", wavs / "anna2.wav").code == 0

    assert cli("verify", *of_model, *of_store, "--far", "0.01", "anna", wavs / "anna3.wav").code == 0
    done = cli("verify", *of_model, *of_store, "--far", "0.01", "berta", wavs / "anna3.wav")
    assert done.code == 2
    assert "one file on each side; of 2 enrolled files, as here, it may differ" in done.out
    found = cli("verify", *of_model, *of_store, "--json", "anna", wavs / "anna3.wav").json
    compared = cli("compare", *of_model, "--json", wavs / "anna2.wav", wavs / "anna3.wav").json
    assert found["score"] == pytest.approx(compared["score"], abs=1e-6)
    assert (found["person"]["name"], found["person"]["num_files"]) == ("anna", 1)
    assert "did you mean 'anna'?" in cli("verify", *of_model, *of_store, "ana", wavs / "anna3.wav").err

    done = cli("identify", *of_model, *of_store, "--far", "0.01", "--top", "1", wavs / "anna3.wav")
    assert done.code == 0
    assert done.out.splitlines()[1].startswith("anna ")
    assert "\nberta " not in done.out
    assert "with 2 enrolled a stranger is accepted as one of them in up to 2 × 1 % = 2 % of the cases" in done.out
    found = cli("identify", *of_model, *of_store, "--json", wavs / "berta3.wav").json
    assert [one["name"] for one in found["candidates"]] == ["berta", "anna"]
    assert (found["num_people"], found["false_accept_bound"]) == (2, 0.002)

    done = cli("people", *of_store)
    assert [line.split()[0] for line in done.out.splitlines()] == ["name", "anna", "berta"]
    assert "voiceprint" not in cli("people", "--json", *of_store).out
    assert cli("forget", *of_store, "anna").out.startswith(f"anna is deleted from {store}")
    assert b"anna" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert [one["name"] for one in cli("people", "--json", *of_store).json["people"]] == ["berta"]
    assert "'anna' is not enrolled" in cli("forget", *of_store, "anna").err
    assert cli("forget", *of_store, "berta").code == 0
    assert cli("people", *of_store).out == f"nobody is enrolled in {store}\n"
    assert "nobody is enrolled in" in cli("identify", *of_model, *of_store, wavs / "anna3.wav").err


def test_a_store_of_another_model_is_refused(cli: Cli, models: Path, wavs: Path, tmp_path: Path):
    store = ("--store", tmp_path / "people.sqlite")
    assert cli("enroll", "--model", models / "run", *store, "anna", wavs / "anna1.wav").code == 0
    for command in (["verify", "anna"], ["identify"], ["enroll", "berta"]):
        done = cli(*command, "--model", models / "final.onnx", *store, wavs / "anna2.wav")
        assert (done.code, done.out) == (1, "")
        assert "was made with another model (ResNet10 " in done.err


def test_what_fails_leaves_no_store(cli: Cli, models: Path, wavs: Path, tmp_path: Path):
    store = tmp_path / "people.sqlite"
    for name, file in (("anna", "silence.wav"), ("an\nna", "anna1.wav")):
        assert cli("enroll", "--model", models / "final.onnx", "--store", store, name, wavs / file).code == 1
    done = cli("verify", "--model", models / "final.onnx", "--store", store, "anna", wavs / "anna1.wav")
    assert "does not exist; enrol somebody first" in done.err
    assert not store.exists()


def test_a_card_of_other_weights_is_refused(cli: Cli, models: Path, wavs: Path, tmp_path: Path):
    run = write_run(tmp_path / "run", seed=1)
    (run / "models" / "card.json").write_bytes((models / "run" / "models" / "card.json").read_bytes())
    done = cli("compare", "--model", run, wavs / "anna1.wav", wavs / "anna2.wav")
    assert done.code == 1
    assert "card.json is of other weights than those of" in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "--colour", "a", "b"], "unrecognized arguments: --colour"),
        (["compare", "a"], "the following arguments are required: B"),
        (["compere"], "invalid choice: 'compere'"),
        (["people"], "the following arguments are required: --store"),
        (["compare", "--model", "none.onnx", "a", "b"], "none.onnx (a model) does not exist"),
        (["compare", "--model", "tests", "a", "b"], "tests is not a run folder"),
        (["compare", "--model", "README.md", "a", "b"], "README.md cannot be read as an ONNX model"),
        (["identify", "--top", "0", "--store", "x", "a"], "--top must be at least 1, found 0"),
    ],
)
def test_misuse_exits_with_1(cli: Cli, arguments: list[str], sentence: str):
    done = cli(*arguments)
    assert (done.code, done.out) == (1, "")
    assert sentence in done.err


def test_a_model_with_another_interface_is_refused(cli: Cli, wavs: Path, tmp_path: Path):
    write_onnx(tmp_path / "a.onnx", tiny_card(), input_name="feats")
    done = cli("compare", "--model", tmp_path / "a.onnx", wavs / "anna1.wav", wavs / "anna2.wav")
    assert "from feats to embs and has a card); name the final.onnx of an export" in done.err


def test_a_run_folder_and_its_onnx_file_decide_alike(cli: Cli, wavs: Path, tmp_path: Path):
    import onnx

    from wespeaker.deploy.export import export

    run = write_run(tmp_path / "run")
    card = export(run).card
    names = [str(wavs / f"{name}{i}.wav") for name in PITCHES for i in (1, 2, 3)]
    embedder = load_embedder(run)
    mean = np.mean([embedder.embed(embedder.read(name).wav) for name in names], axis=0).astype(np.float64)
    card = card.model_copy(update={"mean_vec": tuple(mean.tolist()), "decision": decision(**{"0.01": 0.5})})
    card.write(run / "models" / "card.json")
    model = onnx.load(run / "models" / "final.onnx")
    onnx.helper.set_model_props(model, {"card": card.model_dump_json()})
    onnx.save(model, tmp_path / "final.onnx")
    decisions = set()
    for test in [*names[1:], str(wavs / "anna-phone.wav"), str(wavs / "anna.m4a")]:
        by_torch, by_onnx = (
            cli("compare", "--model", one, "--json", names[0], test) for one in (run, tmp_path / "final.onnx")
        )
        assert by_onnx.json["score"] == pytest.approx(by_torch.json["score"], abs=1e-4)
        assert by_onnx.json["decision"] == by_torch.json["decision"]
        assert by_onnx.code == by_torch.code
        decisions.add(by_onnx.code)
    assert decisions == {0, 2}


@pytest.mark.parametrize("file", ["anna-phone.wav", "anna.m4a"])
def test_an_onnx_file_needs_no_torch(models: Path, wavs: Path, file: str, tmp_path: Path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch is imported')")
    done = run_command(
        sys.executable, "-m", "wespeaker", "compare", "--model", models / "final.onnx", "--far", "0.1",
        wavs / "anna1.wav", wavs / file, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert (done.returncode, done.stdout[:5]) == (0, "score"), done.stderr


def test_it_is_called_as_a_module():
    done = run_command(sys.executable, "-m", "wespeaker", "compare", "a")
    assert done.returncode == 1
    assert done.stderr == (
        "python -m wespeaker compare: error: the following arguments are required: B; "
        "see python -m wespeaker compare --help\n"
    )
