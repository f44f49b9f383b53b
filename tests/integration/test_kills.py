"""A run that is killed anywhere, or finds no room on the disk, ends as an undisturbed one when it is called again."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL
from killing import NEVER, ROOMY, Ended, Moment, WarmTools, can_mount

from wespeaker.train.resume import saved_steps

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are watched as Linux allows it")

SEED = 1
TIMES = ("samples_per_sec", "data_wait")  # of metrics.jsonl
NOT_COMPARED = ("env.json", "train.log", ".lock")  # they tell of each start
KILLS = {  # of each stage, at least
    "manifests": 2, "shards": 3, "training": 6, "averaging": 1, "extraction": 3, "scoring": 2, "normalisation": 2,
    "calibration": 1,
}  # fmt: skip


class Recipe:
    """The stages of run.sh, in one folder, a disk of its own where that is allowed.

    Copies of the folder lie beside it: what it was before each stage of an undisturbed run, and at the end.
    """

    def __init__(self, corpora: Path, root: Path) -> None:
        place, self.copies = root / "place", root / "copies"
        self.commands = commands(corpora, place)
        place.mkdir()
        self.own_disk = can_mount(place)
        self.tools = WarmTools(place, root, own_disk=self.own_disk)
        self.place = self.tools.seen_from_here if self.own_disk else place
        self.undisturbed: dict[str, Ended] = {}
        self.used: dict[str, int] = {}  # bytes of the disk, before each stage
        for stage in self.commands:
            shutil.copytree(self.place, self.copies / stage)
            self.used[stage] = shutil.disk_usage(self.place).used
            self.undisturbed[stage] = self.call(stage)
            assert self.undisturbed[stage].status == 0, self.undisturbed[stage].output
        shutil.copytree(self.place, self.copies / "end")
        self.used["end"] = shutil.disk_usage(self.place).used

    def call(self, stage: str, *more: object, moment: Moment = NEVER, at_once: int = 1) -> Ended:
        """Run the tool of a stage, with more options."""
        tool, *options = self.commands[stage]
        return self.tools.run(str(tool), *options, *more, moment=moment, at_once=at_once)

    def after(self, stage: str) -> str:
        stages = [*self.commands, "end"]
        return stages[stages.index(stage) + 1]

    def bring_back(self, stage: str) -> None:
        """Make the folder what it was before a stage."""
        for path in self.place.iterdir():
            shutil.rmtree(path)
        shutil.copytree(self.copies / stage, self.place, dirs_exist_ok=True)

    def differences(self, stage: str) -> list[str]:
        """Compare the folder, byte for byte, with what an undisturbed run left after a stage."""
        have, want = contents(self.place), contents(self.copies / self.after(stage))
        return sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))


def commands(corpora: Path, place: Path) -> dict[str, tuple[object, ...]]:
    """Return tool and options of each stage."""
    data, run = place / "data", place / "run"
    train, dev, test, scores = data / "vox2_dev", data / "vox2_test", data / "vox1", run / "scores"
    cosines = scores / "vox1_O_cleaned.kaldi.score"
    embeddings = ("--embeddings", run / "embeddings/vox1/xvector.scp")
    mean = ("--mean_vec", run / "embeddings/vox2_dev/mean_vec.npy")
    cohort = (
        "--cohort", run / "embeddings/vox2_dev/xvector.scp", "--cohort_utt2spk", train / "utt2spk", *mean,
        "--top_n", 3,
    )  # fmt: skip
    table = ("--output_dir", scores, "--utt2spk", test / "utt2spk", "--far", "1e-1", "--replicates", 100)
    return {
        "manifests": (
            "prepare_voxceleb", "--voxceleb1", corpora / "voxceleb1", "--voxceleb2", corpora / "voxceleb2",
            "--musan", corpora / "musan", "--rirs", corpora / "RIRS_NOISES", "--output_dir", data, "--nj", 1,
        ),
        "shards": ("make_shards", "--data_dir", train, "--utts_per_shard", 10, "--nj", 1),
        "training": (
            "train", "--config", ROOT / "conf/mini_qmargin.yaml", "--train_data", train / "shard.list",
            "--noise_data", data / "musan/wav.scp", "--reverb_data", data / "rirs/wav.scp",
            "--dev_data", dev, "--dev_trials", dev / "dev.kaldi", "--device", "cpu",
            "--set", *SMALL, "num_epochs=3", "num_avg=2", f"exp_dir={run}",
        ),
        "averaging": ("average_model", "--exp_dir", run, "--num_avg", 2),
        "extraction": ("extract", "--exp_dir", run, "--data_dir", train, test, "--device", "cpu"),
        "scoring": (
            "score", *embeddings, "--trials", test / "trials/vox1_O_cleaned.kaldi", "--target_far", "1e-1",
            *mean, *table,
        ),
        "normalisation": ("score_norm", "--scores", cosines, *embeddings, *cohort, *table),
        "calibration": (
            "calibrate", "--scores", cosines.with_name(f"vox2_dev_asnorm3_{cosines.name}"),
            "--utt2dur", test / "utt2dur", "--data_dir", train, *cohort, "--target_far", "1e-1", *table,
        ),
    }  # fmt: skip


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of all files, without times, and None for folders."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else None
        if path.name in NOT_COMPARED:
            data = b""
        elif path.parent.name.startswith("step_"):  # a checkpoint; equal numbers may be pickled in two ways
            data = b"" if path.suffix == ".json" else spelled_out(torch.load(path, weights_only=True))
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            data = json.dumps([{key: row[key] for key in row.keys() - TIMES} for row in rows], sort_keys=True).encode()
        found[str(path.relative_to(folder))] = data
    return found


def spelled_out(value: Any) -> bytes:
    """Return all that nested dicts hold."""
    if isinstance(value, dict):
        return b"".join(repr(key).encode() + spelled_out(value[key]) for key in value)
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()


@pytest.fixture(scope="module")
def recipe(corpora_dir, tmp_path_factory):
    recipe = Recipe(corpora_dir, tmp_path_factory.mktemp("kills"))
    yield recipe
    recipe.tools.close()


@pytest.fixture
def disk(recipe):
    """The recipe on a disk that can be made small or read-only."""
    if not recipe.own_disk:
        pytest.skip("mounting a tmpfs is not allowed here (unshare --map-root-user --mount)")
    yield recipe
    recipe.tools.remount(ROOMY)


def some_moment(rng: random.Random, undisturbed: Ended) -> Moment:
    """Draw a change of a file, some bytes of one that is written, or a time."""
    changes = undisturbed.changes
    kind = rng.choice(("change", "bytes", "time"))
    if kind == "time":
        return Moment(seconds=rng.uniform(0.0, undisturbed.seconds))
    if kind == "change":
        return Moment(rng.randrange(len(changes)))
    return Moment(rng.choice([i for i, (event, _) in enumerate(changes) if event == "open"]), rng.randrange(1, 2000))


def survive(recipe: Recipe, stage: str, rng: random.Random) -> int:
    """Kill a stage at a moment, half of the time what goes on from there too, and compare; return the kills."""
    kills, wanted = 0, rng.choice((1, 2))
    moments = []
    while kills == 0:  # a tool may be faster, and one whose results are there may have little to write
        recipe.bring_back(rng.choice((stage, stage, recipe.after(stage))))
        for _ in range(wanted):
            moments.append(some_moment(rng, recipe.undisturbed[stage]))
            kills += recipe.call(stage, moment=moments[-1]).killed
    done = recipe.call(stage)
    assert done.status == 0, (stage, moments, done.output)
    assert recipe.differences(stage) == [], (stage, moments)
    return kills


def test_a_run_that_is_killed_anywhere_ends_as_an_undisturbed_one(recipe, capsys):
    rng, survived = random.Random(SEED), Counter[str]()
    for stage, count in KILLS.items():
        for _ in range(count):
            survived[stage] += survive(recipe, stage, rng)
    with capsys.disabled():
        print(f"\nkills survived: {sum(survived.values())}: {', '.join(f'{s} {n}' for s, n in survived.items())}")
    assert survived.total() >= sum(KILLS.values()) >= 20


def test_new_embeddings_are_never_read_with_an_old_mean(recipe):
    """A kill before each renaming or removal, over the results of other weights."""
    folder = recipe.place / "run" / "embeddings" / "vox2_dev"
    recipe.bring_back("extraction")
    assert recipe.call("extraction", "--checkpoint", recipe.tools.folder / "run/models/model_2.pt").status == 0
    old = contents(folder)
    renewed = recipe.call("extraction")
    new = contents(folder)
    assert all(old[name] != new[name] for name in ("xvector.ark", "mean_vec.npy"))
    found = Counter()
    for number, (event, path) in enumerate(renewed.changes):
        if event in ("os.rename", "os.remove") and Path(path).parent.name == "vox2_dev":
            shutil.rmtree(folder)
            folder.mkdir()
            for name, data in old.items():
                (folder / name).write_bytes(data)
            assert recipe.call("extraction", moment=Moment(number)).killed
            have = contents(folder)
            found["none" if "xvector.scp" not in have else "old" if old.items() <= have.items() else "new"] += 1
            assert "xvector.scp" not in have or old.items() <= have.items() or new.items() <= have.items()
    assert set(found) == {"old", "none", "new"}
    assert recipe.call("extraction").status == 0
    assert recipe.differences("extraction") == []


def test_what_several_killed_processes_left_is_removed_by_one(recipe):
    recipe.bring_back("extraction")
    (recipe.place / "run" / "embeddings" / "vox1" / "parts" / "3").mkdir(parents=True)
    assert recipe.call("extraction").status == 0
    assert recipe.differences("extraction") == []


def test_two_at_once_leave_what_one_does(recipe):
    """Or one gives up in a sentence, and the repeated command mends what it left."""
    for stage in ("shards", "extraction", "scoring"):
        recipe.bring_back(stage)
        both = recipe.call(stage, at_once=2)
        assert both.status in (0, 1)
        assert "Traceback" not in both.output
        assert recipe.call(stage).status == 0
        assert recipe.differences(stage) == [], stage


@pytest.mark.parametrize("stage", ["shards", "training", "averaging", "extraction", "scoring", "calibration"])
def test_a_full_disk_is_a_sentence_and_costs_nothing_but_the_work_under_way(disk, stage):
    checkpoints = disk.place / "run" / "models" / "checkpoint"
    added = disk.used[disk.after(stage)] - disk.used[stage]
    for share in (0.0, 0.7):  # of the room that the stage needs
        disk.bring_back(stage)
        disk.tools.remount(f"size={disk.used[stage] + int(share * added)}")
        ended = disk.call(stage)
        check_sentence(ended, "cannot be written.*No space left on device")
        disk.tools.remount(ROOMY)
        saved = saved_steps(checkpoints)
        assert bool(saved) == (stage not in ("shards", "training") or (stage == "training" and share > 0))
        done = disk.call(stage)
        assert done.status == 0, done.output
        assert disk.differences(stage) == [], share
        if stage == "training" and saved:
            assert f"going on after step {saved[-1]}" in done.output


@pytest.mark.parametrize("stage", ["shards", "training", "averaging", "extraction", "scoring", "calibration"])
def test_a_read_only_folder_is_a_sentence(disk, stage):
    disk.bring_back(stage)
    disk.tools.remount("ro")
    check_sentence(disk.call(stage), "Read-only file system")


def check_sentence(ended: Ended, sentence: str) -> None:
    """Check that a tool ended with one line that says why, and no traceback."""
    assert ended.status == 1, ended.output
    assert re.match(rf"\w+\.py: error: .*{sentence}", ended.output.splitlines()[-1]), ended.output
    assert "Traceback" not in ended.output
