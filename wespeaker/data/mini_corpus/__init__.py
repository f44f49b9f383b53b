"""A synthetic corpus in the folder layout of VoxCeleb, MUSAN and RIRS_NOISES, made in about a minute.

Each speaker is a voice of the formant synthesiser eSpeak NG that drifts from session to session, and each
session has its own microphone, room and noise. It shows that the recipe runs and learns; its error rates
say nothing about real speech.
"""

from wespeaker.data.mini_corpus.corpus import make_corpus
from wespeaker.data.mini_corpus.settings import CorpusSettings

__all__ = ["CorpusSettings", "make_corpus"]
