"""Graphs of every backbone in onnxruntime, which this project did not write, beside the network in torch."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state
from run_folder import settled

from wespeaker.config import load_config
from wespeaker.deploy.graphs import backbone_graph, waveform_graph
from wespeaker.deploy.parity import (
    Parity,
    check_parity,
    compare_embeddings,
    measure_parity,
    parity_table,
    speechlike,
)
from wespeaker.errors import InputError
from wespeaker.models import campplus
from wespeaker.speaker_net import SpeakerNet

FAMILIES = {
    "ResNet10": "m_channels: 4, embed_dim: 16, two_emb_layer: true",
    "XVEC": "hid_dim: 64, stats_dim: 96, embed_dim: 32",
    "ECAPA_TDNN": "channels: 64, out_channels: 96, embed_dim: 32, global_context_att: true, emb_bn: true",
    "CAMPPlus": "embed_dim: 32, pooling_func: TSDP",
}
TELEPHONE = ["dataset_args.resample_rate=8000", "dataset_args.fbank_args={num_mel_bins: 40, frame_length: 20}"]


def network(name: str, model_args: str = "", *changes: str) -> SpeakerNet:
    torch.manual_seed(0)
    changes = (f"model={name}", f"model_args={{{model_args}}}", *changes)
    config = load_config(ROOT / "conf" / "resnet34_qmargin.yaml", changes)
    return settled(SpeakerNet(config), rate=config.dataset_args.resample_rate)


@cache
def family(name: str) -> tuple[SpeakerNet, dict[str, bytes]]:
    """A small network and its graphs; CAM++ has 3 of its 52 layers, all of one kind, which take the exporter long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campplus, "BLOCKS", ((1, 1), (1, 2), (1, 2)))
        net = network(name, FAMILIES[name])
    return net, graphs(net)


def graphs(net: SpeakerNet, *, num_mel_bins: int = 80) -> dict[str, bytes]:
    backbone = backbone_graph(net.model, num_mel_bins=num_mel_bins)
    both = {"final.onnx": waveform_graph(net.fbank, backbone), "final_feats.onnx": backbone}
    for graph in both.values():
        onnx.checker.check_model(graph, full_check=True)
    return {name: graph.SerializeToString() for name, graph in both.items()}


def check(net: SpeakerNet, found: dict[str, bytes], *, rate: int = 16000) -> None:
    """Both graphs give torch's embeddings at all lengths, and these are not all alike."""
    rows = measure_parity(net, found, rate=rate)
    check_parity(rows)
    assert {row.graph for row in rows} == set(found)
    assert rows[0].seconds == net.min_samples / rate
    assert {0.5, 1.0, 2.0, 3.37, 5.0, 10.0, 20.0} <= {row.seconds for row in rows}
    with torch.inference_mode():
        embeddings = net(speechlike(3, 2 * rate, rate=rate))
    assert torch.nn.functional.cosine_similarity(embeddings[:1], embeddings[1:]).max() < 0.99


@pytest.mark.parametrize("name", FAMILIES)
def test_both_graphs_of_every_family_give_torchs_embeddings(name: str):
    check(*family(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet34", "XVEC", "ECAPA_TDNN_c512", "ECAPA_TDNN_GLOB_c1024", "CAMPPlus"])
def test_networks_of_full_size(name: str):
    net = network(name)
    check(net, graphs(net))


def test_another_front_end():
    net = network("ResNet10", "m_channels: 4, embed_dim: 16, feat_dim: 40", *TELEPHONE)
    check(net, graphs(net, num_mel_bins=40), rate=8000)


@pytest.mark.parametrize("name", FAMILIES)
def test_too_few_samples_give_nan_or_an_error_never_an_embedding(name: str):
    net, found = family(name)
    session = onnxruntime.InferenceSession(found["final.onnx"])
    for num_samples in {400, (net.min_samples + 400) // 2, net.min_samples - 1}:
        try:
            (embs,) = session.run(None, {"wav": speechlike(1, num_samples, rate=16000).numpy()})
        except (state.Fail, state.InvalidArgument, state.RuntimeException):
            continue
        assert np.isnan(embs).all()


def test_the_files_are_clean_and_the_same_each_time():
    net, found = family("ResNet10")
    assert found == graphs(net)
    weights = sum(values.numel() * values.element_size() for values in net.model.state_dict().values())
    for name, inputs in (("final.onnx", ["batch", "samples"]), ("final_feats.onnx", ["batch", "frames", 80])):
        model = onnx.load_from_string(found[name])
        assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 18)])
        (given,), (embs,) = model.graph.input, model.graph.output
        assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == inputs
        assert [dim.dim_param or dim.dim_value for dim in embs.type.tensor_type.shape.dim] == ["batch", 16]
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert b".py" not in found[name]
        assert len(found[name]) < weights + 512 * 400 * 4 + 100_000  # the front end's kernel, the nodes


def test_another_networks_graph_is_found_out():
    net, found = family("ResNet10")
    model = onnx.load_from_string(found["final.onnx"])
    bias = next(tensor for tensor in model.graph.initializer if tensor.dims == [16])
    values = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array(values + np.float32(0.01), bias.name))
    rows = measure_parity(net, {"final.onnx": model.SerializeToString()}, rate=16000, seconds=[1.0])
    with pytest.raises(InputError, match=r"^final\.onnx is not written: for 1 x 0\.105 s .* where 0\.0001 is allowed"):
        check_parity(rows)


def test_the_measures_of_two_embeddings_by_hand():
    difference, distance = compare_embeddings(
        np.array([[3.0, 4.0], [1.0, 0.0]], dtype=np.float32), np.array([[3.0, 4.5], [0.0, 1.0]], dtype=np.float32)
    )
    assert (difference, distance) == pytest.approx((1.0, 1.0))
    difference, _ = compare_embeddings(np.float32([[3.0, 4.0]]), np.float32([[3.0, 4.5]]))
    assert difference == pytest.approx(0.1)


def test_what_is_not_a_number_is_no_parity():
    rows = [Parity("final.onnx", 1.0, 1, float("nan"), 0.0)]
    with pytest.raises(InputError, match="differ from torch's by nan"):
        check_parity(rows)
    assert "  1.000      1  nan / 0.0e+00" in parity_table(rows)
