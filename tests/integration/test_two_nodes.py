"""Two nodes, which are two torchrun agents on this machine, that run.sh is started on with the same options."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, run_command

from wespeaker.data.manifest import read_manifest
from wespeaker.data.pack import write_shards

PORTS = 10  # that run.sh may use after the one it is given

FILES = ("mean_vec.npy", "spk_xvector.ark", "spk_xvector.scp", "weights.json", "xvector.ark", "xvector.scp")


def free_port():
    """Return the first of some ports in a row that nobody listens at."""
    for first in range(29400 + 50 * (os.getpid() % 500), 65000, PORTS):
        taken = 0
        for port in range(first, first + PORTS):
            with socket.socket() as attempt:
                taken += attempt.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            return first
    raise AssertionError("no free ports")


def options(data_dir, exp_dir, *more):
    return [
        "bash", "run.sh", "--data", data_dir, "--exp_dir", exp_dir, "--stop_stage", "4", "--data_type", "raw",
        "--set", " ".join([*SMALL, *more]),
    ]  # fmt: skip


def start_node(command, port, log):
    """Start a node; what it prints goes to a file."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
    }
    nodes = ["--num_nodes", "2", "--HOST_NODE_ADDR", f"127.0.0.1:{port}"]
    with open(log, "w") as file:
        return subprocess.Popen(
            [str(part) for part in (*command, *nodes)], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def two_nodes(data_dir, workplace):
    """Training and extraction on two nodes; what they printed."""
    port, logs = free_port(), [workplace / "node0.log", workplace / "node1.log"]
    command = [*options(data_dir, workplace / "nodes"), "--stage", "3"]
    nodes = [start_node(command, port, log) for log in logs]
    codes = [node.wait(timeout=300) for node in nodes]
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], "\n".join(said)
    return said


def contents(folder):
    """Return the files below a folder but locks, without the paths in them: of an ark, of the weights that made it."""
    places = [str(place).encode() for place in (folder.resolve(), folder.resolve().parent)]
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(places[0], b"").replace(places[1], b"")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_two_nodes_are_as_good_as_two_processes_on_one(two_nodes, data_dir, workplace):
    done = run_command(*options(data_dir, workplace / "one"), "--stage", "3", "--nproc", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum("batch 8 x 2 processes on cpu" in said for said in two_nodes) == 1  # the first process tells
    for step, rows in enumerate(zip(*(
        [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("nodes", "one")
    ), strict=True), 1):  # fmt: skip
        assert rows[0]["step"] == rows[1]["step"] == 2 * step
        assert (rows[0]["loss"], rows[0]["dev_eer"]) == (rows[1]["loss"], rows[1]["dev_eer"])
    nodes, one = (contents(workplace / name / "embeddings") for name in ("nodes", "one"))
    assert sorted(nodes) == [f"{name}/{file}" for name in ("vox1", "vox2_dev")
                             for file in FILES]  # fmt: skip
    assert nodes == one


def test_extraction_of_one_process_gives_the_same_files(two_nodes, data_dir, workplace, tool):
    shared = contents(workplace / "nodes" / "embeddings" / "vox2_dev")
    folder = workplace / "alone"
    done = tool(
        "extract", "--exp_dir", workplace / "nodes", "--data_dir", data_dir / "vox2_dev", "--output_dir", folder
    )
    assert done.returncode == 0, done.stderr
    assert contents(folder / "vox2_dev") == {
        name: data.replace(b"nodes/embeddings", b"alone") for name, data in shared.items()
    }


def torchrun(name, *args):
    """Run a tool in two processes."""
    return run_command(
        sys.executable, ROOT / "tools" / "launch.py", "--standalone", "--nproc_per_node", "2",
        ROOT / "tools" / f"{name}.py", *args,
    )  # fmt: skip


def test_utterances_that_fail_in_one_process_are_the_error_of_all(two_nodes, data_dir, workplace, tmp_path):
    shutil.copytree(data_dir / "vox1", tmp_path / "vox1")
    (tmp_path / "vox1" / "utt2num_samples").unlink()
    entries = (data_dir / "vox1" / "wav.scp").read_text().splitlines()
    key, wav = entries[0].split()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(Path(wav).read_bytes()[:1000])
    (tmp_path / "vox1" / "wav.scp").write_text("\n".join([f"{key} {cut}", *entries[1:]]) + "\n")
    done = torchrun("extract", "--exp_dir", workplace / "nodes", "--data_dir", tmp_path / "vox1",
                    "--output_dir", tmp_path / "out")  # fmt: skip
    assert done.returncode == 1
    assert "extract.py: error: 1 of 12 utterances have no embedding" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]


def test_shards_of_two_processes_are_those_of_one(data_dir, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(data_dir / "vox2_dev", tmp_path / name, ignore=shutil.ignore_patterns("shard*"))
    packed = write_shards(
        tmp_path / "one" / "shards", read_manifest(tmp_path / "one"), utts_per_shard=5, seed=42, rate=16000
    )
    done = torchrun("make_shards", "--data_dir", tmp_path / "two", "--utts_per_shard", "5", "--nj", "1")
    assert done.returncode == 0, done.stderr
    assert f"24 utterances, 0.0 hours, in {len(packed.shards)} shards, all read back" in done.stdout
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_agent_ends_the_other_node_with_a_reason(data_dir, workplace):
    port, logs = free_port(), [workplace / "killed.log", workplace / "left.log"]
    command = [*options(data_dir, workplace / "killed", "num_epochs=100000", "dev_interval=0"), "--stage", "3"]
    nodes = [start_node(command, port, log) for log in logs]
    deadline = time.monotonic() + 200
    while not (workplace / "killed" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, "\n".join(log.read_text() for log in logs)
        assert [node.poll() for node in nodes] == [None, None], "\n".join(log.read_text() for log in logs)
        time.sleep(0.2)
    agent = int(Path(f"/proc/{nodes[0].pid}/task/{nodes[0].pid}/children").read_text().split()[0])
    os.kill(agent, signal.SIGKILL)
    codes = [node.wait(timeout=60) for node in nodes]
    assert codes == [137, 1]
    said = logs[1].read_text()
    assert "ended with code 1" in said or "(host:port) cannot be reached, or has ended" in said
    assert "Traceback" not in said
    # The process of the killed agent does not go on alone: it misses its agent, or is told first by the other node's,
    # which its own agent stops.
    ends = ("lost torchrun, which started it and was killed", "told to stop by another rank")
    while not any(end in logs[0].read_text() for end in ends):
        assert time.monotonic() < deadline, logs[0].read_text()
        time.sleep(0.2)
