"""What a step of the streaming form needs beyond its prototypes, measured in a process of its own."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from wespeaker.losses.collect import CHUNK_CLASSES

B, C, D = 128, 200_000, 64

STEP = """
import json, sys
import torch
from measuring import forget_peak, memory_mb
from wespeaker.losses import build_head

def step(num_classes):
    torch.manual_seed(0)
    with torch.device("meta"):
        head = build_head(json.loads(sys.argv[1]), embed_dim=D, num_classes=num_classes)
    head.weight = torch.nn.Parameter(torch.randn(num_classes, D))
    embeddings = torch.randn(B, D).requires_grad_()
    labels = torch.randint(num_classes, (B,))
    forget_peak()
    before = memory_mb("VmRSS")
    out = head(embeddings, labels)
    out.loss.backward()
    extra = 1e6 * (memory_mb("VmHWM") - before)
    rows = len(head.weight.grad._values())
    return {"extra": extra, "active": int(out.support.sum()) + B, "rows": rows, "path": out.path}

B, D = map(int, sys.argv[3:])
step(5000)  # libraries load and make their buffers
print(json.dumps(step(int(sys.argv[2]))))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc/self")
def test_a_step_needs_memory_for_a_tile_and_its_active_classes_only():
    """10 B c of tiles + 40 bytes an active class and sample + 4.8 D a row of the gradient + 4 C of norms + 16 MB."""
    args = {"project_type": "q_margin", "alpha": 1.25, "scale": 12.0, "margin": 0.2}
    args |= {"form": "stream", "screen": "none", "weight_grad": "sparse"}
    done = run_command(
        sys.executable, "-c", STEP, json.dumps(args), C, B, D, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'bench'}"
    )
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process reset its peak memory")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["path"] == "stream"
    allowed = 10 * B * CHUNK_CLASSES + 40 * found["active"] + 4.8 * D * found["rows"] + 4 * C + 16e6
    assert found["extra"] <= allowed
    assert allowed < 0.6 * 4 * B * C  # one B × C matrix of float32, 102 MB, would not go unnoticed
