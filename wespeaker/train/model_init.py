"""What a run takes of the head of another: the prototypes of its own classes, by their names and their number."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from wespeaker.data.dataset import SPEEDS
from wespeaker.errors import InputError, listing
from wespeaker.losses import Head
from wespeaker.train.checkpoint import HEAD_PREFIX, differences
from wespeaker.train.resume import State
from wespeaker.train.task import Facts, changes

logger = logging.getLogger(__name__)

NEW_ONES = "head_init=reinit to start with new prototypes"


def check_names(before: Facts, facts: Facts, path: Path) -> None:
    """Check that the classes of a model file are those of the data by name, since in the file they are numbers.

    Args:
        before: facts of the run of the file, see `read_facts`.
        facts: of the run that begins.
        path: of the file, for messages.

    Raises:
        InputError: they are others, or in another order.

    """
    if not before:
        logger.info("%s lies in no run folder: its classes are taken for those of the data", path)
    names = {name: value for name, value in facts.items() if isinstance(value, list) and name in before}
    if others := changes(before, names):
        raise InputError(f"{path} is of a run on other classes: {'; '.join(others)}; give its data, or {NEW_ONES}")


def head_state(head: Head, weights: State, path: Path, *, before: Facts, unperturbed: bool) -> State:
    """Return the state of a head out of a model file: of everything that counts classes, the rows of its own.

    Args:
        head: which holds some of C classes, or all.
        weights: of the file.
        path: of the file, for messages.
        before: facts of the run of the file, see `read_facts`.
        unperturbed: of the 3 C classes of a run with speed perturbation take the first C, those at speed 1; a file of
            C classes is of a run without it.

    Raises:
        InputError: the file is not of such a head, or of another number of classes.

    """
    own, classes = head.state_dict(), head.shards.num_classes
    given = {key.removeprefix(HEAD_PREFIX): x for key, x in weights.items() if key.startswith(HEAD_PREFIX)}
    spans = dict.fromkeys(head.per_class_names, (0, classes))
    spans |= dict.fromkeys(head.sharded_names, (head.shards.first, head.shards.last))
    rows = {name: len(own[name]) // (last - first) for name, (first, last) in spans.items()}  # of a class
    found = {name: _length(given.get(name)) / rows[name] for name in spans}  # classes
    perturbed = len(SPEEDS) * classes
    expected = perturbed if unperturbed and found["weight"] == perturbed else classes
    if found["weight"] not in (0, expected) or before.get("classes", expected) != expected:
        k, of_run = rows["weight"], f" of {before['classes']:,} classes" if "classes" in before else ""
        others = f" or {k * perturbed:,} of {perturbed:,} with speed classes" if unperturbed else ""
        advice = "head_init=unperturbed to leave out those of other speeds, or " if found["weight"] == perturbed else ""
        raise InputError(
            f"{path} holds {k * found['weight']:,.0f} prototypes{of_run}, expected {k * classes:,} of {classes:,} "
            f"classes{others}; give {advice}{NEW_ONES}"
        )
    for name, (first, last) in spans.items():
        if found[name] == expected:
            given[name] = given[name][first * rows[name] : last * rows[name]]
    if odd := differences(given, own):
        raise InputError(
            f"{path} does not hold the head of the config: {listing(odd, 3)} missing, left over or of another size "
            f"or kind; give {NEW_ONES}"
        )
    return given


def _length(value: Any) -> int:
    return len(value) if isinstance(value, torch.Tensor) and value.ndim else 0
