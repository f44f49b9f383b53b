"""Whether a graph gives the embeddings of the network that it was made of: onnxruntime beside torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wespeaker.data.features import mean_normalise
from wespeaker.deploy.card import FEATS, WAV
from wespeaker.errors import InputError
from wespeaker.extras import require
from wespeaker.speaker_net import SpeakerNet

LIMIT = 1e-4  # of either measure; float32 and another order of sums give some 1e-7
SECONDS = (0.5, 1.0, 2.0, 3.37, 5.0, 10.0, 20.0)
BATCHES = (1, 3)


@dataclass(frozen=True)
class Parity:
    """How far embeddings b of a graph are from those of torch, a; the worst of a batch."""

    graph: str
    seconds: float  # of audio
    batch: int
    difference: float  # max |a - b| / ‖a‖
    cosine_distance: float  # 1 - cos(a, b)

    @property
    def holds(self) -> bool:
        """Whether both are within the limit; NaN is not."""
        return self.difference <= LIMIT and self.cosine_distance <= LIMIT


def compare_embeddings(torchs: NDArray[np.float32], graphs: NDArray[np.float32]) -> tuple[float, float]:
    """Return the largest ``max |a - b| / ‖a‖`` and ``1 - cos(a, b)`` of rows of (B, D) and (B, D)."""
    a, b = torchs.astype(np.float64), graphs.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    difference = np.abs(a - b).max(axis=1) / norms[0]
    distance = 1 - np.einsum("bd,bd->b", a, b) / (norms[0] * norms[1])
    return float(difference.max()), float(distance.max())


@torch.inference_mode()
def measure_parity(
    net: SpeakerNet, graphs: Mapping[str, bytes], *, rate: int, seconds: Sequence[float] = SECONDS
) -> list[Parity]:
    """Embed made speech-like sounds with torch and with graphs of either input, and compare.

    Args:
        net: on the CPU in eval mode.
        graphs: ONNX files' bytes by name.
        rate: sample rate in Hz.
        seconds: the lengths; the shortest that the network takes is added.

    Raises:
        InputError: onnxruntime is not installed, or cannot read a graph.

    """
    ort = require("onnxruntime", extra="export")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    sessions = {
        name: ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for name, graph in graphs.items()
    }
    found = []
    for length in sorted({net.min_samples, *(max(net.min_samples, round(rate * s)) for s in seconds)}):
        for batch in BATCHES:
            wav = speechlike(batch, length, rate=rate)
            feats = mean_normalise(net.fbank(wav))
            inputs = {WAV: wav.numpy(), FEATS: feats.numpy()}
            expected = net.model(feats).numpy()
            for name, session in sessions.items():
                (given,) = (value.name for value in session.get_inputs())
                (embeddings,) = session.run(None, {given: inputs[given]})
                found.append(Parity(name, length / rate, batch, *compare_embeddings(expected, embeddings)))
    return found


def check_parity(found: Sequence[Parity]) -> None:
    """Raise InputError, a sentence, where a graph is not the network that it was made of."""
    for row in found:
        if not row.holds:
            raise InputError(
                f"{row.graph} is not written: for {row.batch} x {row.seconds:g} s of audio its embeddings differ from "
                f"torch's by {row.difference:.1e} of their length and {row.cosine_distance:.1e} in cosine, where "
                f"{LIMIT:g} is allowed; embed with the run folder, or take other versions of torch and onnxruntime"
            )


def parity_table(found: Sequence[Parity]) -> str:
    """Return lines of lengths, batches, and both measures of each graph."""
    names = list(dict.fromkeys(row.graph for row in found))
    cases = list(dict.fromkeys((row.seconds, row.batch) for row in found))
    values = {(row.graph, row.seconds, row.batch): row for row in found}
    width = max(map(len, names))
    lines = ["seconds  batch  " + "  ".join(f"{name:>{width}}" for name in names)]
    for seconds, batch in cases:
        rows = (values[name, seconds, batch] for name in names)
        cells = (f"{row.difference:.1e} / {max(0.0, row.cosine_distance):.1e}" for row in rows)
        lines.append(f"{seconds:7.3f}  {batch:5}  " + "  ".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join([*lines, f"max |a - b| / ‖a‖, and 1 - cosine, of onnxruntime beside torch; allowed are {LIMIT:g}"])


def speechlike(num: int, num_samples: int, *, rate: int) -> torch.Tensor:
    """Return sounds (num, num_samples) in [-1, 1]: gliding voices with harmonics up to 3.5 kHz, syllables, noise."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(num_samples, dtype=torch.float64) / rate
    pitch = torch.linspace(110, 210, num, dtype=torch.float64).unsqueeze(1)  # Hz
    phase = 2 * math.pi * pitch * (time - 0.1 * torch.cos(1.5 * time))
    harmonics = range(1, min(17, int(rate / 2 / 253) + 1))  # below half the rate: the pitch glides up to 242 Hz
    voice = torch.stack([torch.cos(h * phase) / h for h in harmonics]).sum(dim=0)
    syllables = torch.sin(2 * math.pi * 2 * time + pitch).clamp(min=0)
    noise = torch.randn(num, num_samples, dtype=torch.float64, generator=generator)
    return (0.1 * voice * syllables + 0.003 * noise).clamp(-1, 1).float()
