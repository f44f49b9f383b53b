"""run.sh from the first stage to the last, on a corpus of seconds."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SMALL, run_command, write_m4a
from torch.nn.functional import normalize

import wespeaker
from wespeaker.deploy.card import Card
from wespeaker.train.checkpoint import load

TINY_CORPUS = "--num_train_spk 10 --num_dev_spk 4 --num_test_spk 6 --num_sessions 2 --num_utts 2 --max_sec 2.5"
SET = " ".join([*SMALL, "dataset_args.num_frms=100", "num_avg=2", "model_args.m_channels=4"])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder for everything that run.sh writes, with the options that keep it there."""
    pytest.importorskip("espeakng_loader", reason="the mini corpus is spoken by espeakng-loader")
    return tmp_path_factory.mktemp("recipe")


def recipe(workplace, *options, name="qmargin", cwd=ROOT, **env):
    return run_command(
        "bash", "run.sh", "--mini_args", TINY_CORPUS, "--corpora", workplace / "corpora", "--data", workplace / "data",
        "--exp_dir", workplace / name, "--set", SET, *options, cwd=cwd, **env,
    )  # fmt: skip


@pytest.fixture(scope="module")
def qmargin(workplace):
    """All stages with the default config; what they printed."""
    done = recipe(workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def check_results(folder):
    results = json.loads((folder / "scores" / "results.json").read_text())
    assert set(results["trials"]) == {"vox1_O_cleaned", "vox1_H_cleaned"}
    for entry in results["trials"].values():
        assert 0 < entry["eer"] < 0.5
        assert set(entry["tar_at_far"]) == {"0.1", "0.01", "0.001"}
    assert (folder / "scores" / "det.png").stat().st_size > 10_000
    return results


def test_all_stages_leave_what_they_promise(qmargin, workplace):
    results = check_results(workplace / "qmargin")
    assert "synthetic mini corpus" in json.dumps(results)
    for part in (
        "corpora/mini/voxceleb1/meta/veri_test2.txt", "data/vox2_dev/wav.scp", "data/vox2_dev/shard.list",
        "data/musan/wav.scp", "data/rirs/wav.scp", "data/vox1/trials/vox1_H_cleaned.kaldi",
        "qmargin/config.yaml", "qmargin/env.json", "qmargin/metrics.jsonl", "qmargin/train.log",
        "qmargin/models/avg_model.pt", "qmargin/embeddings/vox1/xvector.scp",
        "qmargin/embeddings/vox2_dev/mean_vec.npy",
        "qmargin/scores/vox1_O_cleaned.kaldi.score", "qmargin/scores/vox2_dev_asnorm2_vox1_O_cleaned.kaldi.score",
        "qmargin/scores/cali_vox2_dev_asnorm2_vox1_H_cleaned.kaldi.score",
        "qmargin/scores/calibration/vox2_dev_asnorm2.json",
    ):  # fmt: skip
        assert (workplace / part).stat().st_size > 0, part
    for stage in range(8):
        assert f"== stage {stage}:" in qmargin.stdout
    for text in ("EER", "minDCF", "TAR", "target", "nontarget", "det.png", "vox1_O_cleaned", "actDCF", "Cllr"):
        assert text in qmargin.stdout
    last = qmargin.stdout.split("== results of stage 5")[1]
    assert (workplace / "qmargin" / "scores" / "results.txt").read_text() in last


def test_documents_tell_the_version_that_wrote_them(qmargin, workplace):
    scores = workplace / "qmargin" / "scores"
    documents = [*scores.glob("*.json"), *scores.glob("calibration/*.json"), workplace / "qmargin" / "env.json"]
    documents.append(workplace / "corpora" / "mini" / "corpus.json")
    assert len(documents) > 7
    for path in documents:
        assert json.loads(path.read_text())["wespeaker_q"] == wespeaker.__version__, path


@pytest.mark.parametrize("loss", ["cosface"])
def test_other_losses_by_swapping_the_config(qmargin, workplace, loss):
    done = recipe(workplace, "--config", f"conf/mini_{loss}.yaml", "--stage", "3", "--stop_stage", "5", name=loss)
    assert done.returncode == 0, done.stdout + done.stderr
    results = check_results(workplace / loss)
    assert results != json.loads((workplace / "qmargin" / "scores" / "results.json").read_text())


def test_a_repeated_command_gives_the_same_scores(qmargin, workplace):
    scores = workplace / "qmargin" / "scores" / "cali_vox2_dev_asnorm2_vox1_O_cleaned.kaldi.score"
    weights = workplace / "qmargin" / "models" / "model_2.pt"
    before = scores.read_bytes(), weights.stat().st_mtime_ns
    done = recipe(workplace)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert (scores.read_bytes(), weights.stat().st_mtime_ns) == before
    assert (
        done.stdout.split("== stage 5")[1].splitlines()[:-1] == qmargin.stdout.split("== stage 5")[1].splitlines()[:-1]
    )


def test_two_processes_train_by_the_same_script(qmargin, workplace):
    done = recipe(workplace, "--stage", "3", "--stop_stage", "5", "--nproc", "2", name="two")
    assert done.returncode == 0, done.stdout + done.stderr
    check_results(workplace / "two")
    log = (workplace / "two" / "train.log").read_text()
    assert "batch 8 x 2 processes on cpu" in log
    steps = [json.loads(line)["step"] for line in (workplace / "two" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6]  # 40 utterances in steps of 16, 12 and 12


def test_raw_data_and_chosen_trials(qmargin, workplace):
    options = ("--stage", "2", "--stop_stage", "6", "--data_type", "raw", "--trials", "vox1_O_cleaned")
    done = recipe(workplace, *options, "--score_norm_method", "snorm", name="raw")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((workplace / "raw" / "scores" / "results.json").read_text())
    assert set(results["trials"]) == {"vox1_O_cleaned"}
    shards, raw = (np.loadtxt(workplace / name / "scores" / "vox1_O_cleaned.kaldi.score", usecols=2, dtype=float)
                   for name in ("qmargin", "raw"))  # fmt: skip
    np.testing.assert_array_equal(shards, raw)
    assert [path.name for path in (workplace / "raw" / "scores").glob("*norm*.score")] == [
        "vox2_dev_snorm_vox1_O_cleaned.kaldi.score"
    ]


def test_a_cohort_smaller_than_top_n_is_a_sentence(qmargin, workplace):
    done = recipe(workplace, "--stage", "6", "--top_n", "11")
    assert done.returncode == 1
    assert "the cohort has 10 speakers, which is fewer than top_n = 11; give a top_n of at most 10" in done.stderr
    assert not list((workplace / "qmargin" / "scores").glob("*asnorm11*"))


def test_stage_8_exports_the_model_with_the_thresholds_of_stage_5(qmargin, workplace):
    assert "== stage 8" not in qmargin.stdout  # on demand
    done = recipe(workplace, "--stage", "8", "--stop_stage", "8", "--trials", "vox1_O_cleaned")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "thresholds of vox1_O_cleaned: " in done.stdout
    assert "INFO Removed" not in done.stderr  # what the exporter says of itself
    card = Card.read(workplace / "qmargin" / "models" / "card.json")
    thresholds = json.loads((workplace / "qmargin" / "scores" / "threshold.json").read_text())
    assert card.decision.at(0.1).threshold == thresholds["trials"]["vox1_O_cleaned"]["target_far"]["0.1"]["threshold"]
    for name in ("final.onnx", "final_feats.onnx", "final.safetensors"):
        assert (workplace / "qmargin" / "models" / name).stat().st_size > 10_000


def test_voxceleb_folders_with_m4a(qmargin, workplace, tmp_path):
    """The published layouts, as a user has them: m4a for VoxCeleb2, no test part."""
    mini, own = workplace / "corpora" / "mini", tmp_path / "corpora"
    shutil.copytree(mini, own, ignore=shutil.ignore_patterns("voxceleb2", "corpus.json"))
    for wav in sorted((mini / "voxceleb2" / "dev").rglob("*.wav")):
        m4a = own / "voxceleb2" / "dev" / "aac" / wav.parent.parent.name / wav.parent.name / f"{wav.stem}.m4a"
        write_m4a(m4a, *soundfile.read(wav, dtype="int16"))
    options = [
        "--corpus", "voxceleb", "--config", "conf/mini_qmargin.yaml", "--data", tmp_path / "data",
        "--voxceleb1", own / "voxceleb1", "--voxceleb2", own / "voxceleb2", "--far", "1e-1 1e-2",
    ]  # fmt: skip
    done = recipe(workplace, *options, "--musan", own / "musan", name="vox")
    assert done.returncode == 1
    assert "--rirs DIR is not given; it is for the reverberation augmentation" in done.stderr
    assert not (tmp_path / "data").exists()
    done = recipe(workplace, *options, "--musan", own / "musan", "--rirs", own / "RIRS_NOISES", name="vox")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = (tmp_path / "data" / "vox2_dev" / "wav.scp").read_text().splitlines()
    assert len(listed) == 40
    assert all(key.endswith(".wav") and path.endswith(".m4a") for key, path in map(str.split, listed))
    assert "synthetic" not in done.stdout
    assert (workplace / "vox" / "scores" / "cali_vox2_dev_asnorm2_vox1_H_cleaned.kaldi.score").is_file()
    assert "dev_eer 0." in (workplace / "vox" / "train.log").read_text()


def test_large_margin_fine_tuning(qmargin, workplace):
    """The three speeds of ten speakers were thirty classes; ten of them are fine-tuned, and scored."""
    options = ("--set", f"{SET} dataset_args.speed_perturb=true", "--lm_set", f"{SET} num_avg=1")
    stage_9 = (*options, "--stage", "9", "--stop_stage", "9", "--trials", "vox1_O_cleaned", "--far", "1e-1 1e-2 1e-3")
    done = recipe(workplace, *stage_9, name="speeds")
    assert done.returncode == 1
    sentence = "speeds/models/avg_model.pt, the weights to fine-tune, does not exist; run stages 3 and 4 first"
    assert sentence in done.stderr
    assert recipe(workplace, *options, "--stage", "3", "--stop_stage", "4", name="speeds").returncode == 0

    done = recipe(workplace, *stage_9, name="speeds")
    assert done.returncode == 0, done.stdout + done.stderr
    folder, log = workplace / "speeds-LM", (workplace / "speeds-LM" / "train.log").read_text()
    assert "40 utterances of 10 speakers, at 1 speeds" in log
    base, tuned = (load(workplace / name / "models" / "avg_model.pt") for name in ("speeds", "speeds-LM"))
    assert (len(base["projection.weight"]), len(tuned["projection.weight"])) == (30, 10)
    nearest = normalize(tuned["projection.weight"]) @ normalize(base["projection.weight"]).T
    assert nearest.argmax(1).tolist() == list(range(10))  # a few small steps away from where they were
    for stage in (9, 4, 5, 6, 7):
        assert f"== stage {stage}:" in done.stdout
    results = json.loads((folder / "scores" / "results.json").read_text())
    assert list(results["trials"]) == ["vox1_O_cleaned"]
    assert (folder / "scores" / "cali_vox2_dev_asnorm2_vox1_O_cleaned.kaldi.score").is_file()

    again = recipe(workplace, *stage_9, name="speeds")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do" in again.stderr


BAD = {
    "unknown option": (["--stge", "1"], "unknown option --stge"),
    "option without value": (["--stage"], "option --stage needs a value"),
    "stray word": (["3"], "expected --option value, found '3'"),
    "stage that is not there": (["--stop_stage", "12"], "there is no stage 12"),
    "stages the wrong way round": (["--stage", "4", "--stop_stage", "2"], "--stage 4 comes after --stop_stage 2"),
    "stage that is no number": (["--stage", "x"], "--stage must be a whole number, found 'x'"),
    "unknown member format": (["--shard_format", "mp3"], "--shard_format must be wav or flac, found 'mp3'"),
    "unknown corpus": (["--corpus", "timit"], "--corpus must be mini, voxceleb or own, found 'timit'"),
    "missing config": (["--config", "conf/no.yaml"], "conf/no.yaml (the config) does not exist"),
    "unknown key": (["--set", "num_epoch=3"], "num_epoch: unknown key; did you mean 'num_epochs'?"),
    "unknown loss": (["--set", "projection_args.project_type=arcmargin"], "did you mean 'arc_margin'"),
    "wrong type": (["--set", "seed=abc"], "seed: input should be a valid integer"),
    "no processes": (["--nproc", "0"], "--nproc must be a whole number from 1 on, found '0'"),
    "no nodes": (["--num_nodes", "0"], "--num_nodes must be a whole number from 1 on, found '0'"),
    "nodes without a place to meet": (["--num_nodes", "2"], "--num_nodes 2 needs --HOST_NODE_ADDR host:port"),
    "host without port": (["--HOST_NODE_ADDR", "node1"], "--HOST_NODE_ADDR must be host:port with a port up to 65504"),
    "port out of range": (["--HOST_NODE_ADDR", "node1:65530"], "must be host:port with a port up to 65504"),
    "host that is no name": (["--HOST_NODE_ADDR", "a b:29400"], "must be host:port with a port up to 65504"),
    "GPUs that are no numbers": (["--gpus", "[a]"], "--gpus must be numbers such as \"[0,1]\", found '[a]'"),
    "folders for the mini corpus": (["--musan", "/x"], "folders of corpora go with --corpus voxceleb"),
    "no corpora": (["--corpus", "voxceleb"], "--voxceleb2 DIR is not given; it is for the training speech"),
    "a GPU where there is none": (["--stage", "3", "--gpus", "[9]"], "a GPU is asked for but torch sees none"),
    "stage before its input": (["--stage", "3"], "does not exist; run the stage that makes it first"),
    "scores before their input": (["--stage", "6"], "spk2utt does not exist; run stage 1 first"),
    "calibration before its input": (["--stage", "7"], "spk2utt does not exist; run stage 1 first"),
    "export before its input": (["--stage", "8", "--stop_stage", "8"], "is not a run folder (it has no config.yaml)"),
    "unknown normalisation": (["--score_norm_method", "znorm"], "--score_norm_method must be asnorm or snorm"),
    "top_n that is no number": (["--top_n", "all"], "--top_n must be a whole number, found 'all'"),
    "unknown trial list": (["--stage", "5"], "does not exist"),
    "fine-tuning of no run": (["--stage", "9", "--stop_stage", "9"], "does not exist; run stages 3 and 4 first"),
    "fine-tuning without a config": (
        ["--stop_stage", "9", "--config", "conf/mini_sparsemax.yaml"],
        "there is no conf/mini_lm_sparsemax.yaml for stage 9; give --lm_config",
    ),
    "fine-tuning with a mistake": (["--stop_stage", "9", "--lm_set", "num_epoch=2"], "did you mean 'num_epochs'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence_and_exit_code_1(case, tmp_path):
    options, sentence = BAD[case]
    places = ("--corpora", tmp_path / "c", "--data", tmp_path / "d", "--exp_dir", tmp_path / "e")
    done = run_command("bash", "run.sh", *places, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*"))


def test_help_lists_every_option():
    done = run_command("bash", "run.sh", "--help")
    assert done.returncode == 0
    for option in ("--stage", "--config", "--voxceleb1", "--gpus", "--set"):
        assert option in done.stdout
