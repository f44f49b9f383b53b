"""The files to augment with: MUSAN's noise, music and speech, and room responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from wespeaker.data.mini_corpus.layout import SPLIT_FOLDERS, noise_file, room_file, session_utts, write_wav
from wespeaker.data.mini_corpus.noises import draw_music, draw_noise, mix_speech
from wespeaker.data.mini_corpus.rooms import draw_room_response
from wespeaker.data.mini_corpus.settings import CorpusSettings
from wespeaker.data.mini_corpus.speakers import Speaker
from wespeaker.data.randomness import generator

NOISE_SEC = 8.0
MUSIC_SEC = 12.0
SPEECH_SEC = 10.0
MAX_VOICES = 7  # of a file of speech; the recipes mix three to seven for babble
PEAK = 0.7  # of full scale; augmentation scales by power and not by peak


@dataclass(frozen=True)
class BankJob:
    """A bank to be made in a corpus whose training speakers are recorded."""

    root: Path
    settings: CorpusSettings
    train_speakers: Sequence[Speaker]
    bank: str


def make_bank(job: BankJob) -> None:
    """Write all files of one of ``BANKS``."""
    BANKS[job.bank](job)


def _make_noise(job: BankJob) -> None:
    for index in range(job.settings.num_noise_files):
        noise = draw_noise(generator(job.settings.seed, "noise", index), NOISE_SEC)
        _write(job.root / noise_file("noise", index), noise)


def _make_music(job: BankJob) -> None:
    for index in range(job.settings.num_music_files):
        music = draw_music(generator(job.settings.seed, "music", index), MUSIC_SEC)
        _write(job.root / noise_file("music", index), music)


def _make_speech(job: BankJob) -> None:
    """Mix voices of training speakers only, so that no voice of a test is heard in training."""
    for index in range(job.settings.num_speech_files):
        rng = generator(job.settings.seed, "speech", index)
        num_voices = min(int(rng.integers(1, MAX_VOICES + 1)), len(job.train_speakers))
        voices = rng.choice(len(job.train_speakers), size=num_voices, replace=False)
        recordings = [_read_any_utt(job, job.train_speakers[voice], rng) for voice in voices]
        _write(job.root / noise_file("speech", index), mix_speech(rng, recordings, SPEECH_SEC))


def _make_rooms(job: BankJob) -> None:
    for index in range(job.settings.num_rirs):
        kind = ("smallroom", "mediumroom")[index % 2]
        response = draw_room_response(generator(job.settings.seed, "room", index), kind)
        _write(job.root / room_file(kind, index // 2), response)


BANKS = {"noise": _make_noise, "music": _make_music, "speech": _make_speech, "rooms": _make_rooms}


def _read_any_utt(job: BankJob, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Return a random recording of a training speaker; shape (num_samples,)."""
    session = int(rng.integers(job.settings.num_sessions))
    key = session_utts(job.settings, speaker.id, session)[rng.integers(job.settings.num_utts)]
    recording, _ = sf.read(job.root / SPLIT_FOLDERS["train"] / key)
    return recording


def _write(path: Path, samples: np.ndarray) -> None:
    """Write samples with the banks' peak."""
    write_wav(path, samples * (PEAK / np.abs(samples).max()))
