"""Was a round worth it: by hand, on valid features alone."""

import pytest

from saeexplainer.errors import UserError
from saeexplainer.figures.intervals import Interval
from saeexplainer.figures.stop_rule import gain, shares
from saeexplainer.records import ScoreRow


def scored(feature: str, *candidates: list[float], split: str = "valid", reward: float | None = 0.0) -> list[ScoreRow]:
    """A feature's candidates by the activations of their texts."""
    return [
        ScoreRow(feature, split, rank, "the word dog", ["a dog"] * len(found), found, [0.0] * len(found), reward)
        for rank, found in enumerate(candidates)
    ]


def test_the_share_is_a_mean_of_candidates_and_of_no_other_split() -> None:
    rows = [
        *scored("a", [0.5, 0.49], [0.9, 0.6, 0.0, 0.0], []),  # 1/2, 1/2, and 0 for no text: the threshold itself counts
        *scored("b", [0.0]),
        *scored("c", [1.0], split="dpo"),
        *scored("d", [1.0], split="test"),
    ]
    assert shares(rows, 0.5) == {"a": pytest.approx(1 / 3), "b": 0.0}


def test_a_candidate_whose_texts_failed_does_not_count() -> None:
    """Afterwards feature a is measured by one of two candidates, b by none: a's share rises from 0 to 1."""
    before = [*scored("a", [0.0]), *scored("b", [1.0]), *scored("c", [0.0])]
    after = [*scored("a", [1.0]), *scored("a", [], reward=None), *scored("b", [], reward=None), *scored("c", [1.0])]
    assert shares(after, 0.5) == {"a": 1.0, "c": 1.0}
    assert gain(before, after, 0.5, 10, 0) == Interval(1.0, 1.0, 1.0, 2)
    assert gain(after, before, 0.5, 10, 0) == Interval(-1.0, -1.0, -1.0, 2)


def test_one_feature_or_none_decides_nothing() -> None:
    """All but a's calls failed, or all of them, or there is no valid feature."""
    none, one = scored("b", [], reward=None), scored("a", [0.0])
    for rows, count in (([*one, *none], 1), (none, 0), (scored("a", [1.0], split="dpo"), 0)):
        with pytest.raises(
            UserError, match=f"rounds: {count} valid features are measured .* raise extract_activations"
        ):
            gain(rows, rows, 0.5, 10, 0)


# Two valid features, one candidate of two texts each: how many of them fire, before and after; (value, low, high).
# Resampled means of two differences x, y are x, (x + y) / 2, y with chances 1/4, 1/2, 1/4: the interval is (x, y).
GAINS = {
    "both gain": ((0, 1), (1, 2), (0.5, 0.5, 0.5)),
    "nothing changes": ((1, 1), (1, 1), (0.0, 0.0, 0.0)),
    "one gains": ((0, 1), (2, 1), (0.5, 0.0, 1.0)),
    "one gains more than the other loses": ((0, 1), (2, 0), (0.25, -0.5, 1.0)),
    "both lose": ((2, 1), (0, 0), (-0.75, -1.0, -0.5)),
}


@pytest.mark.parametrize(("before", "after", "expected"), GAINS.values(), ids=GAINS)
def test_the_gain_is_paired_by_feature(before: tuple, after: tuple, expected: tuple) -> None:
    def rows(firing: tuple, reward: float) -> list[ScoreRow]:
        valid = [
            row for at, n in enumerate(firing) for row in scored(f"{at}", [1.0] * n + [0.0] * (2 - n), reward=reward)
        ]
        # What is trained on and what is reported say the opposite, and so do rewards: none of them may count.
        others = [scored(f"{split}", [1.0 - reward], split=split) for split in ("dpo", "test")]
        return [*reversed(valid), *others[0], *others[1]]

    assert gain(rows(before, reward=0.0), rows(after, reward=1.0), 0.5, 500, 0) == Interval(*expected, n=2)


def test_other_features_are_not_compared() -> None:
    with pytest.raises(UserError, match="cannot be paired"):
        gain(scored("a", [1.0]), scored("b", [1.0]), 0.5, 50, 0)
