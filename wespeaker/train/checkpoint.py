"""Model files: flat keys as WeSpeaker's, written whole or not at all, read without executing, averaged over epochs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from wespeaker.errors import InputError, listing
from wespeaker.files import replacing

AVERAGE = "avg_model.pt"
ZIP_START = b"PK\x03\x04"
HEAD_PREFIX = "projection."  # of the head's keys; the backbone's are bare
COUNTER = "num_batches_tracked"  # of batch normalisation: how many batches its statistics saw


def model_path(models: Path, epoch: int) -> Path:
    """Return where the weights after an epoch lie."""
    return models / f"model_{epoch}.pt"


def weights_of(folder: Path) -> Path:
    """Return where the averaged weights of a run folder lie: in ``models``, or beside config.yaml, as published.

    Raises:
        InputError: in neither place.

    """
    places = (folder / "models" / AVERAGE, folder / AVERAGE)
    for path in places:
        if path.is_file():
            return path
    raise InputError(
        f"neither {places[0]} nor {places[1]} exists; average the epochs of a run with tools/average_model.py, "
        f"or name the weights with --checkpoint"
    )


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file of torch so that it is complete on disk before it has its name.

    Raises:
        OSError: it cannot be written.

    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(content, file)


def write(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write what torch saves to an open file, of which ``write`` and ``flush`` are called.

    Raises:
        OSError: it cannot be written.

    """
    try:
        torch.save(content, file)
    except RuntimeError as error:  # its writer finds the archive incomplete then, and hides that the disk is full
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a file of torch to the CPU; only tensors and plain values, never code.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are looked at.

    Raises:
        InputError: the file is missing, damaged, or holds something else.

    """
    if not path.is_file():
        raise InputError(f"{path} (a checkpoint) does not exist; run the training stage first or name another one")
    with open(path, "rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:  # torch would try readers of its oldest files
            raise InputError(f"{path} cannot be read as a checkpoint: it is no file of torch since 1.6 (a zip file)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch's reader raises nearly anything on damaged bytes, a KeyError for plain text
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"{path} cannot be read as a checkpoint: {type(error).__name__} {reason}".rstrip()) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected a dict of weights")
    return content


def load_backbone(backbone: nn.Module, weights: dict[str, Any]) -> None:
    """Fill a backbone from the weights of a model file; the head among them is passed over.

    Raises:
        InputError: keys, shapes or kinds of numbers differ; the first of them are named. (A network that is filled in
            part gives embeddings that look like embeddings.)

    """
    backbone.load_state_dict(backbone_weights(backbone, weights))


def backbone_weights(backbone: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    """Return those of the weights of a model file that fill a backbone, which may be without storage (``meta``).

    Raises:
        InputError: as `load_backbone`.

    """
    own = backbone.state_dict()
    given = {
        key: _whole(value) if str(key).endswith(COUNTER) else value
        for key, value in weights.items()
        if not str(key).startswith(HEAD_PREFIX)
    }
    odd = sorted(own.keys() ^ given.keys(), key=str)
    odd += [key for key in own if key in given and not _fits(given[key], own[key])]
    if odd:
        raise InputError(
            f"the weights do not fit the network of the config: {listing(odd, 3)} missing, left over or of another "
            f"size or kind; is this the checkpoint of this run folder?"
        )
    return given


def _whole(count: object) -> object:
    """Return a counter as the integer that it was before WeSpeaker's average divided it; anything else as it is."""
    if isinstance(count, torch.Tensor) and count.is_floating_point() and count.ndim == 0 and count.isfinite():
        return count.round().long()
    return count


def _fits(given: object, own: torch.Tensor) -> bool:
    """Whether a weight can take the place of another: of its shape and layout, and of fractions where that one is."""
    return (
        isinstance(given, torch.Tensor)
        and (given.shape, given.layout) == (own.shape, own.layout)
        and given.is_floating_point() == own.is_floating_point()
    )


def epochs_saved(models: Path) -> list[int]:
    """Return the epochs of which there is a ``model_<epoch>.pt``, in order."""
    names = (re.fullmatch(r"model_(\d+)\.pt", path.name) for path in models.glob("model_*.pt"))
    return sorted(int(match[1]) for match in names if match)


def average_models(models: Path, num_avg: int) -> Path:
    """Average the weights of the last epochs into ``avg_model.pt``.

    Batch normalisation's counters, the only integers, are taken from the last epoch.

    Args:
        models: the folder with ``model_<epoch>.pt``.
        num_avg: how many epochs; they must follow each other.

    Returns:
        The file written.

    Raises:
        InputError: there are fewer, or they are not of one network.

    """
    saved = epochs_saved(models)
    if not saved:
        raise InputError(f"there is no model_<epoch>.pt in {models}; run the training stage first")
    wanted = list(range(saved[-1] - num_avg + 1, saved[-1] + 1))
    missing = sorted(set(wanted) - set(saved))
    if missing:
        raise InputError(
            f"averaging {num_avg} epochs needs model_{missing[0]}.pt in {models}, found epochs {saved}; "
            f"lower num_avg or train on"
        )
    states = {epoch: load(model_path(models, epoch)) for epoch in wanted}
    for epoch, state in states.items():
        if odd := differences(state, states[wanted[-1]]):
            raise InputError(
                f"model_{epoch}.pt and model_{wanted[-1]}.pt in {models} are not of one network, or damaged: "
                f"{listing(odd, 3)} missing, left over or of another size or kind; lower num_avg, or train again"
            )
    save(_mean(list(states.values())), models / AVERAGE)
    return models / AVERAGE


def differences(state: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Name the weights of ``state`` that cannot stand for those of ``last``, and those that only one has."""
    odd = [key for key, own in last.items() if not (isinstance(own, torch.Tensor) and _fits(state.get(key), own))]
    return sorted({*odd, *(state.keys() - last.keys())}, key=str)


def _mean(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Average in float64; the states must be alike."""
    return {
        key: torch.stack([state[key].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[-1].items()
    }
