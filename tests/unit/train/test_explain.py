import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMALL

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.train.explain import Size, annotated, explain, memory, moments, speaker_plan

SMALLER = ("model=XVEC", "model_args={}")  # than a ResNet: quicker to count
CONFIGS = sorted((ROOT / "conf").glob("*.yaml"))


def load(*overrides, name="resnet34_qmargin"):
    return load_config(ROOT / "conf" / f"{name}.yaml", overrides)


def section(text, title):
    """Return the lines below a title."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title) and set(lines[i + 1]) == {"="}) + 2
    end = next((i for i in range(start, len(lines)) if set(lines[i]) == {"="}), len(lines) + 2) - 2
    return lines[start:end]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_settings_are_the_config(path):
    config = load_config(path)
    assert yaml.safe_load("\n".join(annotated(config))) == yaml.safe_load(config.dump())


def test_settings_are_marked_that_are_not_the_defaults_or_were_overridden():
    overrides = ["seed=42", "model=XVEC", "model_args={embed_dim: 64}", "scheduler=StepDecrease"]
    overrides += [
        "scheduler_args={milestones: [7, 13]}",
        "dataloader_args.num_workers=2",
        "optimizer_args.momentum=0.5",
    ]
    comments = {}
    lines = annotated(load(*overrides), overrides)
    for line in lines:
        setting, _, comment = line.partition("# ")
        comments[setting.strip()] = comment
    assert comments["seed: 42"] == "overridden"
    assert comments["model: XVEC"] == "overridden, default ResNet34"
    assert comments["embed_dim: 64"] == "overridden, default 512"
    assert comments["hid_dim: 512"] == "overridden"  # with its section
    assert comments["num_workers: 2"] == "overridden, default 4"
    assert comments["momentum: 0.5"] == "overridden, default 0.9"
    assert comments["milestones: [7.0, 13.0]"] == "overridden"  # there is no default
    assert comments["pin_memory: true"] == "default false"
    assert comments["final_margin: 0.1"] == "default 0.2"
    assert comments["num_epochs: 150"] == comments["alpha: 1.5"] == ""
    assert yaml.safe_load("\n".join(lines)) == load(*overrides).model_dump()


def test_without_data_the_figures_are_those_of_a_class():
    text = explain(speaker_plan(load()))
    assert re.search(r"backbone +6,634,336  ResNet34\n", text)  # WeSpeaker's has 6.63 M
    assert re.search(r"head, each class +256  q_margin", text)
    assert re.search(r"each class +3,072 bytes +weights, gradients, optimiser", text)  # 256 numbers, three times
    assert "head's step" not in text
    assert "how many, --train_data tells" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_classes_are_split_over_processes():
    text = explain(speaker_plan(load(), num_classes=17_982, world_size=4, device="cuda"))
    parameters = section(text, "Parameters")
    assert re.search(r"head, 17,982 classes +4,603,392  q_margin$", parameters[1])
    assert re.search(r"4,496 of them in each process +1,150,976$", parameters[2])
    lines = section(text, "Memory, each of 4 processes")
    found = [re.match(r"(\D+?) +([\d,.]+) MiB", line) for line in lines[:7]]
    sizes = {row[1]: float(row[2].replace(",", "")) for row in found}
    numbers = 6_634_336 + 1_150_976
    assert sizes["gradients"] == sizes["optimiser"] == pytest.approx(4 * numbers / 2**20, abs=0.05)
    assert sizes["gradients under way"] == pytest.approx(4 * 6_634_336 / 2**20, abs=0.05)
    assert sizes["together"] == pytest.approx(sum(sizes.values()) - sizes["together"], abs=0.5)


def test_the_memory_of_a_step_grows_with_what_it_is_of():
    def of(*overrides, **kwargs):
        plan = speaker_plan(load(*overrides, *SMALLER), num_classes=6_000, **kwargs)
        return memory(plan, Size.of(plan))

    plain = of()
    assert of("dataloader_args.batch_size=256")["network's step"] == pytest.approx(
        2 * plain["network's step"], rel=0.05
    )
    halved = of("precision=bf16")["network's step"] / plain["network's step"]
    assert 0.5 < halved < 0.75  # the statistics of 1,500 values a frame are in float32
    assert of("optimizer=AdamW", "optimizer_args={}")["optimiser"] == 2 * plain["optimiser"]
    assert of(device="cuda")["head's step"] > plain["head's step"]  # the streaming form makes no logits
    assert "gradients under way" not in plain


def test_the_schedule_is_wespeakers():
    """Its scheduler's rates for 2 x 128 utterances a step at epochs 7, 20 and 40, and the paper's gap of 0.33."""
    lines = section(explain(speaker_plan(load(*SMALLER), world_size=2)), "Schedule")
    rows = [line.split(maxsplit=5) for line in lines[2:] if line[:7].strip()]
    rows = [row for row in rows if row[1] == "-"]
    assert [row[0] for row in rows] == ["1", "7", "20", "22.01", "40", "141", "151"]
    assert [float(row[2]) for row in rows[1:3]] == pytest.approx([0.295, 0.153], rel=0.03)
    assert float(rows[4][2]) == pytest.approx(0.055, rel=0.03)
    assert [row[3] for row in rows] == ["0", "0", "0", "0.05", "0.1", "0.1", "0.1"]
    assert [row[4] for row in rows] == ["0.20", "0.20", "0.20", "0.26", "0.33", "0.33", "0.33"]
    assert rows[4][5] == "the margin is final"
    assert rows[5][5] == "the first of 10 epochs that are averaged"
    assert lines[-1].startswith("All rates are x 4 (scheduler_args.scale_ratio auto: 2 processes x 128 / 64)")
    assert lines[-1].endswith("the highest is 0.295.")


def test_moments_are_in_order_and_in_the_run():
    steps = ("scheduler=StepDecrease", "scheduler_args={milestones: [7, 13, 30], warm_up_epoch: 2}")
    loss = "projection_args={project_type: a3m, reinit_epoch: 12}"
    margin = "margin_update={increase_start_epoch: 4, fix_start_epoch: 12, increase_type: linear}"
    config = load(*steps, loss, margin, "num_epochs=20", "num_avg=3")
    assert [(moment.epoch, moment.what) for moment in moments(config)] == [
        (1, "start"),
        (3, "the warm-up is over"),
        (4, "the margin starts to change"),
        (8, "the rate falls to 0.1 of it, the margin is half way"),
        (12, "the margin is final, prototypes are re-initialised"),
        (14, "the rate falls to 0.1 of it"),
        (18, "the first of 3 epochs that are averaged"),
        (21, "the end of epoch 20"),
    ]
    fixed = load("margin_update={update_margin: false}", "num_epochs=20", "scheduler_args={warm_up_epoch: 0}")
    assert [moment.epoch for moment in moments(fixed)] == [1, 11, 21]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            (),
            "margin 0.1 .* with its own prototype leads .* by 0.33; at margin 0, by 0.2. That is within the 0.3 to 0.7",
        ),
        (
            ("projection_args={project_type: sparsemax, scale: 5}",),
            "own prototype, less its margin, leads .* less than",
        ),
        (("margin_update.final_margin=0.3",), "leads .* by 0.896; .* more than the 0.3 to 0.7"),
        (("projection_args={project_type: arc_margin}",), "No sample's loss is ever exactly zero"),
    ],
)
def test_the_gap_is_explained(overrides, expected):
    assert re.search(expected, " ".join(section(explain(speaker_plan(load(*SMALLER, *overrides))), "Zero-loss gap")))


def test_doubts_are_told():
    assert section(explain(speaker_plan(load(*SMALLER))), "Doubts") == ["none"]
    assert "never reached" in section(explain(speaker_plan(load(*SMALLER, "num_epochs=30"))), "Doubts")[0]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"world_size": 0}, "at least one process, found a world size of 0"),
        ({"num_classes": 1}, "on 1 processes needs at least 2 classes, found 1"),
        ({"num_classes": 3, "world_size": 4}, "on 4 processes needs at least 4 classes, found 3"),
        ({"num_classes": 3, "train_list": Path("raw.list")}, "raw.list, which tells it, but not both"),
    ],
)
def test_a_run_that_cannot_be_is_refused(kwargs, match):
    with pytest.raises(InputError, match=match):
        speaker_plan(load(), **kwargs)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call the tool; returns what it prints."""

    def go(*words):
        monkeypatch.syspath_prepend(ROOT / "tools")
        monkeypatch.setattr(
            sys, "argv", ["train.py", "--config", str(ROOT / "conf/mini_qmargin.yaml"), *map(str, words)]
        )
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
        return capsys.readouterr().out

    return go


def test_the_tool_tells_steps_and_classes_of_the_data_and_writes_nothing(tool, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ("--train_data", data_dir / "vox2_dev" / "shard.list", "--exp_dir", tmp_path / "run")
    text = tool("--explain", *data, "--world_size", 2, "--set", *SMALL)
    assert "2 epochs of 2 steps of 2 x 8 examples, out of 24: 4 steps." in text
    assert re.search(r"head, 6 classes +96  q_margin\n", text)
    assert re.search(r"exp_dir: \S+run +# overridden", text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "match"),
    [((), "required: --train_data"), (("--train_data", "x", "--num_classes", "9"), "go with --explain")],
)
def test_the_tool_wants_data_to_train_and_counts_them_itself(tool, capsys, words, match):
    with pytest.raises(SystemExit) as ended:
        tool(*words)
    assert ended.value.code == 1
    assert match in capsys.readouterr().err
