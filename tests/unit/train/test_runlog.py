import json

from wespeaker.train.runlog import MetricsFile


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
