"""What is said: random English sentences, so that no two utterances share their words."""

# ruff: noqa: SIM905  (words are easier to read, and to add, as text)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DETERMINERS = "the a this that our their her his my your another each one every some no".split()
ADJECTIVES = (
    "quiet golden northern ancient careful hungry silver broken gentle purple hollow distant curious "
    "modern frozen bitter sudden narrow simple yellow velvet mighty humble rapid secret lonely clever "
    "brave warm early royal final crooked dusty eager faithful green heavy idle jolly kind lucky muddy "
    "nervous orange proud rusty shallow thirsty"
).split()
NOUNS = (
    "teacher river garden window engine doctor market bridge island letter farmer kitchen mountain winter "
    "captain museum painter village blanket shadow orchard hammer station pocket ticket leather basket "
    "singer lantern valley desert picture journey compass chicken thunder harbor umbrella telephone "
    "violin elephant potato hospital castle dragon bicycle cousin feather giant horse jacket ladder "
    "magnet needle oyster pencil rabbit soldier tower whistle"
).split()
VERBS = (
    "carried watched followed painted remembered crossed answered borrowed visited repaired measured "
    "promised collected delivered examined forgot described ordered greeted discovered avoided finished "
    "opened welcomed studied admired chased covered enjoyed hid ignored joined kicked lifted moved "
    "noticed pushed shook touched"
).split()
PREPOSITIONS = "near behind beyond across under above inside along without before after around beside through".split()
ADVERBS = "slowly often yesterday again today carefully together twice quickly rarely somehow always".split()


def draw_sentence(rng: np.random.Generator) -> str:
    """Return 10 to 14 words, such as "his golden river followed a doctor near the green tower"."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    subject = f"{pick(DETERMINERS)} {pick(ADJECTIVES)} {pick(NOUNS)}"
    if rng.random() < 0.25:
        subject = f"{rng.integers(2, 99)} {pick(NOUNS)}s and {subject}"
    place = f"{pick(PREPOSITIONS)} {pick(DETERMINERS)} {pick(ADJECTIVES)} {pick(NOUNS)}"
    ending = f" {pick(ADVERBS)}" if rng.random() < 0.4 else ""
    return f"{subject} {pick(VERBS)} {pick(DETERMINERS)} {pick(NOUNS)} {place}{ending}"
