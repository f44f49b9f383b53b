"""Which utterances are compared: the mini corpus's two trial lists, in the format of VoxCeleb1's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from wespeaker.data.mini_corpus.speakers import Speaker

# A false-acceptance rate of 1e-3 is the lowest that the recipe reads off the mini corpus; ten false accepts
# at that rate are the least from which a rate is worth reading.
MIN_HARD_NONTARGETS = 10_000


@dataclass(frozen=True)
class RecordedSpeaker:
    """A speaker and the keys of its utterances, one list a session."""

    speaker: Speaker
    sessions: Sequence[Sequence[str]]

    @property
    def utts(self) -> list[str]:
        """Keys of all sessions."""
        return [utt for session in self.sessions for utt in session]


def write_trial_lists(folder: Path, test_speakers: Sequence[RecordedSpeaker]) -> None:
    """Write ``veri_test2.txt`` and ``list_test_hard2.txt``: lines of 1 (target) or 0, and two keys.

    Both have all pairs of one speaker's utterances that come from different sessions; pairs of one session
    share their channel and are trivial. Non-targets of the first are all pairs of different speakers, of
    the second those of the same sex and accent, as VoxCeleb1-H takes the same sex and nationality, or those
    of the same sex where that leaves fewer than 10,000.

    Args:
        folder: where the lists go.
        test_speakers: whose utterances are compared.
    """
    any_pair = nontarget_pairs(test_speakers, lambda one, other: True)
    same_sex_and_accent = list(
        nontarget_pairs(test_speakers, lambda one, other: (one.sex, one.accent) == (other.sex, other.accent))
    )
    same_sex = nontarget_pairs(test_speakers, lambda one, other: one.sex == other.sex)
    hard = same_sex_and_accent if len(same_sex_and_accent) >= MIN_HARD_NONTARGETS else same_sex
    for name, nontargets in (("veri_test2.txt", any_pair), ("list_test_hard2.txt", hard)):
        with open(folder / name, "w") as trials:
            trials.writelines(f"1 {enroll} {test}\n" for enroll, test in target_pairs(test_speakers))
            trials.writelines(f"0 {enroll} {test}\n" for enroll, test in nontargets)


def target_pairs(test_speakers: Sequence[RecordedSpeaker]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of each speaker's utterances that come from different sessions."""
    for speaker in test_speakers:
        for enroll_session, test_session in combinations(speaker.sessions, 2):
            yield from product(enroll_session, test_session)


def nontarget_pairs(
    test_speakers: Sequence[RecordedSpeaker], comparable: Callable[[Speaker, Speaker], bool]
) -> Iterator[tuple[str, str]]:
    """Yield the pairs of utterances of each two speakers that are comparable."""
    for one, other in combinations(test_speakers, 2):
        if comparable(one.speaker, other.speaker):
            yield from product(one.utts, other.utts)
