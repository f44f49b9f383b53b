"""How many more training examples does one loader process make than the straightforward chain?

16 kHz utterances of 8 s on average, as wav and as flac, crops of 2 s, speeds .9, 1 and 1.1, noise (files of 195 s,
MUSAN's mean) or reverberation (responses of 1 s) on 60 % of them, 80 mel bins. The straightforward chain decodes the
whole file, changes the speed of all of it, crops, decodes a whole noise file, convolves in full with scipy, and
takes torchaudio's Kaldi features of one example after the other; for the speed it uses torchaudio or scipy, whichever
turns out the faster here. Both chains draw from the same distributions. One thread, one process, the files in the
system's cache, taken in turn after a warm-up; CPU time of batches, medians. And the wall-clock time to the first
batch of 32 on 1,440 utterances, the size of the mini corpus: reading list and banks, starting one loader process,
and its first batch; not the imports and not the network. Run it from the repository root:
python bench/bench_loader.py [--rounds 7]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from measuring import Row, cpu_seconds, in_turn, median_ms, ratios, record
from scipy.signal import convolve, lfilter, resample_poly
from torch.utils.data import DataLoader

from wespeaker.config import DatasetArgs
from wespeaker.data.augment import SNR_DB, Augmenter
from wespeaker.data.bank import read_bank
from wespeaker.data.dataset import TrainingSet, collate, make_fbank, read_training_list
from wespeaker.data.features import mean_normalise
from wespeaker.data.sampler import RunSampler

RATE, CROP, BATCH = 16000, 32_240, 128
NUM_UTTS, NUM_NOISES, NUM_RIRS = 64, 9, 60
MINI_UTTS, MINI_SEC = 1440, 3.5
GOAL, FIRST_BATCH_GOAL = 5.0, 2.0
SPEEDS = (1.0, 0.9, 1.1)

Perturb = Callable[[np.ndarray, float], np.ndarray]


def sound(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Make noise with the spectrum of speech, more or less, which flac packs as it packs speech."""
    return 0.05 * lfilter([1.0], [1.0, -1.2, 0.4], rng.standard_normal(int(seconds * RATE)))


def write(path: Path, wav: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav.clip(-1, 1), RATE, subtype="PCM_16")
    return path


def make_corpus(folder: Path) -> None:
    """Write utterances of 4 to 12 s, noises, responses, and a set of the mini corpus's size, with their lists."""
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"wav": [], "flac": [], "mini": []}

    def add(name: str, key: str, wav: np.ndarray, suffix: str = "wav") -> None:
        path = write(folder / name / f"{key}.{suffix}", wav)
        entry = {"key": f"{key}.wav", "spk": key[:7], "wav": str(path), "num_samples": len(wav), "sample_rate": RATE}
        lists[name].append(json.dumps(entry))

    for i in range(NUM_UTTS):
        wav = sound(rng, rng.uniform(4, 12))
        for suffix in ("wav", "flac"):
            add(suffix, f"id{i % 8:05d}/a/{i:05d}", wav, suffix)
    for i in range(MINI_UTTS):
        add("mini", f"id{i // 9:05d}/a/{i:05d}", sound(rng, MINI_SEC))
    for name, lines in lists.items():
        (folder / f"{name}.list").write_text("\n".join(lines) + "\n")
    noises = [f"{kind}/x/{i}.wav" for i in range(NUM_NOISES // 3) for kind in SNR_DB]
    rirs = [f"simulated_rirs/{i}.wav" for i in range(NUM_RIRS)]
    for key in noises:
        write(folder / "musan" / key, sound(rng, 195))
    for key in rirs:
        rir = 0.1 * rng.standard_normal(RATE) * np.exp(-np.arange(RATE) / 2000)
        rir[:40], rir[40] = 0, 0.9
        write(folder / "rirs" / key, rir)
    for name, keys in (("musan", noises), ("rirs", rirs)):
        (folder / f"{name}.scp").write_text("".join(f"{key} {folder / name / key}\n" for key in keys))


def training_set(folder: Path, name: str) -> TrainingSet:
    """Return the project's own, as training makes it from the defaults of the config."""
    args = DatasetArgs()
    augmenter = Augmenter(
        noises=read_bank(folder / "musan.scp"),
        rirs=read_bank(folder / "rirs.scp"),
        aug_prob=args.aug_prob,
        reverb_share=args.reverb_share,
        rate=args.resample_rate,
    )
    return TrainingSet(read_training_list(folder / f"{name}.list", "raw", args), args, augmenter, seed=0)


def ours(dataset: TrainingSet, epochs: Iterator[int], *, features: bool) -> None:
    """Make a batch, each time of another epoch."""
    epoch = next(epochs)
    batch = collate([dataset[epoch, i % len(dataset)] for i in range(BATCH)])
    if features:
        mean_normalise(FBANK(batch.wav))


FBANK = make_fbank(DatasetArgs())


def speed_with_torchaudio(wav: np.ndarray, speed: float) -> np.ndarray:
    return torchaudio.functional.speed(torch.from_numpy(wav), RATE, speed)[0].numpy()


def speed_with_scipy(wav: np.ndarray, speed: float) -> np.ndarray:
    return resample_poly(wav, 10, round(10 * speed)).astype(np.float32)


def straightforward_example(
    path: str, noises: list[tuple[str, str]], rirs: list[str], rng: np.random.Generator, perturb: Perturb
) -> torch.Tensor:
    """Make the features of one example as one would write it down."""
    wav, _ = soundfile.read(path, dtype="float32")
    speed = SPEEDS[rng.integers(3)]
    if speed != 1.0:
        wav = perturb(wav, speed)
    start = rng.integers(len(wav) - CROP + 1)
    wav = wav[start : start + CROP]
    if rng.random() < 0.6:
        if rng.random() < 0.5:
            rir, _ = soundfile.read(rirs[rng.integers(len(rirs))], dtype="float32")
            wav = convolve(wav, rir / np.linalg.norm(rir))[:CROP]
        else:
            kind, path = noises[rng.integers(len(noises))]
            noise, _ = soundfile.read(path, dtype="float32")
            start = rng.integers(len(noise) - CROP + 1)
            noise = noise[start : start + CROP]
            snr_db = rng.uniform(*SNR_DB[kind])
            wav = wav + np.sqrt(np.mean(wav**2) / np.mean(noise**2) / 10 ** (snr_db / 10)) * noise
    feats = torchaudio.compliance.kaldi.fbank(
        torch.from_numpy(wav)[None] * 32768, num_mel_bins=80, sample_frequency=RATE, window_type="hamming",
        dither=1.0, use_energy=False,
    )  # fmt: skip
    return feats - feats.mean(dim=0)


def straightforward(folder: Path, name: str, perturb: Perturb, rng: np.random.Generator) -> None:
    """Make the features of a batch, one after the other."""
    paths = [json.loads(line)["wav"] for line in (folder / f"{name}.list").read_text().splitlines()]
    banks = [[line.split() for line in (folder / f"{bank}.scp").read_text().splitlines()] for bank in ("musan", "rirs")]
    noises = [(key.split("/")[0], path) for key, path in banks[0]]
    rirs = [path for _, path in banks[1]]
    torch.stack([straightforward_example(paths[i % len(paths)], noises, rirs, rng, perturb) for i in range(BATCH)])


def first_batch(folder: Path) -> float:
    """Return the seconds until there is a batch of 32, lists and banks read anew, one loader process."""
    start = time.perf_counter()
    dataset = training_set(folder, "mini")
    sampler = RunSampler(len(dataset), batch_size=32, num_epochs=28, seed=0)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=1, prefetch_factor=4)
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - start
    del batches  # which ends the loader process
    return seconds


def rows(folder: Path, rounds: int) -> Iterator[Row]:
    epochs, rng = count(1), np.random.default_rng(1)
    for name in ("wav", "flac"):
        dataset = training_set(folder, name)
        ways = {
            "ours": partial(ours, dataset, epochs, features=True),
            "ours, without features": partial(ours, dataset, epochs, features=False),
            "straightforward, torchaudio": partial(straightforward, folder, name, speed_with_torchaudio, rng),
            "straightforward, scipy": partial(straightforward, folder, name, speed_with_scipy, rng),
        }
        times = in_turn({way: partial(cpu_seconds, work) for way, work in ways.items()}, rounds)
        for way, seconds in times.items():
            ratio, span = ratios(seconds, times["ours"])
            per_example = [value / BATCH for value in seconds]
            yield {"files": name, "way": way, "cpu_ms_per_utt": median_ms(per_example), "ratio": ratio, "span": span}
    seconds = [first_batch(folder) for _ in range(rounds)]
    span = [round(min(seconds), 3), round(max(seconds), 3)]
    yield {"files": "mini", "way": "first batch", "seconds": round(statistics.median(seconds), 3), "span": span}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured batches of each way (default 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    where = {"torch": torch.__version__, "torchaudio": torchaudio.__version__, "numpy": np.__version__}
    where |= {"soundfile": soundfile.__version__, "batch": BATCH, "rounds": args.rounds}
    slowdowns: dict[str, list[float]] = {"wav": [], "flac": []}
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder))
        for row in record("loader", rows(Path(folder), args.rounds), **where):
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if row["way"].startswith("straightforward"):
                slowdowns[row["files"]].append(row["ratio"])
            if row["way"] == "first batch":
                print(f"first batch: {row['seconds']} s (goal <= {FIRST_BATCH_GOAL:g} s)")
    wav, flac = min(slowdowns["wav"]), min(slowdowns["flac"])
    print(f"loader: {wav}x the examples per second for wav (goal >= {GOAL:g}x), {flac}x for flac")


if __name__ == "__main__":
    main()
