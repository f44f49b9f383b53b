"""WeSpeaker's configs as ours: what each key becomes, what means nothing here, and what cannot be honoured.

Both its YAML files and the ``config.yaml`` that its training leaves in a run folder, which has more keys. Where a key
is missing, it has WeSpeaker's default.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from wespeaker.errors import listing
from wespeaker.interchange.reading import Fate, Note, Reading, find, leaves
from wespeaker.interchange.rules import IDLE, OURS, RULES

logger = logging.getLogger(__name__)

# Top-level keys that WeSpeaker's training reads or saves, and that ours has not. Each of its configs has three at least
# (gpus, loss, loss_args); one of them alone in a config of ours is a mistake, and an unknown key.
MARKS = frozenset(
    {
        *("gpus", "loss", "loss_args", "enable_amp", "do_lm", "data_type", "train_data", "train_label"),
        *("reverb_data", "noise_data", "checkpoint"),
    }
)

# What makes an embedding, and what would make another if it were possible; the other keys are about training.
EMBEDDING = ("model", "model_args", "dataset_args.resample_rate", "dataset_args.fbank_args")
OTHER_EMBEDDING = ("dataset_args.frontend", "dataset_args.cmvn", "dataset_args.cmvn_args", "model_args.config_str")


@dataclass(frozen=True)
class Translation:
    """A document of WeSpeaker's as one of ours, to be checked as such, and a note on every key that it has."""

    values: dict[str, Any]
    notes: tuple[Note, ...]

    def of(self, fate: Fate) -> list[Note]:
        """Return the notes of one fate."""
        return [note for note in self.notes if note.fate == fate]

    def report(self) -> list[str]:
        """Return lines for people: what became of every key."""
        taken = [note.key for note in self.of("taken")]
        lines = [f"as they are: {', '.join(taken)}"] if taken else []
        lines += [str(note) for fate in ("becomes", "idle", "refused") for note in self.of(fate)]
        return lines + [f"this recipe's own is {note}" for note in self.of("ours")]

    def embedding(self) -> Translation:
        """Return what makes embeddings, and of training what a Config must have."""
        reading = Reading({"exp_dir": "", "projection_args": {"project_type": "softmax"}})
        for name in EMBEDDING:
            if (value := find(self.values, name)) is not None:
                reading.set(name, value)
        return Translation(reading.values, tuple(note for note in self.notes if note.key in OTHER_EMBEDDING))


def is_wespeakers(document: Mapping[Any, Any]) -> bool:
    """Tell whether a config is WeSpeaker's: it has two at least of the top-level keys that ours has not."""
    return len(MARKS & document.keys()) >= 2


def translate(document: Mapping[str, Any]) -> Translation:
    """Translate a config of WeSpeaker's.

    Args:
        document: as it was read; sections that are no mappings are left to the schema to name.

    Returns:
        Values that are not checked yet, without the keys that are idle or refused, and the notes in the order of the
        rules: what the document has no key for comes last.

    """
    reading = Reading(document)
    for rule in RULES:
        rule(reading)
    for name, text in IDLE.items():
        reading.drop(name, "idle", text)
    noted = {note.key for note in reading.notes}
    reading.notes += [Note(name, "taken") for name in leaves(document) if not _settled(name, noted)]
    if find(reading.values, "dataset_args.aug_prob") != 0:
        reading.notes += [Note(key, "ours", text) for key, text in OURS.items() if find(document, key) is None]
    return Translation(reading.values, tuple(reading.notes))


def read_wespeakers(
    document: Mapping[str, Any], where: object, overridden: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Translate a config of WeSpeaker's and log it, a warning for each key that has no meaning here.

    Args:
        document: as it was read.
        where: what the log calls it.
        overridden: names of our keys or sections that are given otherwise, so that theirs of that name are not refused.

    Returns:
        Values to be checked, and a sentence for each key that cannot be honoured.

    """
    translation = translate(document)
    logger.info("%s is read as a config of WeSpeaker's (tools/import_wespeaker.py --config shows it as ours)", where)
    for note in translation.of("becomes"):
        logger.info("%s", note)
    for note in translation.of("idle"):
        logger.warning("%s", note)
    if ours := translation.of("ours"):
        logger.info("this recipe's, not WeSpeaker's, are %s", listing([note.key for note in ours]))
    refused = [note for note in translation.of("refused") if not _settled(note.key, overridden)]
    return translation.values, [str(note) for note in refused]


def _settled(key: str, names: Collection[str]) -> bool:
    """Whether a key, or the section that it is in, is among the names."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
