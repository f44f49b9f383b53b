"""Scores against scikit-learn, probabilities against scipy, decisions against counting."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics.pairwise import cosine_similarity
from test_card import CARD, DECISION, POINT

from wespeaker.deploy.card import Card
from wespeaker.deploy.verification import choose_far, cosines, judge, rank, voiceprint
from wespeaker.deploy.wording import candidate_lines, verdict_json, verdict_lines
from wespeaker.errors import InputError

UNSEEN = {**POINT, "threshold": 0.9, "far": 0.0, "num_false_accepts": 0, "resolvable": False}
UNSEEN["interval"] = {"far": None, "tar": [0.1, 0.2]}


def make_card(**changes: object) -> Card:
    return Card.parse(json.dumps({**CARD, **changes}), "a card")


def decided(**points: object) -> Card:
    return make_card(decision={**DECISION, "target_far": points})


MEASURED = decided(**{"0.1": {**POINT, "threshold": -0.2}, "0.01": POINT, "0.001": {**POINT, "threshold": 0.5}})
EMBEDDINGS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def test_scores_are_cosines_after_the_mean_was_subtracted():
    prints = [voiceprint([row], MEASURED, names=["a"]) for row in EMBEDDINGS]
    expected = cosine_similarity(EMBEDDINGS.astype(np.float64) - np.array(MEASURED.mean_vec))
    for i, one in enumerate(prints):
        np.testing.assert_allclose(cosines(prints, one), expected[i], atol=1e-6)


def test_without_a_mean_nothing_is_subtracted():
    bare = make_card(mean_vec=None)
    prints = [voiceprint([row], bare, names=["a"]) for row in EMBEDDINGS]
    np.testing.assert_allclose(cosines(prints, prints[0]), cosine_similarity(EMBEDDINGS)[0], atol=1e-6)


def test_of_several_files_each_counts_alike_however_long_its_embedding():
    scaled = EMBEDDINGS - np.array(MEASURED.mean_vec)
    scaled = scaled * np.arange(1, 7)[:, None] + np.array(MEASURED.mean_vec)
    names = list("abcdef")
    one, two = (voiceprint(list(rows), MEASURED, names=names) for rows in (EMBEDDINGS, scaled))
    np.testing.assert_allclose(one, two, atol=1e-6)
    centred = EMBEDDINGS.astype(np.float64) - np.array(MEASURED.mean_vec)
    np.testing.assert_allclose(one, (centred / np.linalg.norm(centred, axis=1)[:, None]).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([MEASURED.mean_vec], "have norm 0 after subtraction of the mean: a.wav"),
        ([[np.nan, 0, 1]], "cannot be scored.*: a.wav"),
        ([[0, 0]], "the mean vector has shape"),
        ([[1.5, -1, 2], [-0.5, -1, 2]], "of a.wav, b.wav have no common direction"),
    ],
)
def test_embeddings_without_direction_are_a_sentence(rows, match):
    with pytest.raises(InputError, match=match):
        voiceprint(rows, MEASURED, names=["a.wav", "b.wav"][: len(rows)])


@pytest.mark.parametrize("score", [-1.0, -0.3, 0.2, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("p_target", [None, 0.5, 1e-4])
def test_ratios_and_probabilities(score, p_target):
    found = judge(score, MEASURED, far=0.01, p_target=p_target)
    llr = 20.0 * score - 8.0
    assert found.evidence.llr == pytest.approx(llr)
    assert found.evidence.posterior == pytest.approx(expit(llr + logit(p_target or 0.01)), rel=1e-9, abs=1e-15)
    assert found.accepted is (score >= 0.25)


def test_probabilities_of_extreme_scores_do_not_overflow():
    steep = make_card(decision={**DECISION, "calibration": {"p_target": 0.01, "weight": 1e5, "offset": 0.0}})
    assert [judge(score, steep, far=0.01).evidence.posterior for score in (-1.0, 1.0)] == [0.0, 1.0]


def test_the_lowest_far_that_was_shown_is_the_default():
    card = decided(**{"0.01": POINT, "0.001": {**POINT, "threshold": 0.5}, "0.0001": UNSEEN})
    assert choose_far(card) == 0.001
    assert choose_far(card, 0.01) == 0.01
    with pytest.raises(
        InputError, match=r"300 nontarget trials of vox1_O_cleaned are too few to show FAR 0\.0001; 0\.001"
    ):
        choose_far(card, 1e-4)
    with pytest.raises(InputError, match=r"no threshold was measured for FAR 0\.05 .*, there are 0\.01"):
        choose_far(card, 0.05)
    nothing = decided(**{"0.0001": UNSEEN})
    assert choose_far(nothing) is None
    assert judge(0.3, nothing, far=None).accepted is None
    assert "too few for any FAR" in "\n".join(verdict_lines(judge(0.3, nothing, far=None), nothing, chosen=False))


def test_a_model_of_which_nothing_was_measured_scores_and_says_how_to_get_more():
    bare = make_card(decision=None)
    assert choose_far(bare) is None
    with pytest.raises(InputError, match=r"no threshold was measured for this model, for FAR 0\.01 .*stage 8"):
        choose_far(bare, 0.01)
    verdict = judge(0.3, bare, far=None, p_target=0.5)
    assert (verdict.evidence, verdict.accepted) == (None, None)
    assert "no threshold was measured for this model; score trials" in verdict_lines(verdict, bare, chosen=False)[1]


@pytest.mark.parametrize("p_target", [0, 1, -1, float("nan")])
def test_a_prior_that_is_none(p_target):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        judge(0.3, MEASURED, far=0.01, p_target=p_target)


def test_everything_that_makes_a_threshold_trustworthy_is_said():
    text = "\n".join(verdict_lines(judge(0.3, MEASURED, far=0.01), MEASURED, chosen=True, num_files=3))
    for part in (
        "score     0.30000", "LLR       -2.00", "calibrated on vox1_O_cleaned", "probability of 0.137 % where 1 %",
        "decision  accept   the score reaches 0.25000, the threshold for FAR 1 %\n", "FAR       1 %",
        "of 300 trials of different speakers, 3 were accepted (95 %: 0–2 %; at most 3 % with 95 % confidence)",
        "TAR       90 %     of 100 trials of one speaker, 90 were accepted (95 %: 80–95 %)",
        "measured on vox1_O_cleaned, 12 speakers, one file on each side; of 3 enrolled files, as here, it may differ",
        "0.1 % at 0.50000: reject; 10 % at -0.20000: accept",
    ):  # fmt: skip
        assert part in text
    assert (
        "the lowest that these trials show" in verdict_lines(judge(0.3, MEASURED, far=0.01), MEASURED, chosen=False)[2]
    )


def test_json_has_plain_values():
    values = verdict_json(judge(0.3, MEASURED, far=0.01), MEASURED)
    assert json.loads(json.dumps(values)) == values
    assert (values["decision"], values["threshold"], values["far"]) == ("accept", 0.25, 0.01)
    assert values["measured"]["num_false_accepts"] == 3
    assert values["measured"]["trials_sha256"] == "a" * 64
    bare = make_card(decision=None)
    assert verdict_json(judge(0.3, bare, far=None), bare)["decision"] is None


def test_people_are_ranked_and_a_stranger_is_more_easily_one_of_many():
    people = dict(zip("abcdef", [voiceprint([row], MEASURED, names=["x"]) for row in EMBEDDINGS], strict=True))
    ranked = rank(people, people["d"], MEASURED, far=0.01)
    assert ranked[0].name == "d"
    scores = [one.verdict.score for one in ranked]
    assert scores == sorted(scores, reverse=True)
    assert sorted(one.name for one in ranked) == list("abcdef")
    text = "\n".join(candidate_lines(ranked[:2], num_people=6, card=MEASURED))
    assert "with 6 enrolled a stranger is accepted as one of them in up to 6 × 1 % = 6 % of the cases" in text
    assert "= 100 %" in "\n".join(candidate_lines(ranked[:2], num_people=600, card=MEASURED))
