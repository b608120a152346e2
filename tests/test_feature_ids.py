"""A feature's id is read and written in one way."""

import pytest
from hypothesis import given, strategies

from saeexplainer.records import FeatureId

PART = strategies.text(strategies.characters(exclude_categories=("Z", "C"), exclude_characters="/"), min_size=1)


@given(PART, PART, strategies.integers(0, 10**15 - 1))
def test_what_is_written_is_read_again(subject: str, sae: str, index: int) -> None:
    one = FeatureId(subject, sae, index)
    assert FeatureId.parse(str(one)) == one
    assert str(one) == f"{one.owner}/{index}" == f"{subject}/{sae}/{index}"


@pytest.mark.parametrize(
    "text", ["", "7", "main/7", "gpt2/main/", "gpt2/main/07", "gpt2/main/-1", "gpt2/main/1.0", "gpt2/a b/1", "a/b/c/1"]
)
def test_what_is_no_id_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(ValueError, match="subject/sae/index") as caught:
        FeatureId.parse(text)
    assert repr(text) in str(caught.value)
