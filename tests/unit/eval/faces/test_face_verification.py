import json

import numpy as np
import pytest
from sklearn.metrics import roc_curve
from sklearn.metrics.pairwise import cosine_similarity

import wespeaker
from wespeaker.errors import InputError
from wespeaker.eval.faces.folds import fold_accuracies
from wespeaker.eval.faces.verification import (
    TEMPLATE_FARS,
    evaluate_pairs,
    evaluate_templates,
    pair_scores,
    write_face_evaluation,
)
from wespeaker.eval.results import Asked

NUM_IDENTITIES, PER_IDENTITY = 40, 6


def simulate(seed=0):
    """Embeddings of identities, and all pairs of them in random order: images for one test, templates for another."""
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(NUM_IDENTITIES), PER_IDENTITY)
    embeddings = rng.normal(size=(NUM_IDENTITIES, 16))[identities] + 0.8 * rng.normal(size=(len(identities), 16))
    pairs = rng.permutation(np.stack(np.triu_indices(len(identities), 1), axis=1))
    return embeddings.astype(np.float32), pairs, identities[pairs[:, 0]] == identities[pairs[:, 1]], identities


def tar_by_scikit_learn(scores, labels, far):
    fars, tars, _ = roc_curve(labels, scores, drop_intermediate=False)
    return tars[fars <= far].max()


def test_scores_are_cosines_whatever_the_order():
    embeddings, pairs, _, _ = simulate()
    scores = pair_scores(embeddings, pairs)
    table = cosine_similarity(embeddings.astype(np.float64))
    np.testing.assert_allclose(scores, table[pairs[:, 0], pairs[:, 1]], atol=1e-12)
    assert np.array_equal(scores, pair_scores(embeddings, pairs[:, ::-1]))
    assert np.array_equal(scores[5000:5007], pair_scores(embeddings, pairs[5000:5007]))
    assert pair_scores(embeddings, [[3, 3]])[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 2]], "pairs must be rows of the 2 embeddings, found 0 to 2"),
        ([[-1, 0]], "found -1 to 0"),
        ([[0.0, 1.0]], r"pairs must be whole numbers of shape \(N, 2\), found float64 \(1, 2\)"),
        ([0, 1], r"found int64 \(2,\)"),
    ],
)
def test_pairs_of_rows_that_do_not_exist(pairs, message):
    with pytest.raises(InputError, match=message):
        pair_scores([[1.0, 0.0], [0.0, 1.0]], pairs)


def test_an_embedding_without_a_direction_is_named():
    with pytest.raises(InputError, match=r"2 of 3 embeddings cannot be scored, .*: that of row 1, that of row 2"):
        pair_scores([[1.0, 0.0], [0.0, 0.0], [np.inf, 0.0]], [[0, 1]])


def test_pairs_have_the_accuracy_of_their_folds_and_the_rates_of_all():
    embeddings, pairs, labels, identities = simulate()
    asked = Asked(fars=(1e-2, 1e-3), replicates=100)
    rates = evaluate_pairs(embeddings, pairs, labels, flip="sum", identities=identities, asked=asked).rates
    scores = pair_scores(embeddings, pairs)
    folds = fold_accuracies(scores, labels)
    assert rates["protocol"]["accuracy"] == folds.mean
    assert rates["protocol"]["standard_error"] == folds.standard_error
    assert rates["num_target"] == NUM_IDENTITIES * PER_IDENTITY * (PER_IDENTITY - 1) // 2
    for far in (1e-2, 1e-3):
        point = rates["tar_at_far"][str(far)]
        assert point["tar"] == tar_by_scikit_learn(scores, labels, far)
        assert point["far"] <= far
        low, high = rates["interval"]["tar_at_far"][str(far)]
        assert low < point["tar"] < high
    assert rates["interval"]["num_identities"] == NUM_IDENTITIES
    assert "num_speakers" not in rates["interval"]


def test_without_identities_pairs_have_no_intervals_and_say_so():
    embeddings, pairs, labels, _ = simulate()
    rates = evaluate_pairs(embeddings, pairs, labels, flip="none").rates
    assert "interval" not in rates
    assert rates["protocol"]["intervals"] == "none: it is not known which pairs share a person"
    assert rates["tar_at_far"]["0.001"]["resolvable"]
    rates = evaluate_pairs(embeddings, pairs, labels, flip="none", asked=Asked(replicates=0)).rates
    assert "intervals" not in rates["protocol"]  # none were asked for


def of_templates(seed=0):
    """Each template of three images in two media: the arguments of `evaluate_templates`."""
    embeddings, pairs, labels, identities = simulate(seed)
    rng = np.random.default_rng(seed)
    images = np.repeat(embeddings, 3, axis=0) + 0.3 * rng.normal(size=(3 * len(embeddings), 16))
    template, media = np.repeat(np.arange(len(embeddings)), 3), np.tile([0, 0, 1], len(embeddings))
    arguments = {"embeddings": images, "template": template, "media": media, "pairs": pairs, "is_target": labels}
    return {**arguments, "num_templates": len(embeddings), "flip": "sum"}, identities


def test_templates_are_pooled_and_their_mode_is_told():
    arguments, _ = of_templates()
    detector = np.random.default_rng(2).uniform(0.5, 1, size=len(arguments["template"]))
    asked = Asked(fars=TEMPLATE_FARS, replicates=0)
    result = evaluate_templates(**arguments, detector_scores=detector, keep_norms=False, asked=asked)
    assert result.rates["protocol"]["mode"] == "N0D1F1"
    images = arguments["embeddings"] / np.linalg.norm(arguments["embeddings"], axis=1, keepdims=True)
    a, b, c = ((images * detector[:, None])[start::3] for start in range(3))
    table = cosine_similarity((a + b) / 2 + c)
    scores = table[tuple(arguments["pairs"].T)]
    for far in (1e-1, 1e-2, 1e-3, 1e-4):
        expected = tar_by_scikit_learn(scores, arguments["is_target"], far)
        assert result.rates["tar_at_far"][str(far)]["tar"] == expected
    assert not result.rates["tar_at_far"]["1e-05"]["resolvable"]
    assert result.rates["tar_at_far"]["0.0001"]["resolvable"]


def test_identities_of_templates_come_from_target_pairs():
    arguments, identities = of_templates()
    asked = Asked(fars=(1e-2,), replicates=100)
    linked = evaluate_templates(**arguments, asked=asked).rates
    given = evaluate_templates(**arguments, identities=identities, asked=asked).rates
    assert linked["interval"]["num_identities"] == given["interval"]["num_identities"] == NUM_IDENTITIES
    assert linked["protocol"]["intervals"] == "an identity is what target pairs link; 0 templates are linked to none"
    assert "intervals" not in given["protocol"]


def test_contradicting_links_give_no_intervals():
    arguments, _ = of_templates()
    first = int(np.flatnonzero(arguments["is_target"])[0])
    labels = arguments["is_target"].copy()
    labels[first] = False  # the four other templates of the identity still link the two
    rates = evaluate_templates(**{**arguments, "is_target": labels}, asked=Asked(fars=(1e-2,), replicates=100)).rates
    assert "interval" not in rates
    assert rates["protocol"]["intervals"] == "none: target pairs link the templates of 1 nontarget pairs"


def test_identities_that_are_in_no_pair_are_not_drawn():
    embeddings, pairs, labels, identities = simulate()
    kept = (identities[pairs] < 30).all(axis=1)
    asked = Asked(fars=(1e-2,), replicates=100)
    result = evaluate_pairs(embeddings, pairs[kept], labels[kept], flip="sum", identities=identities, asked=asked)
    assert result.rates["interval"]["num_identities"] == 30


def test_labels_that_contradict_given_identities_are_refused():
    embeddings, pairs, labels, identities = simulate()
    wrong = labels.copy()
    wrong[0] = not wrong[0]
    with pytest.raises(InputError, match=r"the labels of 1 pairs of images contradict the identities: \d+ and \d+ \("):
        evaluate_pairs(embeddings, pairs, wrong, flip="sum", identities=identities)
    with pytest.raises(InputError, match=r"there are 10 identities, and pairs of 240 images"):
        evaluate_pairs(embeddings, pairs, labels, flip="sum", identities=identities[:10])


@pytest.mark.parametrize("labels", [[1, 0, 1], [True, False]])
def test_labels_are_booleans_of_each_pair(labels):
    with pytest.raises(InputError, match=r"labels must be 3 booleans, one for each pair, found"):
        evaluate_pairs(np.eye(3), [[0, 1], [1, 2], [0, 2]], labels, flip="sum", num_folds=2)


def test_files_and_table(tmp_path):
    embeddings, pairs, labels, identities = simulate()
    asked = Asked(fars=(1e-2, 1e-3, 1e-6), replicates=100)
    found = {
        "lfw": evaluate_pairs(embeddings, pairs, labels, flip="sum", identities=identities, asked=asked),
        "ijbc": evaluate_templates(**of_templates()[0], asked=asked),
    }
    evaluation = write_face_evaluation(found, output_dir=tmp_path / "exp" / "scores", asked=asked, note="simulated")
    written = json.loads((tmp_path / "exp" / "scores" / "results.json").read_text())
    assert written == {"wespeaker_q": wespeaker.__version__, **evaluation.results}
    assert written["exp_dir"] == str(tmp_path / "exp")
    assert written["trials"]["ijbc"] == found["ijbc"].rates
    files = sorted(path.name for path in (tmp_path / "exp" / "scores").iterdir())
    assert files == ["det.png", "det.svg", "results.json", "results.txt"]
    lines = (tmp_path / "exp" / "scores" / "results.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    accuracy, error = found["lfw"].rates["protocol"]["accuracy"], found["lfw"].rates["protocol"]["standard_error"]
    assert f"accuracy of 10 folds {100 * accuracy:.3f} ± {100 * error:.3f} % (standard error)" in text
    assert "mode N1D0F1: norms kept, weights none, mirror images: sum" in text
    assert "720 images in 240 templates" in text
    assert "40 identities" in text
    assert "bootstrap over identities (100 replicates, seed 0)" in text
    assert "speaker" not in text
    assert "not resolvable (28,080 nontargets)" in text


def test_nothing_to_write(tmp_path):
    with pytest.raises(InputError, match="at least one list"):
        write_face_evaluation({}, output_dir=tmp_path, asked=Asked())
