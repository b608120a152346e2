"""The metrics by hand (docs/METHOD.md section 8); what is missing has failed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from saeexplainer.domains.sandbox.world import World
from saeexplainer.evaluation.metrics import collides
from saeexplainer.evaluation.rows import Answers, Caused, Explanation, evaluation_row, truth_scores
from saeexplainer.features import truth
from saeexplainer.records import FeatureRow
from tasks import evaluate

FEATURE = FeatureRow("subject/main/1", "main", 1, "test", maximum=4.0, density=0.01)
EVERYONE = np.ones(3, dtype=bool)
# Two texts, three latents, in units of each latent's own maximum.
RELATIVE = np.array([[0.2, 0.5, 0.9], [0.1, 0.3, 0.0]])


READ = [(["a ", "dog"], [0.0, 2.0]), (["cat"], [1.2])]  # the tokens, and latent 1 on them in activation units


ANSWERS = Answers(
    output_accuracy=0.0, detection_auc=0.75, fuzzing_auc=0.5, predictive_correlation=0.25,
    judge_agreement=math.nan,
)  # fmt: skip


def row(
    relative=RELATIVE, texts=("a dog", "cat"), read=READ, rivals=EVERYONE, known=(1.0, 0.5), explanation="the word dog"
):
    said = Explanation(explanation, calls=7, call_tokens=80, log_probability=-0.5)
    near = [0.9, 0.0][: len(texts)]
    caused = Caused(list(texts), relative, near, 1.0, read)
    return evaluation_row(FEATURE, said, caused, 1, rivals, ANSWERS, known)


def test_every_metric_by_hand():
    found = row()
    assert found.activations == [0.5, 0.3]
    assert found.generative_accuracy == 0.5  # half the maximum counts
    assert found.hallucination == 0.0
    assert found.mean_activation == pytest.approx(0.4)
    assert found.collision == 1.0  # means 0.15, 0.4, 0.45: latent 2 fires harder
    assert (found.truth_agreement, found.truth_f1) == (1.0, 0.5)
    assert (found.input_accuracy, found.output_accuracy, found.predictive_correlation) == (1.0, 0.0, 0.25)
    assert (found.detection_auc, found.fuzzing_auc) == (0.75, 0.5)
    assert (found.calls, found.call_tokens, found.neighbour_activations) == (7, 80, [0.9, 0.0])
    assert (found.feature_id, found.explanation, found.log_probability) == ("subject/main/1", "the word dog", -0.5)
    assert (found.texts, found.tokens) == (["a dog", "cat"], [["a ", "dog"], ["cat"]])
    assert found.token_activations == [[0.0, 0.5], [0.3]]  # in units of the maximum, as activations are


def test_no_text_at_half_the_maximum_is_a_hallucination():
    found = row(np.array([[0.0, 0.49, 0.0], [0.0, 0.0, 0.0]]))
    assert (found.generative_accuracy, found.hallucination) == (0.0, 1.0)


def test_only_another_feature_that_fires_harder_collides():
    assert collides(RELATIVE, 1, EVERYONE)
    assert not collides(RELATIVE, 1, np.array([True, True, False]))  # too dense to be a rival
    assert not collides(RELATIVE, 2, EVERYONE)
    assert not collides(np.array([[0.5, 0.5]]), 0, np.ones(2, dtype=bool))  # as hard is not harder
    assert not collides(RELATIVE, 1, np.array([False, True, False]))  # itself is no rival
    assert EVERYONE.all()


def test_a_missing_explanation_has_failed_in_every_metric():
    found = row(np.zeros((0, 3)), texts=(), read=(), explanation="")
    assert (found.generative_accuracy, found.mean_activation) == (0.0, 0.0)
    assert (found.hallucination, found.collision) == (1.0, 1.0)
    assert found.texts == found.activations == found.tokens == found.token_activations == []


def test_what_texts_would_have_measured_is_unknown_where_every_call_for_them_failed():
    found = row(np.zeros((0, 3)), texts=(), read=())
    own = (found.generative_accuracy, found.hallucination, found.collision, found.mean_activation, found.input_accuracy)
    assert all(map(math.isnan, own))
    assert (found.output_accuracy, found.detection_auc, found.truth_agreement, found.truth_f1) == (0.0, 0.75, 1.0, 0.5)
    assert (found.explanation, found.texts, found.calls) == ("the word dog", [], 7)


def test_negatives_are_texts_of_explanations_that_have_some():
    """Of three others two have no texts; the third makes the feature fire harder than the explanation's own."""
    features = [FeatureRow(f"s/main/{at}", "main", at, "test", 1.0, 0.1) for at in range(4)]
    fires = {"own": 0.5, "theirs": 0.9}
    read = SimpleNamespace(of=lambda sae, texts, latents: np.array([[fires[text]] for text in texts]).reshape(-1, 1))
    params = SimpleNamespace(seed=0, evaluate=SimpleNamespace(negatives=1))
    bench = SimpleNamespace(params=params, features=features, sae_name="main")
    texts = {"a": ["own"], "b": [], "c": ["theirs"], "d": []}
    assert evaluate.input_accuracies(bench, ["a", "b", "c", "d"], texts, read) == [0.0, 0.0, 1.0, 0.0]
    texts |= {"a": ["theirs"], "c": ["own"]}
    assert evaluate.input_accuracies(bench, ["a", "b", "c", "d"], texts, read) == [1.0, 0.0, 0.0, 0.0]


def test_truth_agreement_is_naming_the_concept_with_the_best_f1():
    # Feature 0 fires where `dog` holds, and on one animal more; feature 1 nowhere; feature 2 on the dog in a question.
    holds = [("word:dog", "category:animal"), ("word:dog", "category:animal", "context:question"), ("category:animal",),
             ("category:animal",), ("category:animal",)]  # fmt: skip
    world = World(0)
    table = truth.build(world.concepts(), holds, [np.array([0, 1, 2]), np.array([], dtype=int), np.array([1])])
    asked = [
        ("the word dog", 0, 1.0, 2 * 2 / (2 + 3)),
        ("any animal", 0, 0.0, 2 * 3 / (5 + 3)),
        ("the word dog in a question", 2, 1.0, 1.0),  # names the best one, the question, beside another
        ("the word dog", 2, 0.0, 2 * 1 / (2 + 1)),
        ("the word dog", 1, 0.0, 0.0),  # a feature that never fires agrees with nothing
        ("dogs, mostly", 0, 0.0, 0.0),  # outside the language
        ("", 0, 0.0, 0.0),
    ]
    scores = truth_scores([text for text, *_ in asked], [feature for _, feature, *_ in asked], table, world)
    # Feature 0: dog 0.8, animal 0.75. Feature 2: question 1.0.
    assert scores == [(agreement, pytest.approx(f1)) for _, _, agreement, f1 in asked]


def test_unknown_truth_stays_unknown():
    found = row(known=(math.nan, math.nan))
    assert math.isnan(found.truth_agreement) and math.isnan(found.truth_f1)
