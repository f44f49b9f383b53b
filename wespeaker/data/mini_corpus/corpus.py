"""Making a mini corpus: speakers, noises, rooms and trial lists, whole or not at all."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from wespeaker.data.mini_corpus.banks import BANKS, BankJob, make_bank
from wespeaker.data.mini_corpus.description import is_made, write_stamp, write_texts
from wespeaker.data.mini_corpus.layout import TRIALS_FOLDER, session_utts
from wespeaker.data.mini_corpus.processes import run_each
from wespeaker.data.mini_corpus.recording import SpeakerJob, record_speaker
from wespeaker.data.mini_corpus.settings import CorpusSettings
from wespeaker.data.mini_corpus.speakers import Speaker, draw_split
from wespeaker.data.mini_corpus.synthesizer import require_engine
from wespeaker.data.mini_corpus.trials import RecordedSpeaker, write_trial_lists
from wespeaker.errors import InputError

logger = logging.getLogger(__name__)


def make_corpus(output_dir: Path, settings: CorpusSettings, *, num_jobs: int = 2) -> bool:
    """Make a mini corpus, unless it is already there.

    The files depend on the settings only and not on the number of processes. They appear in ``output_dir`` all
    at once; until then they lie in ``<output_dir>.partial``, which an interrupted run leaves and the next one
    replaces.

    Args:
        output_dir: folder of the corpus; missing, empty, or holding the same corpus.
        settings: size and difficulty.
        num_jobs: processes at the same time, at least 1.

    Returns:
        Whether it was made: false if it was there.

    Raises:
        InputError: a setting is out of its range, the folder holds something else, or eSpeak NG is missing.
    """
    settings.check()
    if num_jobs < 1:
        raise InputError(f"the number of processes (nj) must be at least 1, got {num_jobs}")
    output_dir = output_dir.resolve()
    if is_made(output_dir, settings):
        return False
    require_engine()
    partial = output_dir.with_name(output_dir.name + ".partial")
    if partial.exists():
        logger.info("removing %s, left by an interrupted run", partial)
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _fill(partial, settings, num_jobs)
    partial.rename(output_dir)
    return True


def _fill(root: Path, settings: CorpusSettings, num_jobs: int) -> None:
    """Write everything below ``root``; the stamp comes last."""
    splits = {split: draw_split(settings, split) for split in ("train", "dev", "test")}
    speakers = [speaker for members in splits.values() for speaker in members]
    run_each(
        record_speaker,
        [(f"speaker {speaker.id}", SpeakerJob(root, settings, speaker)) for speaker in speakers],
        num_jobs=num_jobs,
        description="speakers",
    )
    run_each(
        make_bank,
        [(f"the {bank} bank", BankJob(root, settings, splits["train"], bank)) for bank in BANKS],
        num_jobs=num_jobs,
        description="noises and rooms",
    )
    trials = root / TRIALS_FOLDER
    trials.mkdir(parents=True)
    write_trial_lists(trials, [_recorded(settings, speaker) for speaker in splits["test"]])
    write_texts(root, settings, speakers)
    write_stamp(root, settings)


def _recorded(settings: CorpusSettings, speaker: Speaker) -> RecordedSpeaker:
    """Return a speaker with the keys of its utterances."""
    sessions = [session_utts(settings, speaker.id, session) for session in range(settings.num_sessions)]
    return RecordedSpeaker(speaker, sessions)
