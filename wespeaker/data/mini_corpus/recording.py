"""What one speaker leaves on disk: each session's sentences, spoken and heard through its channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from wespeaker.data.mini_corpus.channel import SAMPLE_RATE, draw_channel
from wespeaker.data.mini_corpus.layout import SPLIT_FOLDERS, session_utts, write_wav
from wespeaker.data.mini_corpus.sentences import draw_sentence
from wespeaker.data.mini_corpus.settings import CorpusSettings
from wespeaker.data.mini_corpus.speakers import SessionVoice, Speaker, session_voice
from wespeaker.data.mini_corpus.synthesizer import Synthesizer
from wespeaker.data.randomness import generator

SILENCE = 0.003  # of full scale, 50 dB below; the engine pads sentences with zeros
MARGIN_SEC = 0.05  # of silence kept before and after the speech


@dataclass(frozen=True)
class SpeakerJob:
    """A speaker to be recorded in a corpus."""

    root: Path
    settings: CorpusSettings
    speaker: Speaker


def record_speaker(job: SpeakerJob) -> None:
    """Write all utterances of a speaker. To be called in a new process (see ``Synthesizer``)."""
    settings, speaker = job.settings, job.speaker
    with Synthesizer() as synthesizer:
        for session in range(settings.num_sessions):
            voice = session_voice(settings, speaker, session)
            channel = draw_channel(generator(settings.seed, "channel", speaker.id, session), settings.hardness)
            for utt, key in enumerate(session_utts(settings, speaker.id, session)):
                rng = generator(settings.seed, "utterance", speaker.id, session, utt)
                speech = _speak(synthesizer, settings, speaker, voice, rng)
                write_wav(job.root / SPLIT_FOLDERS[speaker.split] / key, channel.record(speech, rng))


def _speak(
    synthesizer: Synthesizer,
    settings: CorpusSettings,
    speaker: Speaker,
    voice: SessionVoice,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a new sentence at 16 kHz, cut to ``max_sec``; rate and pitch vary a little within a session."""
    speech = synthesizer.say(
        draw_sentence(rng),
        accent=speaker.accent,
        variant=voice.variant,
        rate_wpm=voice.rate_wpm * rng.uniform(0.92, 1.08),
        pitch=50 + rng.normal(0, 4 * settings.drift),
        noise_seed=int(rng.integers(1, 2**31)),
    )
    speech = resample_poly(speech, SAMPLE_RATE, synthesizer.sample_rate)
    return _trim(speech)[: int(settings.max_sec * SAMPLE_RATE)]


def _trim(speech: np.ndarray) -> np.ndarray:
    """Return the part from the first to the last sound, with a little silence around it."""
    sounds = np.flatnonzero(np.abs(speech) > SILENCE)
    if len(sounds) == 0:
        raise RuntimeError("eSpeak NG returned silence")
    margin = int(MARGIN_SEC * SAMPLE_RATE)
    return speech[max(0, sounds[0] - margin) : sounds[-1] + margin]
