"""Where things lie in VoxCeleb1, VoxCeleb2, MUSAN and RIRS_NOISES as published, and what to say when they do not."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wespeaker.config import Config
from wespeaker.errors import InputError, listing

AUDIO_SUFFIXES = (".wav", ".flac", ".m4a")
SPEAKER = re.compile(r"id\d{5}")
NOISE_KINDS = ("noise", "speech", "music")

VOXCELEB_SOURCE = "its owners give access on request at https://www.robots.ox.ac.uk/~vgg/data/voxceleb/"
META_SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/"
MUSAN_SOURCE = "it is published as OpenSLR 17, https://www.openslr.org/17/"
RIRS_SOURCE = "it is published as OpenSLR 28, https://www.openslr.org/28/"


@dataclass(frozen=True)
class TrialList:
    """A published VoxCeleb1 trial list."""

    file: str
    name: str  # WeSpeaker's name of the prepared list
    num_trials: int
    md5: str


TRIAL_LISTS = (
    TrialList("veri_test.txt", "vox1_O", 37720, "29fc7cc1c5d59f0816dc15d6e8be60f7"),
    TrialList("veri_test2.txt", "vox1_O_cleaned", 37611, "b73110731c9223c1461fe49cb48dddfc"),
    TrialList("list_test_hard.txt", "vox1_H", 552536, "21c341b6b2168eea2634df0fb4b8fff1"),
    TrialList("list_test_hard2.txt", "vox1_H_cleaned", 550894, "857790e09d579a68eb2e339a090343c8"),
    TrialList("list_test_all.txt", "vox1_E", 581480, "b9ecf7aa49d4b656aa927a8092844e4a"),
    TrialList("list_test_all2.txt", "vox1_E_cleaned", 579818, "a53e059deb562ffcfc092bf5d90d9f3a"),
)
PUBLISHED_COUNTS = {"vox2_dev": (1_092_009, 5_994), "vox1": (153_516, 1_251)}  # utterances, speakers


@dataclass(frozen=True)
class Corpora:
    """The folders that the user named."""

    voxceleb1: Path | None
    voxceleb2: Path | None
    musan: Path | None
    rirs: Path | None


def check_corpora(corpora: Corpora, config: Config) -> None:
    """Check that every folder is there and looks like what it should be.

    MUSAN is needed only where the config asks for noise, RIRS_NOISES only where it asks for reverberation.

    Raises:
        InputError: with all that is missing, what each part is for, and where it comes from.

    """
    noise, reverb = uses_noise(config), uses_reverb(config)
    problems = [
        *_check("voxceleb2", corpora.voxceleb2, "the training speech", VOXCELEB_SOURCE, _looks_like_speech),
        *_check("voxceleb1", corpora.voxceleb1, "the test speech", VOXCELEB_SOURCE, _looks_like_speech),
    ]
    if corpora.voxceleb1 is not None and corpora.voxceleb1.is_dir() and not find_trial_lists(corpora.voxceleb1):
        problems.append(
            f"no trial list ({', '.join(item.file for item in TRIAL_LISTS)}) lies under {corpora.voxceleb1}; "
            f"they are published under {META_SOURCE}"
        )
    if noise:
        what = "the noise augmentation (to train without: dataset_args.aug_prob=0, or reverb_share=1)"
        problems += _check("musan", corpora.musan, what, MUSAN_SOURCE, _looks_like_musan)
    if reverb:
        what = "the reverberation augmentation (to train without: dataset_args.aug_prob=0, or reverb_share=0)"
        problems += _check("rirs", corpora.rirs, what, RIRS_SOURCE, _looks_like_rirs)
    if problems:
        raise InputError("\n  ".join(["the corpora are not complete:", *problems]))


def uses_noise(config: Config) -> bool:
    """Whether training adds noise."""
    return config.dataset_args.aug_prob > 0 and config.dataset_args.reverb_share < 1


def uses_reverb(config: Config) -> bool:
    """Whether training adds reverberation."""
    return config.dataset_args.aug_prob > 0 and config.dataset_args.reverb_share > 0


def _check(option: str, folder: Path | None, what: str, source: str, looks_right: object) -> list[str]:
    if folder is None:
        return [f"--{option} DIR is not given; it is for {what}; {source}"]
    if not folder.is_dir():
        return [f"--{option} {folder} is not a folder; it is for {what}; {source}"]
    assert callable(looks_right)
    hint = looks_right(folder)
    return [f"--{option} {folder} {hint}; it is for {what}; {source}"] if hint else []


def _looks_like_speech(folder: Path) -> str:
    found = next(iter(find_speech(folder)), None)
    return "" if found else "has no audio laid out as idNNNNN/<video>/NNNNN.{wav,flac,m4a}"


def _looks_like_musan(folder: Path) -> str:
    missing = [kind for kind in NOISE_KINDS if not (noise_root(folder) / kind).is_dir()]
    return f"has no folder {listing(missing)}" if missing else ""


def _looks_like_rirs(folder: Path) -> str:
    return "" if (rirs_root(folder) / "simulated_rirs").is_dir() else "has no folder simulated_rirs"


def noise_root(folder: Path) -> Path:
    """Return the folder that holds noise, speech and music: the one named, or ``musan`` in it."""
    return folder / "musan" if (folder / "musan").is_dir() else folder


def rirs_root(folder: Path) -> Path:
    """Return the folder that holds simulated_rirs: the one named, or ``RIRS_NOISES`` in it."""
    return folder / "RIRS_NOISES" if (folder / "RIRS_NOISES").is_dir() else folder


def find_files(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below a folder that have one of the suffixes, in sorted order.

    Links to folders are followed, but not back to a folder that is being walked and not twice to the same: two links
    to their own folder are a million million paths.
    """
    followed: set[str] = set()

    def is_new(subfolder: str) -> bool:
        if not os.path.islink(subfolder):
            return True
        target = os.path.realpath(subfolder)
        if target in followed or Path(os.path.realpath(os.path.dirname(subfolder))).is_relative_to(target):
            return False
        followed.add(target)
        return True

    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in sorted(subfolders) if is_new(os.path.join(folder, name))]
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(folder) / name


def find_speech(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (key, file) of all audio laid out as ``…/idNNNNN/<video>/NNNNN.ext``; the key ends in ``.wav``."""
    for path in find_files(root, AUDIO_SUFFIXES):
        spk, video = path.parts[-3:-1]
        if SPEAKER.fullmatch(spk):
            yield f"{spk}/{video}/{path.stem}.wav", path


def in_test_part(path: Path, root: Path) -> bool:
    """Whether a file of VoxCeleb2 lies in its test part (``test/…`` below the root)."""
    return any(part in ("test", "vox2_test") for part in path.relative_to(root).parts[:-3])


def find_trial_lists(root: Path) -> dict[str, Path]:
    """Return the published trial lists below a VoxCeleb1 folder: prepared name to file."""
    names = {item.file: item.name for item in TRIAL_LISTS}
    return {names[path.name]: path for path in find_files(root, (".txt",)) if path.name in names}


def is_published_list(name: str, path: Path) -> bool:
    """Whether a trial list is the published one, but for line ends (copies with CRLF go round)."""
    wanted = next(item.md5 for item in TRIAL_LISTS if item.name == name)
    lines = path.read_bytes().splitlines()
    return hashlib.md5(b"".join(line + b"\n" for line in lines)).hexdigest() == wanted
