import networkx as nx
import numpy as np
import pytest
from sklearn.preprocessing import normalize

from wespeaker.errors import InputError
from wespeaker.eval.faces.templates import linked_identities, pool_templates, pooling_mode


def simulate(num_images=3000, num_templates=70, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    template = np.append(np.arange(num_templates), rng.integers(num_templates, size=num_images - num_templates))
    template = rng.permutation(template)
    features = rng.normal(size=(num_images, dim)).astype(np.float32)
    return features, template, rng.integers(5, size=num_images), rng.random(num_images)


@pytest.mark.parametrize("keep_norms", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_pooling_is_that_of_a_loop(keep_norms, weighted):
    features, template, media, detector = simulate()
    found = pool_templates(
        *(features, template, media),
        num_templates=70,
        detector_scores=detector if weighted else None,
        keep_norms=keep_norms,
    )
    images = features.astype(np.float64) if keep_norms else normalize(features.astype(np.float64))
    if weighted:
        images = images * detector[:, None]
    for t in range(70):
        own = template == t
        means = [images[own & (media == m)].mean(axis=0) for m in np.unique(media[own])]
        np.testing.assert_allclose(found[t], normalize(np.sum(means, axis=0)[None])[0], atol=1e-12)


def test_a_video_counts_as_one_photograph():
    frames = np.tile([1.0, 0.0], (99, 1))
    pooled = pool_templates([*frames, [0.0, 1.0]], [0] * 100, [7] * 99 + [8], num_templates=1)
    np.testing.assert_allclose(pooled, [[0.5**0.5, 0.5**0.5]])


def test_long_embeddings_weigh_more_only_where_norms_are_kept():
    features, template, media = [[3.0, 0.0], [0.0, 1.0]], [0, 0], [0, 1]
    np.testing.assert_allclose(
        pool_templates(features, template, media, num_templates=1)[0], np.array([3, 1]) / 10**0.5
    )
    equal = pool_templates(features, template, media, num_templates=1, keep_norms=False)
    np.testing.assert_allclose(equal[0], [0.5**0.5, 0.5**0.5])


def test_the_order_of_the_images_changes_nothing():
    features, template, media, detector = simulate()
    order = np.random.default_rng(1).permutation(len(template))
    once = pool_templates(features, template, media, num_templates=70, detector_scores=detector)
    again = pool_templates(
        features[order], template[order], media[order], num_templates=70, detector_scores=detector[order]
    )
    np.testing.assert_allclose(once, again, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": [0, 0, 2]}, "1 of 3 templates have no image: 1"),
        ({"template": [0, 1, 3]}, "templates must be numbered from 0 to 2, found 0 to 3"),
        ({"template": [0, 1, -1]}, "found -1 to 1"),
        ({"template": [0.0, 1.0, 2.0]}, "templates and media must be whole numbers, found float64 and int64"),
        ({"media": [0, 1]}, r"there are 3 embeddings, and .* of shapes \(3,\), \(2,\) and \(3,\); give one"),
        ({"detector_scores": [1, 1, -1]}, "must be numbers from 0"),
        ({"detector_scores": [1, 1, float("nan")]}, "must be numbers from 0"),
        ({"detector_scores": [1, 1, 0]}, "1 of 3 embeddings cannot be scored, .*: that of template 2"),
        ({"embeddings": [[1, 0], [0, float("nan")], [1, 1]]}, "that of template 1"),
        ({"embeddings": [[1, 0], [0, 0], [1, 1]], "keep_norms": False}, "that of image 1"),
    ],
)
def test_what_cannot_be_pooled(change, message):
    good = {"embeddings": [[1.0, 0], [0, 1], [1, 1]], "template": [0, 1, 2], "media": [0, 1, 2], "num_templates": 3}
    with pytest.raises(InputError, match=message):
        pool_templates(**{**good, **change})


def test_modes_have_the_names_of_arcfaces_code():
    assert pooling_mode(detector_scores=True, keep_norms=True, flip=True) == "N1D1F1"
    assert pooling_mode(detector_scores=False, keep_norms=True, flip=False) == "N1D0F0"


def test_identities_are_the_components_of_the_graph_of_target_pairs():
    rng = np.random.default_rng(0)
    pairs, labels = rng.integers(200, size=(300, 2)), rng.random(300) < 0.4
    graph = nx.Graph()
    graph.add_nodes_from(range(200))
    graph.add_edges_from(pairs[labels].tolist())
    found = linked_identities(pairs, labels, num_templates=200)
    components = {frozenset(np.flatnonzero(found == identity).tolist()) for identity in range(found.max() + 1)}
    assert components == {frozenset(component) for component in nx.connected_components(graph)}
