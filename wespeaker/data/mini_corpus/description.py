"""What a mini corpus says about itself: its stamp, README, licence and list of speakers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from wespeaker.data.mini_corpus.settings import CorpusSettings
from wespeaker.data.mini_corpus.speakers import Speaker
from wespeaker.data.mini_corpus.trials import MIN_HARD_NONTARGETS
from wespeaker.documents import write_json
from wespeaker.errors import InputError

STAMP = "corpus.json"
VERSION = 1  # raise it when the same settings make other files

LICENSE = """\
CC0 1.0 Universal (https://creativecommons.org/publicdomain/zero/1.0/)

To the extent possible under law, the makers of this corpus have waived all copyright and related rights to it.
It is synthetic: no person was recorded. The speech was made with eSpeak NG; that program is licensed under the
GPL-3.0-or-later and is not part of this folder, and its licence does not extend to the sound it makes.
"""

README = """\
# Synthetic mini corpus (eSpeak NG)

Every voice, noise and room here is synthetic. The folders are those of the published corpora, so that the
recipe treats it like them. `corpus.json` has all settings, `speakers.tsv` the sex and accent of each
speaker.

| folder | holds |
|---|---|
| `voxceleb2/dev` | {num_train_spk} training speakers |
| `voxceleb2/test` | {num_dev_spk} speakers to watch the training with |
| `voxceleb1/test` | {num_test_spk} test speakers |
| `voxceleb1/meta` | two trial lists, see below |
| `musan` | {num_noise_files} files of noise, {num_music_files} of music, {num_speech_files} of mixed training voices |
| `RIRS_NOISES` | {num_rirs} room responses |

Each speaker has {num_sessions} sessions of {num_utts} utterances, at most {max_sec} s long, 16 kHz, 16 bit.

## Trials
Target trials pair different sessions only: utterances of one session share their channel, and that is trivial.
Both lists have all of them. `veri_test2.txt` adds all pairs of different speakers, `list_test_hard2.txt`
those of the same sex and accent, or of the same sex where that leaves fewer than {min_hard_nontargets}.

## How it is made
- A speaker is a random voice of the formant synthesiser eSpeak NG: pitch, nine formants, roughness, breath,
  spectral tilt, rate and one of twelve accents.
- In each session the voice has drifted a little, and it is heard through another microphone, room and noise, at
  times through a telephone codec.
- Each utterance is a new random sentence.
- The rooms and noises for augmentation come from other models than those of the sessions.

## Its limits
- Error rates on it show that a pipeline learns and ranks. They say nothing about real speech; report them as
  "synthetic mini corpus".
- The voices are those of one formant synthesiser; real voices differ in many more ways.
- The difficulty was set by looking at the error rates of the test speakers.
- Simulated noises and rooms of the training are still closer to those of the test than real ones would be,
  so the gain from augmentation is optimistic.
- The same settings give the same files with any number of processes; across processors this is not promised.
"""


def write_stamp(root: Path, settings: CorpusSettings) -> None:
    """Write the settings, and the versions of what made the files."""
    made_with = {package: metadata.version(package) for package in ("espeakng-loader", "numpy", "scipy")}
    stamp = {"corpus": "synthetic mini corpus", **_wanted(settings), "made_with": made_with}
    write_json(root / STAMP, stamp)


def is_made(root: Path, settings: CorpusSettings) -> bool:
    """Return whether a folder holds the corpus of these settings; false if it is missing or empty.

    Raises:
        InputError: the folder holds something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "name another folder, or remove this one to make it anew"
    try:
        stamp = json.loads((root / STAMP).read_text())
        found = {"version": stamp["version"], "settings": dict(stamp["settings"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{root} exists and has no readable {STAMP}, so it is no mini corpus; {advice}") from None
    differences = _differences(found, _wanted(settings))
    if differences:
        raise InputError(f"{root} holds a mini corpus with other settings ({'; '.join(differences)}); {advice}")
    return True


def write_texts(root: Path, settings: CorpusSettings, speakers: Sequence[Speaker]) -> None:
    """Write README, licence and the list of speakers."""
    (root / "README.md").write_text(README.format(**asdict(settings), min_hard_nontargets=MIN_HARD_NONTARGETS))
    (root / "LICENSE").write_text(LICENSE)
    rows = [("id", "split", "sex", "accent")]
    rows += [(speaker.id, speaker.split, speaker.sex, speaker.accent) for speaker in speakers]
    (root / "speakers.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


def _wanted(settings: CorpusSettings) -> dict[str, Any]:
    """Return what must be equal for two corpora to be equal."""
    return {"version": VERSION, "settings": asdict(settings)}


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return a phrase for each setting that differs."""
    there, asked = ({"version": stamp["version"], **stamp["settings"]} for stamp in (found, wanted))
    return [
        f"{name}: {there.get(name)} there, {asked.get(name)} asked for"
        for name in sorted(there | asked)
        if there.get(name) != asked.get(name)
    ]
