"""How fast is the exported graph in onnxruntime beside the network in torch, from waveform to embedding?

ResNet34 with 80 mel bins and 256 numbers, random weights, one utterance at a time of 2, 5 and 20 s at 16 kHz, on one
thread. torch computes the features with its Fourier transform, the graph as a convolution. Both in one process, taken
in turn after a warm-up; CPU time of one embedding, medians. The real-time factor is CPU time over that of the audio.
Run it from the repository root: python bench/bench_export.py [--rounds 9] [--model ResNet34]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
from collections.abc import Iterator
from functools import partial

import onnxruntime
import torch
from measuring import ROOT, Row, cpu_seconds, in_turn, median_ms, ratios, record

from wespeaker.config import load_config
from wespeaker.deploy.card import EMBS, WAV
from wespeaker.deploy.graphs import backbone_graph, waveform_graph
from wespeaker.deploy.parity import speechlike
from wespeaker.speaker_net import SpeakerNet

RATE, SECONDS = 16000, (2, 5, 20)
GOAL = 1.0


def rows(model: str, rounds: int) -> Iterator[Row]:
    """Yield one row for each length and way."""
    config = load_config(ROOT / "conf" / "resnet34_qmargin.yaml", [f"model={model}"])
    net = SpeakerNet(config).eval()
    graph = waveform_graph(net.fbank, backbone_graph(net.model, num_mel_bins=80)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for seconds in SECONDS:
        wav = speechlike(1, seconds * RATE, rate=RATE)
        found = in_turn(
            {
                "torch": partial(cpu_seconds, partial(net, wav)),
                "onnxruntime": partial(cpu_seconds, partial(session.run, [EMBS], {WAV: wav.numpy()})),
            },
            rounds,
        )
        for way, times in found.items():
            ratio, span = ratios(times, found["torch"])
            cpu_ms = median_ms(times)
            yield {
                "seconds": seconds, "way": way, "cpu_ms": cpu_ms, "real_time_factor": round(cpu_ms / 1e3 / seconds, 4),
                "ratio": ratio, "span": span,
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measured embeddings of each way (default 9)")
    parser.add_argument("--model", default="ResNet34", help="backbone of 80 bins (default ResNet34)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = {"model": args.model, "rounds": args.rounds, "load": round(os.getloadavg()[0], 1)}
    worst = 0.0
    with torch.inference_mode():
        measured = rows(args.model, args.rounds)
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        for row in record("export", measured, **versions, **where):
            print(
                f"{row['seconds']:>3} s  {row['way']:<11} {row['cpu_ms']:>8} ms  real-time factor "
                f"{row['real_time_factor']:.4f}  {row['ratio']}x {row['span']}",
                flush=True,
            )
            worst = max(worst, row["ratio"] if row["way"] == "onnxruntime" else 0.0)
    print(f"export: {worst}x (goal <= {GOAL:g}x of torch's time)")


if __name__ == "__main__":
    main()
