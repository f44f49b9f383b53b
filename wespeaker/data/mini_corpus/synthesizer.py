"""How text becomes speech: the eSpeak NG engine, through ctypes.

The engine is GPL-3.0-or-later and no part of this package: ``espeakng-loader`` brings the compiled library
and its data, and it is loaded only when a corpus is made. What it says is free of its licence.
"""

from __future__ import annotations

import ctypes
import importlib.util
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from wespeaker.errors import InputError

ESPEAKNG_LOADER_VERSION = "0.2.4"  # eSpeak NG 1.52; another version says the same words in slightly other samples

# Constants of espeak_ng/speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3
_EE_OK = 0

_SAMPLES_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def require_engine() -> None:
    """Raise an InputError that says what to install if the engine is missing."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise InputError(
            "the mini corpus is spoken by eSpeak NG, which is not installed; run "
            f"`pip install espeakng-loader=={ESPEAKNG_LOADER_VERSION}` (run.sh does so in its stage 0)"
        )


class Synthesizer:
    """One eSpeak NG engine; a context manager.

    The engine has state that runs on from one sentence to the next and that no call resets: for the same
    samples in any order of work, each speaker needs a new engine, that is a new process.

    Attributes:
        sample_rate: of what ``say`` returns, in Hz.
    """

    sample_rate: int

    def __enter__(self) -> Synthesizer:
        """Load the library with a data folder of its own, to which voices can be added."""
        import espeakng_loader

        self._folder = tempfile.TemporaryDirectory(prefix="espeak-")
        self._variants = _overlay(Path(espeakng_loader.get_data_path()), Path(self._folder.name))
        self._num_variants = 0
        self._samples: list[np.ndarray] = []
        self._callback = _SAMPLES_CALLBACK(self._collect)  # kept: the library holds only its address
        self._library = _declare(ctypes.CDLL(espeakng_loader.get_library_path()))
        self.sample_rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, self._folder.name.encode(), _INITIALIZE_DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG cannot use the data of {espeakng_loader.get_data_path()}")
        self._library.espeak_SetSynthCallback(self._callback)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the data folder. The library stays: it can be loaded once in a process."""
        self._folder.cleanup()

    def say(
        self, text: str, *, accent: str, variant: str, rate_wpm: float, pitch: float, noise_seed: int
    ) -> np.ndarray:
        """Return spoken text.

        Args:
            text: English words.
            accent: the eSpeak language whose rules read it.
            variant: the text of a voice variant file.
            rate_wpm: speaking rate in words a minute.
            pitch: from 0 to 100; 50 is the variant's own.
            noise_seed: of the engine's generator (breath, flutter).

        Returns:
            Samples in [-1, 1) at ``sample_rate``; float32, shape (num_samples,).

        Raises:
            RuntimeError: the engine refuses the voice or says nothing.
        """
        self._select_voice(accent, variant)
        self._library.espeak_ng_SetRandSeed(noise_seed)
        self._library.espeak_SetParameter(_PARAMETER_RATE, round(rate_wpm), 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, round(pitch), 0)
        self._samples.clear()
        encoded = text.encode()
        status = self._library.espeak_Synth(
            encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        self._library.espeak_Synchronize()
        if status != _EE_OK or not self._samples:
            raise RuntimeError(f"eSpeak NG (status {status}) said nothing for {text!r} in the accent {accent!r}")
        return np.concatenate(self._samples).astype(np.float32) / 32768

    def _select_voice(self, accent: str, variant: str) -> None:
        """Write the variant under a new name, since the engine remembers files by name, and switch to it."""
        self._num_variants += 1
        name = f"v{self._num_variants}"
        path = self._variants / name
        path.write_text(variant)
        status = self._library.espeak_SetVoiceByName(f"{accent}+{name}".encode())
        path.unlink()
        if status != _EE_OK:
            raise RuntimeError(f"eSpeak NG refused the voice of accent {accent!r} with status {status}")

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], num_samples: int, events: int) -> int:
        """Copy a block of samples; the engine reuses its buffer. 0 asks for more."""
        if samples and num_samples > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0


def _overlay(data: Path, folder: Path) -> Path:
    """Mirror the data by links below ``folder`` and return an empty folder for voice variants."""
    mirror = folder / "espeak-ng-data"
    variants = mirror / "voices" / "!v"
    variants.mkdir(parents=True)
    for source, target, own in ((data, mirror, "voices"), (data / "voices", mirror / "voices", "!v")):
        for entry in source.iterdir():
            if entry.name != own:
                (target / entry.name).symlink_to(entry)
    return variants


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """State the argument types of the functions used here; all return an int."""
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetSynthCallback.argtypes = [_SAMPLES_CALLBACK]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed.restype = None
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_void_p,
    ]
    return library
