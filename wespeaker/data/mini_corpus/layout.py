"""Where everything lies below a mini corpus: the folders of VoxCeleb1, VoxCeleb2, MUSAN and RIRS_NOISES."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf

from wespeaker.data.mini_corpus.channel import SAMPLE_RATE
from wespeaker.data.mini_corpus.settings import CorpusSettings
from wespeaker.data.mini_corpus.speakers import session_name

SPLIT_FOLDERS = {"train": "voxceleb2/dev/wav", "dev": "voxceleb2/test/wav", "test": "voxceleb1/test/wav"}
TRIALS_FOLDER = "voxceleb1/meta"


def session_utts(settings: CorpusSettings, speaker_id: str, session: int) -> list[str]:
    """Return the keys of a session's utterances, such as ``id10001/f3k0q8ze1ab/00001.wav``.

    Args:
        settings: of the corpus.
        speaker_id: as ``id10001``.
        session: from 0.
    """
    name = session_name(settings, speaker_id, session)
    return [f"{speaker_id}/{name}/{number:05d}.wav" for number in range(1, settings.num_utts + 1)]


def noise_file(kind: str, index: int) -> str:
    """Return the path of a noise file below the corpus; ``kind`` is ``noise``, ``music`` or ``speech``."""
    return f"musan/{kind}/synth/{kind}-synth-{index:04d}.wav"


def room_file(kind: str, index: int) -> str:
    """Return the path of a room response below the corpus; ``kind`` is ``smallroom`` or ``mediumroom``."""
    room = f"Room{index + 1:03d}"
    return f"RIRS_NOISES/simulated_rirs/{kind}/{room}/{room}-00001.wav"


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write samples in [-1, 1] as 16-bit PCM at 16 kHz; make the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
