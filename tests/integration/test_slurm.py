"""The Slurm script, with stand-ins for Slurm's commands that note how they were called."""

import os
import signal
import subprocess
import time

import pytest
from conftest import ROOT

SRUN = """#!/usr/bin/env bash
echo "srun $*" >> {log}
trap 'echo "srun got TERM" >> {log}; exit 143' TERM
{does}
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node3\\nnode7\\n'; else echo "scontrol $*" >> {log}; fi
"""


@pytest.fixture
def job(tmp_path):
    """Start the script in a job of two nodes with 4 GPUs each; what Slurm was asked goes to a log."""

    def start(does):
        log = tmp_path / "slurm.log"
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            script = tmp_path / name
            script.write_text(text.format(log=log, does=does))
            script.chmod(0o755)
        environment = {
            **os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NODELIST": "node[3,7]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "81234",
            "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4",
        }  # fmt: skip
        command = ["bash", str(ROOT / "examples" / "slurm" / "train.sbatch"), "--stage", "3"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL), log

    return start


@pytest.mark.parametrize("code", [0, 1])
def test_every_node_runs_the_same_command_and_the_job_ends_as_it_does(job, code):
    process, log = job(f"exit {code}")
    assert process.wait(timeout=30) == code
    (call,) = log.read_text().splitlines()
    assert call.endswith(
        "bash run.sh --num_nodes 2 --HOST_NODE_ADDR node3:19360 --job_id 81234 --nproc 4 --nj 32 --stage 3"
    )


def test_a_job_that_is_told_to_stop_goes_back_into_the_queue(job):
    process, log = job("while :; do sleep 0.1; done")
    deadline = time.monotonic() + 30
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    assert log.read_text().splitlines()[1:] == ["srun got TERM", "scontrol requeue 81234"]
