"""What the tests share: a data folder of noise-like speakers, and ways to run the tools."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RATE = 16000
# Networks of a few hundred weights are slower with more threads, and far slower where the cores are shared.
torch.set_num_threads(1)
# At its first backward pass torch decides whether processes may be forked that have passes of their own. They may, but
# not after the exporter has traced a network, whose stand-ins for tensors count as a device.
torch.ones((), requires_grad=True).backward()


def run_command(
    *command: object, cwd: Path = ROOT, timeout: float = 600, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with this Python first on the PATH; what it prints is kept."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
        **env,
    }
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``tools/NAME.py`` with options."""
    return lambda name, *args, **env: run_command(sys.executable, ROOT / "tools" / f"{name}.py", *args, **env)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """Write (N,) or (N, channels) floats as 16-bit wav."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def encode_m4a(samples: np.ndarray, rate: int = RATE) -> bytes:
    """Return (N,) or (N, 2) floats or 16-bit integers as an m4a file (AAC)."""
    import av

    if samples.dtype.kind == "f":
        samples = (samples * 32767).astype(np.int16)
    layout, file = "mono" if samples.ndim == 1 else "stereo", io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_m4a(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """Write what `encode_m4a` gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_m4a(samples, rate))
    return path


def voice(rng: np.random.Generator, pitch_hz: float, seconds: float) -> np.ndarray:
    """A buzz of one pitch in noise: the least that a network can tell apart."""
    time = np.arange(int(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch_hz * k * time + rng.uniform(0, 6)) / k for k in range(1, 12))
    return (0.1 * buzz + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def corpora_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora in the published layouts, far too small: 6 + 3 + 3 speakers of 2 sessions x 2 utterances."""
    root = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    keys: list[str] = []
    for part, first, count in (
        ("voxceleb2/dev/wav", 12, 6),
        ("voxceleb2/test/wav", 30, 3),
        ("voxceleb1/test/wav", 270, 3),
    ):
        for speaker in range(first, first + count):
            for session in ("aaa", "bbb"):
                for number in (1, 2):
                    key = f"id{speaker:05d}/{session}/{number:05d}.wav"
                    write_wav(root / part / key, voice(rng, 80 + 7 * (speaker % 29), rng.uniform(1.3, 2.0)))
                    if part.startswith("voxceleb1"):
                        keys.append(key)
    trials = [f"{int(a[:7] == b[:7])} {a} {b}" for i, a in enumerate(keys) for b in keys[i + 1 :]]
    meta = root / "voxceleb1" / "meta"
    meta.mkdir()
    (meta / "veri_test2.txt").write_text("\n".join(trials) + "\n")
    for kind in ("noise", "music", "speech"):
        write_wav(root / f"musan/{kind}/part/{kind}-0.wav", 0.1 * rng.standard_normal(3 * RATE))
    for room in ("Room001", "Room002"):
        rir = np.exp(-np.arange(2000) / 300) * rng.standard_normal(2000) * 0.1
        rir[40] = 0.9
        write_wav(root / f"RIRS_NOISES/simulated_rirs/smallroom/{room}/{room}-0.wav", rir)
    return root


@pytest.fixture(scope="session")
def data_dir(corpora_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpora after stages 1 and 2, as raw lists and as shards."""
    from wespeaker.data.corpora import Corpora
    from wespeaker.data.manifest import read_manifest, write_raw_list
    from wespeaker.data.pack import write_shards
    from wespeaker.data.prepare import prepare_corpora

    data = tmp_path_factory.mktemp("data")
    corpora = Corpora(
        voxceleb1=corpora_dir / "voxceleb1",
        voxceleb2=corpora_dir / "voxceleb2",
        musan=corpora_dir / "musan",
        rirs=corpora_dir / "RIRS_NOISES",
    )
    prepare_corpora(corpora, data, num_jobs=1, rate=RATE)
    utterances = read_manifest(data / "vox2_dev")
    write_raw_list(data / "vox2_dev" / "raw.list", utterances)
    write_shards(data / "vox2_dev" / "shards", utterances, utts_per_shard=10, seed=1, rate=RATE)
    return data


SMALL = (
    "num_epochs=2",
    "num_avg=1",
    "dev_interval=1",
    "dataloader_args.batch_size=8",
    "dataloader_args.num_workers=0",
    "dataset_args.num_frms=60",
    "dataset_args.filter_args.min_num_frames=50",
    "model_args.m_channels=2",
    "model_args.embed_dim=16",
)
"""Changes to a config that make a run of seconds."""

TINY_FACES = (
    "--num_train_ids 6 --num_train_images 4 --num_test_ids 20 --num_test_images 3 --num_templates 2 --num_pairs 3 "
    "--size 16"
)
SMALL_FACES = (
    "num_epochs=2 num_avg=1 dev_interval=2 dataloader_args.batch_size=4 dataloader_args.num_workers=0 "
    "dataset_args.image_size=16 model_args.width=4 model_args.embed_dim=16 "
    "margin_update.increase_start_epoch=2 margin_update.fix_start_epoch=3 scheduler_args.warm_up_epoch=1"
)
"""What examples/face/run.sh renders and how it trains in a run of seconds: its --face_args and --set."""
