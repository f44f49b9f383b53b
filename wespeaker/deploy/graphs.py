"""A network as ONNX graphs: from features, as WeSpeaker's, and from the waveform.

The graphs are of opset 18: the lowest that torch's exporter writes without converting, which onnxruntime reads since
1.14 (February 2023). Batch and time are free. All of a graph is in one file and the same network gives the same bytes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import wespeaker
from wespeaker.data.features import ConvFbank, Fbank, mean_normalise
from wespeaker.deploy.card import EMBS, FEATS, WAV
from wespeaker.extras import require

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPSET = 18
IR_VERSION = 8  # of the file format, the one that came with opset 18
SAMPLE_SECONDS = 4.5  # of audio that the exporter follows: more than one segment of every kind, the last not full


class _FrontEnd(nn.Module):
    def __init__(self, fbank: Fbank) -> None:
        super().__init__()
        self.fbank = ConvFbank(fbank)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        return mean_normalise(self.fbank(wav))


def backbone_graph(model: nn.Module, *, num_mel_bins: int) -> ModelProto:
    """Return the graph of a backbone on the CPU in eval mode: ``feats`` (B, T, F), mean normalised → ``embs`` (B, D).

    Raises:
        InputError: the packages of the extra ``export`` are not installed.

    """
    sample = torch.zeros(2, round(100 * SAMPLE_SECONDS), num_mel_bins)
    return _graph(model, sample, (FEATS, "frames"), (EMBS,))


def waveform_graph(fbank: Fbank, backbone: ModelProto) -> ModelProto:
    """Put the front end before the graph of a backbone: ``wav`` (B, N) in [-1, 1] → ``embs`` (B, D).

    Fewer samples than the network needs, `SpeakerNet.min_samples`, give NaN or an error of the runtime.

    """
    compose = require("onnx.compose", extra="export")
    sample = torch.zeros(2, fbank.num_samples(round(100 * SAMPLE_SECONDS)))
    front = _graph(_FrontEnd(fbank), sample, (WAV, "samples"), (FEATS, "frames"))
    front = compose.add_prefix(front, "front_end/", rename_inputs=False, rename_outputs=False)
    graph: ModelProto = compose.merge_models(front, backbone, io_map=[(FEATS, FEATS)])
    return _clean(graph)


def _graph(module: nn.Module, sample: torch.Tensor, given: tuple[str, str], found: tuple[str, ...]) -> ModelProto:
    """Return the graph of a module.

    Args:
        module: from one tensor to one.
        sample: an input, (2, time, …).
        given: what the input and its second dimension are called.
        found: what the output is called, and its second dimension if it is free.

    """
    require("onnxscript", extra="export")
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with _quiet():
        program = torch.onnx.export(
            module,
            (sample,),
            dynamo=True,
            opset_version=OPSET,
            input_names=given[:1],
            output_names=found[:1],
            dynamic_shapes=(free,),
            verbose=False,
        )
    assert program is not None
    graph: Any = program.model_proto
    _name_dimensions(graph.graph.input[0], ("batch", *given[1:]))
    _name_dimensions(graph.graph.output[0], ("batch", *found[1:]))
    return _clean(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself; whether its graph is right shows in its embeddings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_dimensions(value: ValueInfoProto, names: tuple[str, ...]) -> None:
    for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        dim.dim_param = name


def _clean(model: ModelProto) -> ModelProto:
    """Leave out what no runtime needs: the lines of Python that each node comes from, shapes in between."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "wespeaker-q", wespeaker.__version__
    model.graph.name, model.doc_string = "embedding", ""
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        part.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    del model.opset_import[1:]  # that of the front end is of the same
    return model
