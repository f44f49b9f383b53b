"""Dev trials during training: the error of the network as it is, on speakers it does not train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wespeaker.data.manifest import Utterance, read_manifest
from wespeaker.data.trials import Trials, read_trials
from wespeaker.errors import InputError, listing
from wespeaker.eval.extraction import embed_utterances
from wespeaker.eval.metrics import eer, error_tradeoff
from wespeaker.eval.scoring import cosine_scores
from wespeaker.speaker_net import SpeakerNet


@dataclass(frozen=True)
class DevTrials:
    """Trials and the utterances that they name; for showing progress, never for choosing a model."""

    trials: Trials
    utterances: list[Utterance]


def read_dev_trials(trials_path: Path, data_dir: Path) -> DevTrials:
    """Read a trial list and the manifest of its utterances.

    Raises:
        InputError: the list names utterances that the manifest does not have.

    """
    trials = read_trials(trials_path)
    by_key = {utt.key: utt for utt in read_manifest(data_dir)}
    unknown = sorted(set(trials.utts) - by_key.keys())
    if unknown:
        raise InputError(f"{trials_path} names {len(unknown)} utterances that {data_dir} lacks: {listing(unknown)}")
    return DevTrials(trials, [by_key[key] for key in trials.utts])


def dev_eer(net: SpeakerNet, dev: DevTrials, *, rate: int, num_workers: int) -> float:
    """Return the EER, in [0, 1], of the dev trials by cosine after subtraction of the mean of their utterances.

    Args:
        net: in evaluation mode.
        dev: the trials.
        rate: sample rate of the network in Hz.
        num_workers: processes that read audio.

    """
    pairs = list(embed_utterances(net, dev.utterances, rate=rate, num_workers=num_workers, desc="dev trials"))
    embeddings = np.stack([embedding for _, embedding in pairs])
    scores = cosine_scores(
        dev.trials, [key for key, _ in pairs], embeddings, mean_vec=embeddings.mean(axis=0, dtype=np.float64)
    )
    return eer(error_tradeoff(scores, dev.trials.is_target))
