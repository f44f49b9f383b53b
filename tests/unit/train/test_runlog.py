import json
import multiprocessing
import re

import pytest
from conftest import ROOT
from toy_task import toy_config, train_toy

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.lock import locked
from wespeaker.train.runlog import MetricsFile, check_run_folder, write_run_folder


def test_rows_after_the_checkpoint_are_removed_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, last_step=0)
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss": step / 10})
    MetricsFile(path, last_step=2).write({"step": 3, "loss": 9.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": 0.2},
        {"step": 3, "loss": 9.0},
    ]


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    MetricsFile(path, last_step=5)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize("row", ["{}", "[1]", "nothing", '{"step": "one"}', "\xff", "[" * 100_000])
def test_a_damaged_row_is_a_sentence_with_its_line(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{row}\n{{"step": 3}}\n', encoding="latin-1")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is not .*remove"):
        MetricsFile(path, last_step=5)


@pytest.fixture
def run_folder(tmp_path):
    write_run_folder(tmp_path, toy_config(tmp_path), world_size=2)
    return tmp_path


def test_all_differences_are_told_by_the_path_of_their_keys(run_folder):
    check_run_folder(run_folder, toy_config(run_folder), world_size=2)
    other = toy_config(
        run_folder,
        num_epochs=5,
        projection_args={"project_type": "arc_margin", "scale": 8.0},
        margin_update={"update_margin": True, "initial_margin": 0.1},
    )
    with pytest.raises(InputError) as raised:
        check_run_folder(run_folder, other, world_size=2)
    told = str(raised.value)
    assert "num_epochs was 3, now 5" in told
    assert "margin_update.update_margin was false, now true" in told
    assert 'projection_args.project_type was "q_margin", now "arc_margin"' in told
    assert "projection_args.scale was 4.0, now 8.0" in told
    assert re.search(r"projection_args\.alpha was [\d.]+, now not there", told)
    assert "projection_args.easy_margin was not there, now false" in told
    assert told.endswith("; give another --exp_dir, or remove the folder")


@pytest.mark.parametrize("written", [True, False])
def test_a_key_that_wespeaker_lacks_may_be_written_or_not_while_it_has_its_default(tmp_path, written):
    config = load_config(ROOT / "conf" / "resnet34_qmargin.yaml")
    write_run_folder(tmp_path, config, world_size=1)
    path = tmp_path / "config.yaml"
    assert "m_channels" not in path.read_text()
    if written:  # as by versions that wrote all keys
        path.write_text(path.read_text().replace("model_args:\n", "model_args:\n  m_channels: 32\n"))
    check_run_folder(tmp_path, config, world_size=1)
    other = load_config(ROOT / "conf" / "resnet34_qmargin.yaml", ["model_args.m_channels=16"])
    with pytest.raises(InputError, match=r"model_args\.m_channels was 32, now 16;"):
        check_run_folder(tmp_path, other, world_size=1)
    write_run_folder(tmp_path, other, world_size=1)
    assert load_config(path) == other


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.yaml", "a: &a [1, 1]\nb: [*a, *a]\n", r"config\.yaml is not valid YAML: aliases"),
        ("config.yaml", "", r"config\.yaml is not what a run writes"),
        ("config.yaml", "\xff", r"config\.yaml is not what a run writes \('utf-8' codec"),
        ("env.json", "{", r"env\.json is not valid JSON"),
        ("env.json", "[]", r"env\.json is not what a run writes"),
        ("env.json", "{}", r"env\.json does not say how many examples a step has"),
        ("env.json", '{"examples_per_step": "many"}', r"env\.json does not say how many examples a step has"),
        ("env.json", None, r"env\.json is not what a run writes \(.*No such file"),
    ],
)
def test_a_damaged_file_of_the_folder_is_a_sentence(run_folder, name, text, expected):
    (run_folder / name).unlink()
    if text is not None:
        (run_folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=expected):
        check_run_folder(run_folder, toy_config(run_folder), world_size=2)


def test_two_runs_do_not_train_in_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()

    def hold():
        with locked(tmp_path / "run"):
            ready.set()
            over.wait(60)

    other = context.Process(target=hold)
    other.start()
    assert ready.wait(60)
    try:
        with pytest.raises(InputError, match=rf"run is being written by process {other.pid} on .*; wait for its end"):
            train_toy(tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    finally:
        over.set()
        other.join()
    train_toy(tmp_path / "run")
