"""Every command of the README, in its order, in a fresh copy of the project, on corpora of seconds."""

import re
import shlex
import shutil

import pytest
from conftest import ROOT, SMALL, SMALL_FACES, TINY_FACES, run_command

from wespeaker.losses import PROJECT_TYPES

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line.split("  # ")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
TEST_COMMAND = "bash tools/dev.sh test"

TINY_CORPUS = "--num_train_spk 8 --num_dev_spk 2 --num_test_spk 6 --num_sessions 2 --num_utts 2 --max_sec 2.0"
TOP_N = "2"  # what run.sh takes of the 8 training speakers
SHRINK = " ".join([*SMALL, "dataset_args.num_frms=80", "scheduler_args.warm_up_epoch=0"])
SERVER = "tensorboard --logdir exp"  # does not end
DECIDES = re.compile(r"python -m wespeaker (compare|verify|identify) ")
DECISIONS = {0: "accept", 2: "reject"}  # of compare, verify and identify, by their exit codes
NAMED = {
    "/corpora/voxceleb1": "corpora/mini/voxceleb1",
    "/corpora/voxceleb2": "corpora/mini/voxceleb2",
    "/corpora/speech": "corpora/mini/voxceleb2",
    "/corpora/musan": "corpora/mini/musan",
    "/corpora/RIRS_NOISES": "corpora/mini/RIRS_NOISES",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The files that git would give a user, in a new folder."""
    pytest.importorskip("espeakng_loader", reason="the mini corpus is spoken by espeakng-loader")
    listed = run_command("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def shrunk(command):
    """The command as it stands, with options that make it small appended and the user's folders filled in."""
    command = command.replace("top_n 40", f"top_n {TOP_N}").replace("asnorm40", f"asnorm{TOP_N}")
    words = [NAMED.get(word, word) for word in shlex.split(command)]
    if "--num_test_speakers" in words:
        words[words.index("--num_test_speakers") + 1] = "4"
    if words == ["bash", "examples/face/run.sh"]:
        return [*words, "--face_args", TINY_FACES, "--set", SMALL_FACES]
    if words[:2] != ["bash", "run.sh"]:
        return words
    if "--gpus" in words:
        at = words.index("--gpus")
        words[at : at + 2] = ["--nproc", "1"]
    if "--corpus" not in words:
        words += ["--mini_args", TINY_CORPUS]
    if words[2:4] == ["--stage", "9"]:
        words += [] if "--lm_set" in words else ["--lm_set", ""]
        words[words.index("--lm_set") + 1] += f" {SHRINK} num_avg=1"
    if "--set" in words:
        words[words.index("--set") + 1] += " " + SHRINK
        return words
    return [*words, "--set", SHRINK]


def test_the_readme_commands_run_in_order(checkout):
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        if command in (TEST_COMMAND, SERVER):
            continue  # the first is running this
        done = run_command(*shrunk(command), cwd=checkout)
        expected = set(DECISIONS) if DECIDES.match(command) else {0}
        assert done.returncode in expected, f"{command}\n{done.stdout}\n{done.stderr}"
        if DECIDES.match(command):
            assert DECISIONS[done.returncode] in done.stdout, command
        if "score.py" in command or command == "bash run.sh":
            assert "EER" in done.stdout, command
    scored = (
        "mini_qmargin",
        "mini_qmargin-LM",
        "gap1.0",
        "mini_arcface",
        "longer",
        "resnet34_qmargin",
        "own",
        "own_tuned",
    )
    for name in scored:
        assert (checkout / "exp" / name / "scores" / "results.json").is_file()
    assert (checkout / "exp" / "face" / "mini_qmargin" / "scores" / "results.json").is_file()
    assert (checkout / "exp" / "two" / "embeddings" / "vox1" / "xvector.scp").is_file()


def test_the_readme_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["out"].loss.isfinite()
    assert names["head"].margin == 0.1


def test_the_readme_has_every_project_type_with_its_keys():
    keys_of = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        first, *_, last = line.strip("| ").split("|") if line.startswith("| `") else ("", "")
        for name in re.findall(r"`(\w+)`", first):
            keys_of[name] = set(re.findall(r"`(\w+)`", last))
    common = {"scale", "margin", "form", "screen", "weight_grad"}
    for name, kind in PROJECT_TYPES.items():
        expected = kind.defaults.keys() - common
        assert keys_of[name] == (expected | {"alpha"} if name == "sparsemax" else expected), name


def test_ci_runs_the_test_command_of_the_readme():
    assert TEST_COMMAND in COMMANDS
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text().splitlines()


def test_files_and_options_that_the_readme_names_are_there():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`((?:conf|bench|tools)/\w+\.(?:yaml|py|sh)|requirements\.(?:txt|lock)|run\.sh)`", text):
        assert (ROOT / name).is_file(), name
