"""Are two recordings of one person? With numpy, soundfile and onnxruntime alone: verify.py MODEL FAR ENROLL TEST."""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

model, far, *recordings = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
voices = []
for path in recordings:
    wav, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != card["sample_rate"] or len(wav) < card["min_samples"]:
        sys.exit(f"{path} must have {card['sample_rate']} Hz and {card['min_samples']} samples or more")
    (embs,) = session.run(["embs"], {"wav": wav[None, :, 0]})  # (1, D), of the first channel
    voice = embs[0] - np.array(card["mean_vec"] or 0.0)
    voices.append(voice / np.linalg.norm(voice))
score, point = voices[0] @ voices[1], card["decision"]["target_far"][far]
print(
    f"{'accept' if score >= point['threshold'] else 'reject'}: cosine {score:.6f}, threshold {point['threshold']:.6f}"
)
