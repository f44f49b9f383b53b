"""Who speaks: voices that differ between speakers and drift between the sessions of one speaker.

A voice is a variant file of eSpeak NG, drawn and not chosen from the stock ones. Its numbers are per cent
of the accent's own voice unless a unit is named (``docs/voices.md`` of eSpeak NG).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wespeaker.data.mini_corpus.settings import CorpusSettings
from wespeaker.data.randomness import generator

# English as spoken in seven places, then English text read by the rules of five other languages.
ACCENTS = (
    "en-us",
    "en",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "de",
    "fr",
    "it",
    "pl",
    "hi",
)
# VoxCeleb2 numbers its speakers from id00012 and VoxCeleb1 from id10001; ours are as disjoint.
FIRST_NUMBER = {"train": 1, "dev": 9001, "test": 10001}
NUM_FORMANTS = 9  # eSpeak's formant 0 is its low-frequency component, 1 to 3 make the vowels, 4 to 8 the brightness
NUM_BREATH_BANDS = 8

# eSpeak's own voices are male; a female vocal tract is about an eighth shorter, which moves all formants up.
FORMANT_SCALE = {"female": 1.12, "male": 0.985}
PITCH_HZ = {"female": 185.0, "male": 108.0}  # of a sentence that falls at its end


@dataclass(frozen=True)
class Speaker:
    """One speaker's voice on an average day.

    Attributes:
        id: as ``id10001``.
        split: ``train``, ``dev`` or ``test``.
        sex: ``female`` or ``male``.
        accent: the eSpeak language whose rules read the text.
        pitch_hz: mean fundamental frequency.
        pitch_range: width of the intonation as a part of the mean pitch.
        formants: rows of (frequency, height, width) relative to the accent's own; shape (9, 3).
        roughness: 0 to 7, alternate glottal pulses at different pitch (creak).
        flutter: 0 to 8, slow random wander of the pitch.
        voicing: level of voiced sounds in per cent.
        consonants: level of unvoiced sounds in per cent.
        breath: level of noise near each formant, 8 values, or none.
        tone: spectral tilt, as (Hz, amplitude of 255) pairs.
        rate_wpm: speaking rate in words a minute.
    """

    id: str
    split: str
    sex: str
    accent: str
    pitch_hz: float
    pitch_range: float
    formants: np.ndarray
    roughness: int
    flutter: int
    voicing: int
    consonants: int
    breath: tuple[int, ...]
    tone: tuple[tuple[int, int], ...]
    rate_wpm: int


@dataclass(frozen=True)
class SessionVoice:
    """A speaker's voice on one day: the text of an eSpeak variant file, and the rate in words a minute."""

    variant: str
    rate_wpm: float


def draw_speaker(settings: CorpusSettings, split: str, index: int) -> Speaker:
    """Return the speaker with the given place in its split.

    Sexes alternate, so that both are in each split and the hard trial list always has its pairs.

    Args:
        settings: of the corpus; ``seed`` and ``spread`` count.
        split: ``train``, ``dev`` or ``test``.
        index: from 0.
    """
    speaker_id = f"id{FIRST_NUMBER[split] + index:05d}"
    rng = generator(settings.seed, "speaker", speaker_id)
    normal = _scaled_normal(rng, settings.spread)
    sex = ("female", "male")[index % 2]
    return Speaker(
        id=speaker_id,
        split=split,
        sex=sex,
        accent=ACCENTS[rng.integers(len(ACCENTS))],
        pitch_hz=PITCH_HZ[sex] * math.exp(normal(0.13)),
        pitch_range=float(np.clip(0.35 + normal(0.12), 0.12, 0.7)),
        formants=_draw_formants(normal, FORMANT_SCALE[sex]),
        roughness=_whole(abs(normal(1.6)), 0, 5),
        flutter=_whole(2 + normal(1.5), 0, 8),
        voicing=_whole(100 + normal(18), 60, 140),
        consonants=_whole(100 + normal(22), 50, 160),
        breath=_draw_breath(rng, normal),
        tone=(
            (_whole(600 + normal(120), 300, 900), _whole(170 + normal(45), 80, 255)),
            (_whole(1200 + normal(200), 900, 1800), _whole(135 + normal(40), 60, 255)),
            (_whole(3000 + normal(300), 2000, 4000), _whole(110 + normal(35), 40, 220)),
        ),
        rate_wpm=_whole(165 + normal(22), 115, 230),
    )


def draw_split(settings: CorpusSettings, split: str) -> list[Speaker]:
    """Return all speakers of ``train``, ``dev`` or ``test`` in the order of their identifiers."""
    num_speakers = {
        "train": settings.num_train_spk,
        "dev": settings.num_dev_spk,
        "test": settings.num_test_spk,
    }[split]
    return [draw_speaker(settings, split, index) for index in range(num_speakers)]


def session_name(settings: CorpusSettings, speaker_id: str, session: int) -> str:
    """Return an eleven-character name, as the video names that are VoxCeleb's session folders."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    rng = generator(settings.seed, "session name", speaker_id, session)
    return "".join(letters[i] for i in rng.integers(len(letters), size=11))


def session_voice(settings: CorpusSettings, speaker: Speaker, session: int) -> SessionVoice:
    """Return the speaker's voice on the day of a session.

    Args:
        settings: of the corpus; ``seed`` and ``drift`` count.
        speaker: whose voice drifts.
        session: from 0.
    """
    rng = generator(settings.seed, "session voice", speaker.id, session)
    normal = _scaled_normal(rng, settings.drift)
    pitch_hz = speaker.pitch_hz * math.exp(normal(0.10))
    pitch_range = float(np.clip(speaker.pitch_range * math.exp(normal(0.25)), 0.08, 0.9))
    # eSpeak takes the lowest and the highest pitch of the intonation, and a statement falls below its mean.
    low_hz, high_hz = pitch_hz * (1 - 0.45 * pitch_range), pitch_hz * (1 + 0.55 * pitch_range)
    lines = [
        "language variant",
        f"name {speaker.id}",
        f"gender {speaker.sex}",
        f"pitch {low_hz:.0f} {high_hz:.0f}",
        *_formant_lines(speaker.formants, normal),
        f"roughness {_whole(speaker.roughness + normal(0.7), 0, 7)}",
        f"flutter {speaker.flutter}",
        f"voicing {speaker.voicing}",
        f"consonants {speaker.consonants} {speaker.consonants}",
        "tone " + " ".join(f"{hz} {amplitude}" for hz, amplitude in speaker.tone),
    ]
    if speaker.breath:
        lines.append("breath " + " ".join(map(str, speaker.breath)))
    return SessionVoice(variant="\n".join(lines) + "\n", rate_wpm=speaker.rate_wpm * math.exp(normal(0.08)))


def _scaled_normal(rng: np.random.Generator, scale: float) -> Callable[[float], float]:
    """Return a function that draws from a normal distribution of mean 0 and ``scale`` times its argument."""
    return lambda standard_deviation: float(rng.normal(0.0, scale * standard_deviation))


def _whole(value: float, low: int, high: int) -> int:
    """Return the nearest integer from ``low`` to ``high``: variant files hold whole numbers."""
    return int(np.clip(round(value), low, high))


def _draw_formants(normal: Callable[[float], float], tract_scale: float) -> np.ndarray:
    """Return (frequency, height, width) factors of each formant; shape (9, 3).

    The vocal tract's length moves all formants together and its shape each one alone.
    """
    tract = tract_scale * math.exp(normal(0.055))
    rows = [
        (tract * math.exp(normal(0.035)), math.exp(normal(0.22)), math.exp(normal(0.18))) for _ in range(NUM_FORMANTS)
    ]
    formants = np.array(rows)
    formants[0, 0] = 1.0  # the low-frequency component follows the pitch, not the vocal tract
    return formants


def _draw_breath(rng: np.random.Generator, normal: Callable[[float], float]) -> tuple[int, ...]:
    """Return the breath levels; every second speaker has none."""
    if rng.random() < 0.5:
        return ()
    return tuple(_whole(normal(5) - 1, 0, 12) for _ in range(NUM_BREATH_BANDS))


def _formant_lines(formants: np.ndarray, normal: Callable[[float], float]) -> list[str]:
    """Return the variant file's formant lines for one session's drift."""
    tract = math.exp(normal(0.02))
    lines = []
    for number, (frequency, height, width) in enumerate(formants):
        moved = frequency if number == 0 else frequency * tract * math.exp(normal(0.012))
        percents = (moved, height * math.exp(normal(0.12)), width * math.exp(normal(0.08)))
        lines.append(f"formant {number} " + " ".join(f"{100 * percent:.0f}" for percent in percents))
    return lines
