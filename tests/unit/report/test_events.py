"""Event files of runs, read back by TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_command
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from wespeaker.errors import InputError
from wespeaker.report.events import write_events

CONFIG = {"exp_dir": "exp/a", "seed": 42, "num_avg": None, "model_args": {"embed_dim": 256, "two_emb_layer": False}}
RATES: dict[str, Any] = {
    "num_target": 20,
    "num_nontarget": 400,
    "eer": 0.0625,
    "min_dcf": {"0.01": 0.25},
    "tar_at_far": {"0.01": {"tar": 0.75, "resolvable": True}, "0.001": {"tar": 0.5, "resolvable": False}},
}


def _row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "epoch": step / 10, "loss": 8 / step, "margin": 0.125, "data_wait": 0.5, **more}


def _write_rows(run: Path, *rows: dict[str, float]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_scores(run: Path, prefix: str = "", **rates: float) -> None:
    (run / "scores").mkdir(exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(run / "scores" / f"{prefix}det.png")
    (run / "scores" / f"{prefix}results.txt").write_text("EER %\n6.25 | $x$\n")
    (run / "scores" / f"{prefix}results.json").write_text(json.dumps({"trials": {"vox1_O": RATES | rates}}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "exp" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "env.json").write_text('{"command": ["tools/train.py"]}')
    _write_rows(folder, _row(10), _row(20, dev_eer=0.5))
    return folder


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def _curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def _text(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_rows_become_curves_by_step_in_groups(run: Path) -> None:
    assert write_events([run]) == [run / "tensorboard"]
    events = _read(run / "tensorboard")
    assert _curve(events, "train/loss") == [(10, pytest.approx(0.8)), (20, pytest.approx(0.4))]
    assert _curve(events, "dev/eer") == [(20, 0.5)]
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "dev/eer", "schedule/epoch", "schedule/margin", "speed/data_wait"),
    }


def test_what_is_not_finite_is_shown_as_that(run: Path) -> None:
    _write_rows(run, _row(10, loss=math.nan), _row(20, loss=math.inf))
    write_events([run])
    (_, first), (_, second) = _curve(_read(run / "tensorboard"), "train/loss")
    assert (math.isnan(first), second) == (True, math.inf)


def test_settings_are_text_and_hyper_parameters_with_error_rates(run: Path) -> None:
    _write_scores(run)
    write_events([run])
    events = _read(run / "tensorboard")
    assert yaml.safe_load(_text(events, "config")) == CONFIG  # indented, as Markdown's code is
    assert json.loads(_text(events, "environment")) == {"command": ["tools/train.py"]}

    def plugin_data(tag: str) -> bytes:
        return events.SummaryMetadata(tag).plugin_data.content

    started = metadata.parse_session_start_info_plugin_data(plugin_data(metadata.SESSION_START_INFO_TAG))
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in started.hparams.items()}
    assert values == {
        "exp_dir": "exp/a",
        "seed": 42,
        "num_avg": "null",
        "model_args.embed_dim": 256,
        "model_args.two_emb_layer": "false",
    }
    experiment = metadata.parse_experiment_plugin_data(plugin_data(metadata.EXPERIMENT_TAG))
    tags = {info.name.tag for info in experiment.metric_infos}
    assert tags == {"scores/vox1_O/eer", "scores/vox1_O/min_dcf_0.01", "scores/vox1_O/tar_at_far_0.01"}
    assert [_curve(events, tag) for tag in sorted(tags)] == [[(20, 0.0625)], [(20, 0.25)], [(20, 0.75)]]


def test_tables_and_plots_of_all_scores_are_shown(run: Path) -> None:
    _write_scores(run)
    _write_scores(run, "vox2_dev_asnorm40_", eer=0.03125)
    write_events([run])
    events = _read(run / "tensorboard")
    assert _curve(events, "vox2_dev_asnorm40/vox1_O/eer") == [(20, 0.03125)]
    for group in ("scores", "vox2_dev_asnorm40"):
        assert _text(events, f"{group}/results") == "    EER %\n    6.25 | $x$\n"
        (shown,) = events.Images(f"{group}/det")
        with Image.open(io.BytesIO(shown.encoded_image_string)) as image, Image.open(run / "scores/det.png") as plot:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(plot))


def test_a_call_replaces_what_an_earlier_one_wrote_and_nothing_else(run: Path) -> None:
    mine = run / "tensorboard" / "events.out.tfevents.1.mine"
    mine.parent.mkdir()
    mine.write_bytes(b"")
    write_events([run])
    write_events([run])
    write_events([run])
    assert mine.exists()
    assert sorted(path.stat().st_size > 0 for path in mine.parent.iterdir() if path != mine) == [False, True]
    assert [step for step, _ in _curve(_read(run / "tensorboard"), "train/loss")] == [10, 20]


@pytest.fixture
def follow(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[tuple[int, float]]]]:
    """Let things happen to the run while it is followed; return the loss that TensorBoard shows after each."""

    def go(*happenings: Callable[[], object]) -> list[list[tuple[int, float]]]:
        watching = EventAccumulator(str(run / "tensorboard"))
        left, shown = list(happenings), []

        def sleep(seconds: float) -> None:
            assert seconds == 7
            shown.append(_curve(watching.Reload(), "train/loss"))
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr(time, "sleep", sleep)
        with pytest.raises(KeyboardInterrupt):
            write_events([run], follow_seconds=7)
        return shown

    return go


def test_curves_grow_while_they_are_followed(run: Path, follow: Callable[..., list[Any]]) -> None:
    def add(text: str) -> Callable[[], None]:
        def to_file() -> None:
            with open(run / "metrics.jsonl", "a") as file:
                file.write(text)

        return to_file

    last = json.dumps(_row(40, loss=4.0))
    shown = follow(add(json.dumps(_row(30, loss=2.0)) + "\n"), add(last[:9]), add(last[9:] + "\n"), lambda: None)
    assert [[step for step, _ in curve] for curve in shown] == [
        [10, 20], [10, 20, 30], [10, 20, 30], [10, 20, 30, 40], [10, 20, 30, 40],
    ]  # fmt: skip
    assert shown[-1][2:] == [(30, 2.0), (40, 4.0)]
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_rows_that_a_resume_took_back_are_taken_back(run: Path, follow: Callable[..., list[Any]]) -> None:
    first, second = _row(10, loss=1.0), _row(20, loss=0.5)
    _write_rows(run, first, second)
    shown = follow(
        lambda: _write_rows(run, first),
        lambda: _write_rows(run, first, _row(20, loss=0.25), _row(30, loss=0.125)),
        lambda: _write_scores(run),
    )
    again = [(10, 1.0), (20, 0.25), (30, 0.125)]
    assert shown == [[(10, 1.0), (20, 0.5)], [(10, 1.0)], again, again]
    events = _read(run / "tensorboard")
    assert _curve(events, "train/loss") == again
    assert _curve(events, "scores/vox1_O/eer") == [(30, 0.0625)]


def test_runs_go_to_folders_of_their_names(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "exp" / "b")
    output = tmp_path / "logs"
    assert write_events([run, other], output_dir=output) == [output / "a", output / "b"]
    assert not (run / "tensorboard").exists()
    twin = shutil.copytree(run, tmp_path / "more" / "a")
    with pytest.raises(InputError, match=r"have the same name, so one folder cannot hold both: .*exp/a, .*more/a"):
        write_events([run, twin], output_dir=output)


def test_misuse_is_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"exp has neither config\.yaml nor metrics\.jsonl"):
        write_events([run.parent])
    with pytest.raises(InputError, match="seconds above 0, found -1"):
        write_events([run], follow_seconds=-1)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:3: a row must have 'step', a number"):
        write_events([run])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"tensorboard is not installed.*pip install '\.\[track\]'"):
        write_events([run])
    assert not (run / "tensorboard").exists()


def test_the_tool_writes_and_says_how_to_look_at_it(run: Path) -> None:
    done = run_command(sys.executable, ROOT / "tools" / "write_tensorboard.py", "--exp_dir", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"to look at it: tensorboard --logdir {run}\n"
    assert _curve(_read(run / "tensorboard"), "dev/eer") == [(20, 0.5)]
