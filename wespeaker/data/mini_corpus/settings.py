"""How large and how difficult a mini corpus is."""

from __future__ import annotations

from dataclasses import dataclass

from wespeaker.errors import InputError


@dataclass(frozen=True)
class CorpusSettings:
    """Everything a mini corpus depends on: equal settings give equal files.

    Attributes:
        num_train_spk: training speakers, below ``voxceleb2/dev``.
        num_dev_spk: speakers to watch the training with, below ``voxceleb2/test``.
        num_test_spk: test speakers, below ``voxceleb1/test``.
        num_sessions: sessions of each speaker (a session is what VoxCeleb calls a video).
        num_utts: utterances of each session.
        max_sec: longest utterance in seconds; sentences take three to five seconds.
        num_noise_files: files in ``musan/noise``, 8 s each.
        num_music_files: files in ``musan/music``, 12 s each.
        num_speech_files: files in ``musan/speech``, 10 s each, mixed from training speakers.
        num_rirs: room impulse responses, half of them of small and half of medium rooms.
        seed: of every draw.
        spread: how far apart the voices are; multiplies the standard deviations of ``speakers.draw_speaker``.
        drift: how much a voice changes between its sessions; multiplies those of ``speakers.session_voice``.
        hardness: how far apart the channels are, and how low the lowest signal-to-noise ratio is (``channel``).

    With the defaults of ``spread``, ``drift`` and ``hardness`` and no training, the cosine of mean log
    spectra has an equal error rate of about 40 % and a ResNet10 trained for six CPU minutes with
    augmentation one of about 4 %: far enough from both ends for systems to differ. Less drift and hardness
    make it easier.
    """

    num_train_spk: int = 160
    num_dev_spk: int = 12
    num_test_spk: int = 40
    num_sessions: int = 3
    num_utts: int = 3
    max_sec: float = 4.0
    num_noise_files: int = 30
    num_music_files: int = 12
    num_speech_files: int = 12
    num_rirs: int = 60
    seed: int = 1
    spread: float = 1.0
    drift: float = 0.7
    hardness: float = 0.6

    def check(self) -> None:
        """Raise an InputError that lists every setting which cannot be used."""
        problems = [
            f"{name} must be {wanted}, got {getattr(self, name)}"
            for name, (holds, wanted) in self._requirements().items()
            if not holds
        ]
        if problems:
            raise InputError("the mini corpus cannot be made: " + "; ".join(problems))

    def _requirements(self) -> dict[str, tuple[bool, str]]:
        """Return whether each limited setting is in its range, and the range in words."""
        return {
            # Identifiers have five digits; the three parts have the ranges of `speakers.FIRST_NUMBER`.
            "num_train_spk": (2 <= self.num_train_spk <= 8000, "from 2 to 8000 (speakers to tell apart)"),
            "num_dev_spk": (2 <= self.num_dev_spk <= 1000, "from 2 to 1000 (speakers to tell apart)"),
            "num_test_spk": (
                3 <= self.num_test_spk <= 1000,
                "from 3 to 1000 (the hard list needs two speakers of one sex)",
            ),
            "num_sessions": (
                2 <= self.num_sessions <= 100,
                "from 2 to 100 (target trials pair different sessions)",
            ),
            "num_utts": (1 <= self.num_utts <= 1000, "from 1 to 1000"),
            "max_sec": (1.0 <= self.max_sec <= 20.0, "from 1 to 20 seconds"),
            "num_noise_files": (self.num_noise_files >= 1, "at least 1"),
            "num_music_files": (self.num_music_files >= 1, "at least 1"),
            "num_speech_files": (self.num_speech_files >= 1, "at least 1"),
            "num_rirs": (self.num_rirs >= 2, "at least 2 (a small and a medium room)"),
            "spread": (self.spread >= 0, "0 or more"),
            "drift": (self.drift >= 0, "0 or more"),
            "hardness": (0 <= self.hardness <= 1.5, "from 0 to 1.5 (at 1.5, a session may be 1 dB above its noise)"),
        }
