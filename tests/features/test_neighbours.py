"""Neighbours of a feature: counted by brute force, picked by hand, and measured in everyone's own unit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from saeexplainer.features import neighbours
from saeexplainer.features.neighbours import CoFiring, Neighbourhoods, _largest, nearest
from saeexplainer.records import FeatureRow, NeighbourRow
from saeexplainer.saes.text_activations import TextActivations


def feature(index: int, maximum: float = 1.0, sae: str = "main") -> FeatureRow:
    return FeatureRow(f"subject/{sae}/{index}", sae, index, "dpo", maximum, 0.01)


@given(st.integers(0, 1000), st.integers(1, 9))
@settings(deadline=None)
def test_overlap_is_intersection_over_union_however_the_tokens_are_batched(seed, batch_size):
    draw = np.random.default_rng(seed)
    codes = draw.random((12, 5)) * (draw.random((12, 5)) < 0.4)
    firing = CoFiring(5)
    for start in range(0, 12, batch_size):
        firing.update(torch.tensor(codes[start : start + batch_size]).float())
    found = firing.overlap([0, 3, 4], [0, 3, 4])
    for row, a in enumerate((0, 3, 4)):
        for column, b in enumerate((0, 3, 4)):
            both, either = (codes[:, a] > 0) & (codes[:, b] > 0), (codes[:, a] > 0) | (codes[:, b] > 0)
            assert found[row, column] == pytest.approx(both.sum() / either.sum() if either.any() else 0.0)


def test_half_are_near_by_direction_and_half_by_company():
    # Latent 1 points almost the way of latent 0, latent 3 fires with it most often, 2 does neither, latent 4 is dead.
    decoder = torch.tensor([[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [-1.0, 0.1], [1.0, 0.0]])
    firing = CoFiring(5)
    firing.update(
        torch.tensor([[1.0, 0, 0, 1, 0], [1.0, 0, 0, 1, 0], [1.0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0]])
    )
    rows = [feature(index) for index in (0, 1, 2, 3)]
    found = [row for row in nearest(rows, decoder, firing, 2) if row.feature_id == "subject/main/0"]
    assert [row.neighbour for row in found] == [1, 3]
    assert found[0].cosine == pytest.approx(2.0 / np.hypot(2.0, 0.2)) and found[0].co_firing == pytest.approx(1 / 4)
    assert found[1].co_firing == pytest.approx(2 / 3)


@given(
    values=st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5]), min_size=1, max_size=40), data=st.data(),
    count=st.integers(0, 12),
)  # fmt: skip
@settings(deadline=None)
def test_the_largest_are_the_first_of_a_sort_ties_by_number(values, data, count):
    members = data.draw(st.sets(st.integers(0, len(values) - 1)))
    expected = sorted(sorted(members), key=lambda member: -values[member])[:count]
    assert _largest(np.array(values), np.array(sorted(members), dtype=np.int64), count).tolist() == expected


def test_nobody_is_its_own_neighbour_and_few_features_have_few():
    decoder = torch.eye(3)
    firing = CoFiring(3)
    firing.update(torch.ones(4, 3))
    rows = [feature(index) for index in range(3)]
    for row in rows:
        near = [other.neighbour for other in nearest(rows, decoder, firing, 4) if other.feature_id == row.feature_id]
        assert sorted(near) == [index for index in range(3) if index != row.index]


def test_responses_are_in_units_of_each_latents_own_maximum():
    near = Neighbourhoods(
        [feature(0, 2.0), feature(1, 4.0), feature(2, 10.0), feature(1, 100.0, "lender")],
        [NeighbourRow("subject/main/0", 1, 0.9, 0.1), NeighbourRow("subject/main/0", 2, 0.2, 0.8)],
    )
    assert near.asked(["subject/main/0", "subject/lender/1"]) == {"main": {0, 1, 2}, "lender": {1}}
    maxima = np.array([[1.0, 1.0, 8.0], [3.0, 2.0, 1.0]], dtype=np.float32)
    read = TextActivations({"a": 0, "b": 1}, {"main": {0: 0, 1: 1, 2: 2}}, {"main": maxima})
    found = near.responses("subject/main/0", ["b", "a"], read)
    assert found.own == [1.5, 0.5]
    assert found.neighbours == pytest.approx([0.5, 0.8])  # of b: latent 1 at 2/4; of a: latent 2 at 8/10
    assert near.responses("subject/main/1", ["a"], read).neighbours == [0.0]  # no neighbour is kept
    assert near.responses("subject/main/0", [], read).own == []


def test_nothing_held_out_is_a_neighbour_of_what_is_trained_or_chosen_on():
    splits = ["sft", "dpo", "valid", "test", "twin", "spare"]
    rows = [replace(feature(index), split=split) for index, split in enumerate(splits)]
    firing = CoFiring(6)
    firing.update(torch.ones(4, 6))
    found = nearest(rows, torch.eye(6), firing, 5)
    near = {
        row.feature_id: {splits[other.neighbour] for other in found if other.feature_id == row.feature_id}
        for row in rows
    }
    assert near["subject/main/0"] == {"dpo", "spare"} and near["subject/main/1"] == {"sft", "spare"}
    assert near["subject/main/2"] == {"sft", "dpo", "spare"}  # the only valid one
    assert near["subject/main/3"] == {"sft", "dpo", "valid", "twin", "spare"}


def test_many_features_are_compared_in_parts_and_counting_ends_where_there_is_no_room(monkeypatch):
    draw = np.random.default_rng(0)
    codes = torch.tensor((draw.random((40, 12)) < 0.3) * 1.0)
    rows, decoder = [feature(index) for index in range(12)], torch.tensor(draw.normal(size=(12, 3)))
    whole = CoFiring(12)
    whole.update(codes)
    expected = nearest(rows, decoder, whole, 4)
    monkeypatch.setattr(neighbours, "AT_ONCE", 5)
    assert [row.neighbour for row in nearest(rows, decoder, whole, 4)] == [row.neighbour for row in expected]
    monkeypatch.setattr(neighbours, "PAIRS", 60)  # a batch is then cut into groups of tokens
    part = CoFiring(12)
    part.update(codes)
    assert 60 <= part.together.nnz < whole.together.nnz
    known = part.together.nnz
    part.update(codes)
    assert part.together.nnz == known
