"""The report: what is on the page, what is said of what is missing, and how it looks on a phone in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import wespeaker
from wespeaker.data.trials import Trials, write_scores
from wespeaker.errors import InputError
from wespeaker.eval.comparison import Difference
from wespeaker.report import write_report
from wespeaker.report.curves import MAX_POINTS, Panel, panel_figure

NUM_TARGET, NUM_NONTARGET = 20, 400
VOID = {"meta"}
WITH_INTERVALS = "Error rates; in brackets 95 % intervals (bootstrap over speakers, 1,000 replicates)"
RATES: dict[str, Any] = {
    "num_target": NUM_TARGET,
    "num_nontarget": NUM_NONTARGET,
    "eer": 0.0512,
    "min_dcf": {"0.01": 0.25},
    "tar_at_far": {
        "0.01": {"tar": 0.75, "far": 0.01, "threshold": 0.5, "num_false_accepts": 4, "resolvable": True},
        "0.001": {"tar": 0.5, "far": 0.0, "threshold": 0.6, "num_false_accepts": 0, "resolvable": False},
    },
    "interval": {
        "level": 0.95,
        "replicates": 1000,
        "eer": [0.04, 0.06],
        "min_dcf": {"0.01": [0.2, 0.31]},
        "tar_at_far": {"0.01": [0.7, 0.8]},
    },
}
CONFIG: dict[str, Any] = {
    "exp_dir": "exp/x",
    "seed": 42,
    "projection_args": {"project_type": "arc_margin", "scale": 32.0},
    "margin_update": {"initial_margin": 0.0, "final_margin": 0.2, "update_margin": True},
}
ENVIRONMENT: dict[str, Any] = {
    "command": ["tools/train.py", "--set", "num_epochs=2 seed=1"],
    "git_revision": "20ef257",
    "packages": {"torch": "2.14.1"},
    "gpu": None,
}


def _trials(seed: int = 0) -> Trials:
    """Pairs of 100 utterances of 10 speakers, in random order."""
    utts = [f"id{i // 10}/v/{i}.wav" for i in range(100)]
    enroll, test = np.divmod(np.random.default_rng(seed).permutation(100 * 100).astype(np.int32), 100)
    same = enroll // 10 == test // 10
    kept = np.sort(np.concatenate([np.flatnonzero(same)[:NUM_TARGET], np.flatnonzero(~same)[:NUM_NONTARGET]]))
    return Trials(utts, enroll[kept], test[kept], same[kept])


def _make_run(
    folder: Path,
    *,
    config: Mapping[str, Any] = CONFIG,
    rates: Mapping[str, Any] = RATES,
    lists: Sequence[str] = ("vox1_O",),
    trials: Trials | None = None,
    note: str = "",
    environment: Mapping[str, Any] = ENVIRONMENT,
    num_rows: int = 10,
) -> Path:
    """A run folder as stages 3 to 5 leave it."""
    trials = trials or _trials()
    for name in lists:
        scores = np.random.default_rng(0).standard_normal(len(trials)) + 3 * trials.is_target
        write_scores(folder / "scores" / f"{name}.kaldi.score", trials, scores)
    results = {**({"note": note} if note else {}), "trials": dict.fromkeys(lists, rates)}
    (folder / "scores" / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(json.dumps(environment))
    rows = [
        {
            "step": i + 1, "epoch": (i + 1) / 5, "loss": 9 / (i + 1), "accuracy": i / num_rows, "margin": 0.2,
            "learning_rate": 0.1 / (i + 1), "support": 5.0, "support_max": 9, "zero_target": 0.25, "data_wait": 0.1,
        }
        for i in range(num_rows)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _q_margin(**margin_update: object) -> dict[str, Any]:
    projection = {"project_type": "q_margin", "alpha": 1.5, "scale": 10.0}
    update = {**CONFIG["margin_update"], "final_margin": 0.1, **margin_update}
    return {**CONFIG, "exp_dir": "exp/y", "projection_args": projection, "margin_update": update}


class Page(HTMLParser):
    """The page as a reader meets it; tags that do not match are errors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}  # by label, cell by cell
        self.titles: list[str] = []  # of the sections
        self.said: list[str] = []  # paragraphs
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(attributes["aria-label"] or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "small":
            self._rows[-1][-1] += " "
        elif tag == "h2":
            self.titles.append("")
        elif tag == "p":
            self.said.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data
        elif self._open and self._open[-1] == "h2":
            self.titles[-1] += data
        elif self._open and self._open[-1] == "p":
            self.said[-1] += data

    def labels(self) -> list[str]:
        """What a screen reader says of the drawings."""
        return [attributes["aria-label"] or "" for tag, attributes in self.tags if attributes.get("role") == "img"]


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Page]:
    """Write the report of some folders and read it."""

    def write(*folders: Path, **options: Any) -> Page:
        write_report(folders, tmp_path / "report.html", **options)
        return Page(tmp_path / "report.html")

    return write


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, complete and not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return _make_run(folder / "arc"), _make_run(folder / "qm", config=_q_margin())


@pytest.fixture(scope="module")
def page(two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of the two."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(two, path)
    return Page(path)


def test_the_table_has_loss_settings_and_rates_with_intervals(page: Page) -> None:
    numbers = ["5.120 [4.000, 6.000]", "0.2500 [0.2000, 0.3100]", "75.00 [70.00, 80.00]"]
    assert page.tables[WITH_INTERVALS] == [
        ["system", "loss", "α", "s", "m", "EER %", "minDCF(0.01)", "TAR % at FAR 1 % 4 false accepts at most"],
        ["arc", "arc_margin", "–", "32", "0.2", *numbers],
        ["qm", "q_margin", "1.5", "10", "0.1", *numbers],
    ]
    assert "20 target and 400 nontarget trials." in page.said
    assert "Too few nontarget trials to resolve FAR 0.1 %." in page.said
    assert page.titles == ["vox1_O", "Training", "Settings that differ", "Commands and environment"]


def test_results_without_intervals_and_a_margin_that_never_rises(report: Callable[..., Page], tmp_path: Path) -> None:
    rates = {key: value for key, value in RATES.items() if key != "interval"}
    page = report(_make_run(tmp_path / "a", rates=rates, config=_q_margin(update_margin=False)))
    assert page.tables["Error rates"][1] == ["a", "q_margin", "1.5", "10", "0", "5.120", "0.2500", "75.00"]


def test_differences_are_of_the_others_to_the_first(
    report: Callable[..., Page], two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compare(
        score_files: Sequence[Path], *, fars: Sequence[float], p_target: float, **bootstrap: Any
    ) -> SimpleNamespace:
        asked.append((score_files, fars, p_target))
        assert bootstrap == {"utt2spk": None, "replicates": 200, "seed": 1}
        eer, tar = Difference(-0.012, -0.02, -0.004, 0.0004), Difference(0.05, -0.01, 0.11, 0.0312)
        differences = [{"eer": eer, "tar_at_far": {"0.01": tar, "0.001": tar}}, {"min_dcf": {"0.01": tar}}]
        return SimpleNamespace(differences=differences)

    bare, third = _make_run(tmp_path / "bare"), _make_run(tmp_path / "third")
    (bare / "scores" / "vox1_O.kaldi.score").unlink()
    monkeypatch.setattr("wespeaker.report.page.compare_scores", compare)
    page = report(bare, *two, third, replicates=200, seed=1)
    assert asked == [([run / "scores" / "vox1_O.kaldi.score" for run in (*two, third)], [0.01, 0.001], 0.01)]
    rows = page.tables["Difference to arc on the same trials, with interval and p-value"]
    assert rows[0] == ["system", "EER %", "minDCF(0.01)", "TAR % at FAR 1 %"]
    assert rows[1] == ["qm", "-1.200 [-2.000, -0.400] p < 0.001", "–", "+5.00 [-1.00, +11.00] p = 0.031"]
    assert rows[2] == ["third", "–", "+0.0500 [-0.0100, +0.1100] p = 0.031", "–"]


def test_drawings_are_described_and_every_table_head_has_a_scope(page: Page) -> None:
    labels = page.labels()
    assert labels[0].startswith("DET curves of arc, qm on vox1_O")
    assert "Loss, by epoch; last values: arc 0.9, qm 0.9" in labels
    assert "Samples whose own class has posterior 0, %, by epoch; last values: arc 25, qm 25" in labels
    assert len(labels) == 1 + 7  # without the dev trials, which these runs do not have
    for tag, attributes in page.tags:
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_only_settings_that_differ_are_shown(page: Page) -> None:
    rows = page.tables["3 other settings are the same"]
    assert rows[0] == ["setting", "arc", "qm"]
    assert sorted(rows[1:]) == [
        ["margin_update.final_margin", "0.2", "0.1"],
        ["projection_args.alpha", "–", "1.5"],
        ["projection_args.project_type", '"arc_margin"', '"q_margin"'],
        ["projection_args.scale", "32.0", "10.0"],
    ]


def test_equal_settings_and_a_single_run_are_said(report: Callable[..., Page], tmp_path: Path) -> None:
    one, other = _make_run(tmp_path / "one"), _make_run(tmp_path / "other")
    assert "All 6 settings are the same." in report(one, other).said
    assert "There are no two configs to compare." in report(one).said


def test_command_and_environment_are_shown(page: Page) -> None:
    assert "tools/train.py --set 'num_epochs=2 seed=1'" in html.unescape(page.source)
    rows = page.tables["Where the runs were trained"]
    assert ["git_revision", "20ef257", "20ef257"] in rows
    assert ["packages.torch", "2.14.1", "2.14.1"] in rows
    assert ["gpu", "–", "–"] in rows


def test_the_page_tells_the_version_that_wrote_it(page: Page) -> None:
    assert ("meta", {"name": "generator", "content": f"wespeaker-q {wespeaker.__version__}"}) in page.tags


def test_nothing_is_loaded_and_nothing_runs(page: Page) -> None:
    assert "default-src 'none'" in page.source
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")
    assert not re.search(r"@import|url\((?!#)", page.source)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_whatever_a_run_says_is_text(report: Callable[..., Page], tmp_path: Path) -> None:
    attack = "<script>alert('1')</script>"
    name = '"><img onerror=alert(1)>&amp;'
    config = {**CONFIG, "seed": attack, "projection_args": {"project_type": attack, "alpha": attack, "scale": attack}}
    environment = {**ENVIRONMENT, "command": [attack], "git_revision": attack, attack: attack}
    rates = {**RATES, "min_dcf": {attack: 0.5}}
    run = _make_run(
        tmp_path / name, config=config, rates=rates, lists=[name], note=attack, environment=environment, num_rows=3
    )
    page = report(run, _make_run(tmp_path / "plain"))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.titles[0] == name
    assert attack in page.said
    rows = page.tables[WITH_INTERVALS]
    assert [name, attack, attack, attack] in [row[:4] for row in rows]
    assert ["git_revision", attack, "20ef257"] in page.tables["Where the runs were trained"]
    assert any(label.startswith(f"DET curves of {name} on {name}") for label in page.labels())


def test_a_missing_file_is_said_in_its_place(report: Callable[..., Page], tmp_path: Path, page: Page) -> None:
    sentences = {
        "config.yaml": "its settings are not shown.",
        "env.json": "its command and environment are not shown.",
        "metrics.jsonl": "no training curves.",
        "scores/results.json": "its error rates are not shown.",
    }
    runs = [_make_run(tmp_path / f"without_{index}") for index in range(len(sentences))]
    for run, file in zip(runs, sentences, strict=True):
        (run / file).unlink()
    incomplete = report(*runs)
    for run, (file, sentence) in zip(runs, sentences.items(), strict=True):
        assert f"{run / file} is missing: {sentence}" in incomplete.said
    assert incomplete.titles == page.titles
    assert not any("is missing" in text for text in page.said)
    assert [row[:2] for row in incomplete.tables[WITH_INTERVALS][1:]] == [
        ["without_0", "–"],
        ["without_1", "arc_margin"],
        ["without_2", "arc_margin"],
    ]


def test_missing_scores_are_said_and_rates_shown(report: Callable[..., Page], tmp_path: Path) -> None:
    whole, bare = _make_run(tmp_path / "whole"), _make_run(tmp_path / "bare")
    (bare / "scores" / "vox1_O.kaldi.score").unlink()
    page = report(bare, whole)
    assert f"{bare / 'scores' / 'vox1_O.score'} is missing: no DET curve of bare." in page.said
    assert page.labels()[0].startswith("DET curves of whole on vox1_O")
    assert [row[0] for row in page.tables[WITH_INTERVALS]] == ["system", "bare", "whole"]


def test_scores_that_are_not_those_of_the_results_are_said(report: Callable[..., Page], tmp_path: Path) -> None:
    page = report(_make_run(tmp_path / "a", rates={**RATES, "num_target": 21}))
    assert any("vox1_O.kaldi.score holds other trials than results.json" in text for text in page.said)
    assert not any(label.startswith("DET") for label in page.labels())


def test_a_row_that_is_being_written_is_left_out(report: Callable[..., Page], tmp_path: Path) -> None:
    run = _make_run(tmp_path / "a")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "epo')
    assert "Loss, by epoch; last values: a 0.9" in report(run).labels()


def test_other_trials_are_shown_apart(report: Callable[..., Page], tmp_path: Path) -> None:
    a, b = _make_run(tmp_path / "a"), _make_run(tmp_path / "b", trials=_trials(seed=1))
    page = report(a, b)
    assert page.titles[:2] == ["vox1_O", "vox1_O"]
    assert f"{b} was not scored on these trials." in page.said
    assert f"{a} was not scored on these trials." in page.said
    assert [label[:24] for label in page.labels()[:2]] == ["DET curves of a on vox1_", "DET curves of b on vox1_"]


def test_other_lists_and_other_counts_are_shown_apart(report: Callable[..., Page], tmp_path: Path) -> None:
    a = _make_run(tmp_path / "a", lists=["vox1_O", "vox1_H"])
    b = _make_run(tmp_path / "b", lists=["vox1_H"], rates={**RATES, "num_target": 30})
    (b / "scores" / "vox1_H.kaldi.score").unlink()
    assert report(a, b).titles[:3] == ["vox1_O", "vox1_H", "vox1_H"]


def test_the_order_of_the_trials_does_not_matter(report: Callable[..., Page], tmp_path: Path) -> None:
    one, order = _trials(), np.random.default_rng(0).permutation(NUM_TARGET + NUM_NONTARGET)
    shuffled = Trials(one.utts, one.enroll[order], one.test[order], one.is_target[order])
    page = report(_make_run(tmp_path / "a", trials=one), _make_run(tmp_path / "b", trials=shuffled))
    assert page.titles[:2] == ["vox1_O", "Training"]


def test_runs_of_one_name_are_called_by_their_paths(report: Callable[..., Page], tmp_path: Path) -> None:
    folders = [_make_run(tmp_path / parent / "run") for parent in ("a", "b")]
    rows = next(iter(report(*folders).tables.values()))
    assert [row[0] for row in rows[1:]] == [str(folder) for folder in folders]


def test_the_page_is_the_same_each_time(report: Callable[..., Page], two: tuple[Path], page: Page) -> None:
    assert report(*two).source == page.source


def test_a_long_run_is_thinned_to_means_and_largest_values() -> None:
    values = np.random.default_rng(0).uniform(1, 2, 6000)
    rows = [{"epoch": i, "loss": value, "top": value} for i, value in enumerate(values)]
    figure = panel_figure(Panel("Loss", "loss", 100, upper_key="top"), {"a": rows}, {"a": ("#000000", ())})
    assert figure is not None
    mean, largest = (np.asarray(line.get_ydata()) for line in figure.axes[0].lines)
    np.testing.assert_allclose(mean, 100 * values.reshape(MAX_POINTS, -1).mean(axis=1))
    np.testing.assert_allclose(largest, 100 * values.reshape(MAX_POINTS, -1).max(axis=1))


@pytest.mark.parametrize(
    ("values", "scale"), [((0.001, 0.1), "log"), ((0.0, 0.1), "linear"), ((0.2, 0.8), "linear"), ((0.0, 0.0), "linear")]
)
def test_a_panel_is_logarithmic_where_that_has_labels(values: tuple[float, float], scale: str) -> None:
    rows = [{"epoch": epoch, "support": value} for epoch, value in enumerate(values)]
    figure = panel_figure(Panel("Support", "support", log=True), {"a": rows}, {"a": ("#000000", ())})
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_yscale() == scale
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    labelled = [at for at, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True) if label.get_text()]
    assert sum(low <= at <= high for at in labelled) >= 2


def test_no_scores_at_all_is_an_error(tmp_path: Path) -> None:
    folders = [_make_run(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        (folder / "scores" / "results.json").unlink()
    with pytest.raises(InputError, match=r"no scores to report: none of .*a, .*b has scores/results.json; run"):
        write_report(folders, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


X_RESULTS = """{"trials": {"x": {"num_target": 1, "num_nontarget": 2, "eer": 0.1, "min_dcf": {"0.01": 0.5},
"tar_at_far": {"0.25": {"tar": 1.0}}, "interval": {"level": 0.95, "replicates": 100, "eer": [0.1, 0.2]}}}}"""


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("env.json", "{", r"env.json is not valid JSON"),
        ("env.json", "[1]", r"env.json must hold a JSON object, found list"),
        ("config.yaml", "a: [", r"config.yaml is not valid YAML"),
        ("config.yaml", "text", r"config.yaml must be a mapping"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch\n', r"metrics.jsonl:2 is not valid JSON"),
        ("metrics.jsonl", '{"step": 1}\n', r"metrics.jsonl:1: a row must have 'epoch'"),
        ("scores/results.json", '{"trials": 1}', r"results.json has no mapping 'trials'"),
        ("scores/results.json", '{"trials": {"x": {"eer": 1}}}', r"list x lacks num_target, num_nontarget, min_dcf"),
        ("scores/results.json", X_RESULTS.replace("0.5", "null"), r"list x: min_dcf\.0\.01: Input should be a valid"),
        (
            "scores/results.json",
            X_RESULTS.replace("0.25", "often"),
            r"list x: tar_at_far\.often.*: .*could not convert",
        ),
        (
            "scores/results.json",
            X_RESULTS.replace("[0.1, 0.2]", "3"),
            r"list x: interval\.eer: Input should be a valid",
        ),
        ("scores/results.json", "[" * 99_999, r"results.json is not valid JSON: maximum recursion"),
        ("metrics.jsonl", '{"epoch": ' + "9" * 5000 + "}\n", r"metrics.jsonl:1 is not valid JSON: Exceeds the limit"),
        ("config.yaml", "a: &a [x]\nb: *a\n", r"config.yaml is not valid YAML: aliases"),
        ("scores/vox1_O.kaldi.score", "a b c d\n", r"vox1_O.kaldi.score:1: expected"),
        ("scores/vox1_O.kaldi.score", "a b 1 target\n", r"vox1_O.kaldi.score: the list has no nontarget"),
        ("config.yaml", b"\xff", r"config.yaml is not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, file: str, text: str | bytes, match: str) -> None:
    run = _make_run(tmp_path / "a")
    (run / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=match):
        write_report([run], tmp_path / "report.html")


def test_folders_that_are_not_there_or_given_twice_are_errors(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is not a folder; give run folders"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(InputError, match=r"one run folder.*: .*arc"):
        write_report([*two, two[1] / ".." / "arc"], tmp_path / "report.html")


def test_the_tool_reports_what_the_scoring_tool_wrote(
    tool: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run = _make_run(tmp_path / "exp")
    scored = tool("score", "--scores", run / "scores" / "vox1_O.kaldi.score", "--output_dir", run / "scores")
    assert scored.returncode == 0, scored.stderr
    done = tool("report", run, "--output", tmp_path / "deep" / "page.html")
    assert (done.returncode, done.stdout) == (0, f"report: {tmp_path / 'deep' / 'page.html'}\n"), done.stderr
    page = Page(tmp_path / "deep" / "page.html")
    results = json.loads((run / "scores" / "results.json").read_text())
    row = next(iter(page.tables.values()))[1]
    assert row[5].split()[0] == f"{100 * results['trials']['vox1_O']['eer']:.3f}"

    failed = tool("report", tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("report.py: error: no scores to report")
    assert "Traceback" not in failed.stderr


MEASURE = """
<script>
addEventListener("load", () => {
  const measure = (frame) => {
    const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
    return {
      width, scrollWidth: root.scrollWidth,
      titles: [...page.querySelectorAll("h2")].map((title) => title.innerText),
      boxesThatScroll: [...page.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).length,
      widths: [...page.querySelectorAll("svg[role=img]")].map((svg) => svg.getBoundingClientRect().width),
      swatches: [...page.querySelectorAll(".swatch line")].map((line) => getComputedStyle(line).stroke),
      loaded: frame.contentWindow.performance.getEntriesByType("resource").length,
    };
  };
  document.body.innerText = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
});
</script>
"""


def test_a_browser_shows_the_page_at_the_width_of_a_phone_without_scrolling_sideways(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    name = "resnet34_with_a_name_that_is_as_long_as_the_names_that_people_give"
    page = report(
        _make_run(tmp_path / "arc"),
        _make_run(tmp_path / name, config=_q_margin(), lists=["vox1_O", f"list_of_{name}"]),
    )
    # The page as it is, in frames of two widths: a script in the page itself would be against its own policy.
    frames = [f'<iframe srcdoc="{html.escape(page.source)}" width="{w}" height="800"></iframe>' for w in (390, 1200)]
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{''.join(frames)}{MEASURE}", encoding="utf-8")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000", "--dump-dom", wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    body = re.search(r"<body>(.*?)</body>", done.stdout, flags=re.DOTALL)
    assert body is not None, done.stdout[-1000:]
    phone, desktop = json.loads(html.unescape(body[1]))
    for seen in (phone, desktop):
        assert seen["scrollWidth"] <= seen["width"]
        assert seen["titles"] == page.titles
        assert len(seen["widths"]) == len(page.labels())
        assert max(seen["widths"]) <= seen["width"]
        assert seen["loaded"] == 0
        assert seen["swatches"][:2] == ["rgb(0, 114, 178)", "rgb(213, 94, 0)"]
    assert 350 < phone["width"] <= 390
    assert phone["boxesThatScroll"] >= 2  # the tables, in boxes of their own
    assert min(phone["widths"]) > 300
