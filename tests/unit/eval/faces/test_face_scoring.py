"""Embeddings in files, and the lists that are scored with them."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_curve
from sklearn.metrics.pairwise import cosine_similarity

from wespeaker.data.faces.packs import write_face_pack
from wespeaker.data.faces.population import RenderedFaces
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError
from wespeaker.eval.faces.embeddings import FaceEmbeddings, load_face_embeddings, write_face_embeddings
from wespeaker.eval.faces.scoring import FaceLists, evaluate_faces
from wespeaker.eval.results import Asked

NUM_IDENTITIES, PER_IDENTITY = 12, 4
NAMES = [f"p{i:02d}/{k}.png" for i in range(NUM_IDENTITIES) for k in range(PER_IDENTITY)]
ASKED = Asked((0.1, 0.01), replicates=100)


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(NUM_IDENTITIES, 8)), PER_IDENTITY, axis=0)
    return FaceEmbeddings(NAMES, (centres + 0.9 * rng.normal(size=centres.shape)).astype(np.float32), "sum")


def write_pairs(path, names, *, seed=0):
    """All pairs, in random order so that every fold has both kinds."""
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    order = np.random.default_rng(seed).permutation(len(pairs))
    labels = {True: "target", False: "nontarget"}
    path.write_text("".join(f"{a} {b} {labels[a[:3] == b[:3]]}\n" for a, b in (pairs[i] for i in order)))
    return path


def eer_by_scikit_learn(embeddings, names):
    rows = [NAMES.index(name) for name in names]
    cosines = cosine_similarity(embeddings.vectors[rows].astype(np.float64))
    first, second = np.triu_indices(len(names), 1)
    labels = [names[a][:3] == names[b][:3] for a, b in zip(first, second, strict=True)]
    fars, tars, _ = roc_curve(labels, cosines[first, second], drop_intermediate=False)
    crossing = np.argmin(np.abs(fars - (1 - tars)))
    return (fars[crossing] + 1 - tars[crossing]) / 2


def test_files_give_back_what_was_written(embeddings, tmp_path):
    half = len(NAMES) // 2
    parts = [FaceEmbeddings(NAMES[rows], embeddings.vectors[rows], "sum") for rows in (slice(half), slice(half, None))]
    for name, part in zip("ab", parts, strict=True):
        write_face_embeddings(tmp_path / f"{name}.npz", part)
    found = load_face_embeddings([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert (found.images, found.flip) == (NAMES, "sum")
    assert np.array_equal(found.vectors, embeddings.vectors)


def test_files_that_do_not_fit_are_sentences(embeddings, tmp_path):
    write_face_embeddings(tmp_path / "a.npz", embeddings)
    with pytest.raises(InputError, match=r"48 images have several embeddings: p00/0.png, "):
        load_face_embeddings([tmp_path / "a.npz", tmp_path / "a.npz"])
    write_face_embeddings(tmp_path / "b.npz", FaceEmbeddings(["q/0"], embeddings.vectors[:1, :4], "sum"))
    with pytest.raises(InputError, match=r"b.npz has 4 numbers in an embedding, .*a.npz 8"):
        load_face_embeddings([tmp_path / "a.npz", tmp_path / "b.npz"])
    write_face_embeddings(tmp_path / "b.npz", FaceEmbeddings(["q/0"], embeddings.vectors[:1], "none"))
    with pytest.raises(InputError, match=r"b.npz has none as use of mirror images, .*a.npz sum"):
        load_face_embeddings([tmp_path / "a.npz", tmp_path / "b.npz"])
    with pytest.raises(InputError, match=r"no.npz \(embeddings\) does not exist"):
        load_face_embeddings([tmp_path / "no.npz"])
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"c.npz holds no embeddings of images \("):
        load_face_embeddings([tmp_path / "c.npz"])
    np.savez(tmp_path / "d.npz", images=np.array(["a"]), vectors=np.ones(3), flip=np.array("sum"))
    with pytest.raises(InputError, match=r"d.npz holds <U1 \(1,\) as images, float64 \(3,\) as vectors"):
        load_face_embeddings([tmp_path / "d.npz"])


def test_a_pickle_among_the_embeddings_is_not_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([print], dtype=object), vectors=np.ones((1, 2)), flip="sum")
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        load_face_embeddings([tmp_path / "x.npz"])


def test_pairs_packs_and_templates_share_a_table(embeddings, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.txt", NAMES)
    faces = RenderedFaces(num_identities=NUM_IDENTITIES, num_images=PER_IDENTITY, size=16, seed=0)
    for i, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(faces.image(i)).save(tmp_path / name)
    trials = read_trials(pairs)
    write_face_pack(tmp_path / "lfw.bin", tmp_path, trials)
    order = np.stack([trials.enroll, trials.test], axis=1).ravel()
    in_pack = embeddings.vectors[[NAMES.index(trials.utts[i]) for i in order]]
    joined = FaceEmbeddings(
        NAMES + [f"lfw.bin:{i}" for i in range(len(order))], np.concatenate([embeddings.vectors, in_pack]), "sum"
    )
    templates = tmp_path / "x_face_tid_mid.txt", tmp_path / "x_template_pair_label.txt"
    templates[0].write_text("".join(f"{name} {i // 2 + 1} {i + 1}\n" for i, name in enumerate(NAMES)))
    templates[1].write_text(
        "".join(f"{a} {b} {int((a - 1) // 2 == (b - 1) // 2)}\n" for a in range(1, 25) for b in range(a + 1, 25))
    )
    lists = FaceLists(pairs=[("all", [pairs])], packs=[tmp_path / "lfw.bin"], templates=[("sets", templates)])
    evaluation = evaluate_faces(joined, lists, output_dir=tmp_path / "scores", asked=ASKED, note="a remark")
    results = json.loads((tmp_path / "scores/results.json").read_text())["trials"]
    assert list(results) == ["all", "lfw", "sets"]
    assert results["all"]["eer"] == pytest.approx(eer_by_scikit_learn(embeddings, NAMES), abs=0.01)
    assert results["lfw"]["eer"] == pytest.approx(results["all"]["eer"], abs=1e-9)
    assert results["lfw"]["protocol"]["accuracy"] == pytest.approx(results["all"]["protocol"]["accuracy"])
    assert results["sets"]["eer"] < results["all"]["eer"]
    assert results["all"]["interval"]["num_identities"] == results["sets"]["interval"]["num_identities"] == 12
    assert "interval" not in results["lfw"]
    for part in ("a remark", "accuracy of 10 folds", "mode N1D0F1", "it is not known which pairs share a person"):
        assert part in evaluation.table


def test_files_are_folds_of_their_own(embeddings, tmp_path):
    thirds = [NAMES[:16], NAMES[16:32], NAMES[32:]]
    files = [write_pairs(tmp_path / f"{k}.txt", names) for k, names in enumerate(thirds)]
    evaluate_faces(embeddings, FaceLists(pairs=[("cv", files)]), output_dir=tmp_path / "scores", asked=ASKED)
    result = json.loads((tmp_path / "scores/results.json").read_text())["trials"]["cv"]
    assert len(result["protocol"]["accuracies"]) == 3
    assert (result["num_target"], result["num_nontarget"]) == (3 * 4 * 6, 3 * 6 * 16)
    short = write_pairs(tmp_path / "short.txt", NAMES[:3])
    with pytest.raises(
        InputError, match=r"cv \(.*0.txt and 1 more\): files that are folds must have as many pairs each"
    ):
        evaluate_faces(embeddings, FaceLists(pairs=[("cv", [files[0], short])]), output_dir=tmp_path, asked=ASKED)


def test_what_is_wrong_with_lists_is_a_sentence(embeddings, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.txt", [*NAMES[:8], "p99/0.png"])
    with pytest.raises(InputError, match=r"a \(.*pairs.txt\): 1 of 9 images of the list have no embedding: p99/0.png"):
        evaluate_faces(embeddings, FaceLists(pairs=[("a", [pairs])]), output_dir=tmp_path, asked=ASKED)
    with pytest.raises(InputError, match="nothing to evaluate: give lists of pairs, packs or templates"):
        evaluate_faces(embeddings, FaceLists(), output_dir=tmp_path, asked=ASKED)
    twice = FaceLists(pairs=[("a", [pairs]), ("a", [pairs])])
    with pytest.raises(InputError, match="several lists are called a; give each a name of its own"):
        evaluate_faces(embeddings, twice, output_dir=tmp_path, asked=ASKED)
