"""The report: one HTML page, complete in itself, that compares runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from wespeaker import __version__
from wespeaker.eval.comparison import compare_scores
from wespeaker.eval.intervals import REPLICATES
from wespeaker.figures import inline_svg, line_style
from wespeaker.files import replacing
from wespeaker.nested import flatten
from wespeaker.report.curves import MAX_POINTS, PANELS, last_value, panel_figure
from wespeaker.report.elements import (
    ABSENT,
    Html,
    Section,
    Styles,
    column_head,
    element,
    joined,
    line_key,
    missing,
    row_head,
    table,
    text_cell,
    text_head,
)
from wespeaker.report.lists import list_section
from wespeaker.report.runs import Run, read_runs, trial_lists
from wespeaker.report.style import CSS

# Nothing is loaded, from anywhere, and no script runs: a name in a run folder cannot change that.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="wespeaker-q {version}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    utt2spk: str | os.PathLike[str] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> None:
    """Write a page that compares runs: error rates and DET curves, training curves, settings, commands.

    The page needs no network and no scripts. What a run lacks is said in its place; runs that were scored on
    different trials are shown apart.

    Args:
        folders: run folders; the first is what the others are compared with.
        output: the page; it appears whole or not at all.
        utt2spk: a file of ``utt spk`` lines, as in `compare_scores`.
        replicates: of the bootstrap that gives paired differences to the first run; 0 leaves them out.
        seed: of the bootstrap.

    Raises:
        InputError: as `wespeaker.report.runs.read_runs` and `compare_scores` do.
    """
    compare = partial(compare_scores, utt2spk=utt2spk, replicates=replicates, seed=seed) if replicates else None
    runs = read_runs(folders)
    styles = {run.name: line_style(index) for index, run in enumerate(runs)}
    sections = [
        *(
            list_section(trial_list, runs, styles, anchor=f"list{index}", compare=compare)
            for index, trial_list in enumerate(trial_lists(runs))
        ),
        _training_section(runs, styles),
        _settings_section(runs),
        _environment_section(runs),
    ]
    links = [element("li", element("a", section.title, href=f"#{section.anchor}")) for section in sections]
    body = joined(
        element("h1", f"Speaker verification: {len(runs)} {'run' if len(runs) == 1 else 'runs compared'}"),
        element("nav", element("ul", *links), aria_label="Sections"),
        element(
            "main",
            *(element("section", element("h2", title), *contents, id=at) for at, title, contents in sections),
        ),
    )
    title = joined("Speaker verification: ", ", ".join(run.name for run in runs))
    with replacing(output) as temporary:
        page = _PAGE.format(policy=_POLICY, version=__version__, title=title, css=CSS, body=body)
        temporary.write_text(page, encoding="utf-8")


def _training_section(runs: Sequence[Run], styles: Styles) -> Section:
    """Show the training curves."""
    contents = [missing(run.folder / "metrics.jsonl", "no training curves") for run in runs if run.metrics is None]
    rows_of = {run.name: run.metrics for run in runs if run.metrics is not None}
    panels = []
    for panel in PANELS:
        figure = panel_figure(panel, rows_of, styles)
        if figure is None:
            continue
        last = {name: last_value(panel, rows) for name, rows in rows_of.items()}
        values = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if value is not None)
        label = f"{panel.title}, by epoch; last values: {values}"
        drawing = Html(inline_svg(figure, prefix=panel.key, label=label))
        panels.append(element("figure", element("figcaption", panel.title), drawing))
    if panels:
        remark = "Losses of different heads are on different scales."
        if any(len(rows) > MAX_POINTS for rows in rows_of.values()):
            remark += (
                f" Of long runs {MAX_POINTS} points are shown, means of neighbouring rows (largest, on thin lines)."
            )
        contents += [
            element("p", remark, class_="muted"),
            line_key(rows_of, styles),
            element("div", *panels, class_="panels"),
        ]
    return Section("training", "Training", contents)


def _settings_section(runs: Sequence[Run]) -> Section:
    """Show the keys of the configs that differ; exp_dir always does."""
    contents = [missing(run.folder / "config.yaml", "its settings are not shown") for run in runs if run.config is None]
    configs = {run.name: flatten(run.config) for run in runs if run.config is not None}
    keys = dict.fromkeys(key for config in configs.values() for key in config if key != "exp_dir")
    values = {key: [_value(config, key) for config in configs.values()] for key in keys}
    differing = {key: texts for key, texts in values.items() if len(set(texts)) > 1}
    if differing:
        caption = f"{len(values) - len(differing)} other settings are the same"
        heads = [column_head("setting"), *(text_head(name) for name in configs)]
        contents.append(table(caption, heads, ([row_head(key), *map(text_cell, v)] for key, v in differing.items())))
    elif len(configs) > 1:
        contents.append(element("p", f"All {len(values)} settings are the same."))
    else:
        contents.append(element("p", "There are no two configs to compare."))
    return Section("settings", "Settings that differ", contents)


def _value(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], ensure_ascii=False, default=str) if key in config else ABSENT


def _environment_section(runs: Sequence[Run]) -> Section:
    """Show how and where each run was trained."""
    contents, environments = [], {}
    for run in runs:
        contents.append(element("h3", run.name))
        if run.environment is None:
            contents.append(missing(run.folder / "env.json", "its command and environment are not shown"))
            continue
        command = shlex.join(map(str, run.environment.get("command", [])))
        contents.append(element("pre", element("code", command)))
        environments[run.name] = {key: value for key, value in flatten(run.environment).items() if key != "command"}
    keys = dict.fromkeys(key for environment in environments.values() for key in environment)
    if keys:
        heads = [column_head("environment"), *(text_head(name) for name in environments)]
        rows = ([row_head(key), *(text_cell(each.get(key)) for each in environments.values())] for key in keys)
        contents.append(table("Where the runs were trained", heads, rows))
    return Section("commands", "Commands and environment", contents)
