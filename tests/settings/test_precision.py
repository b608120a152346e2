"""The precision that `make real` takes: what was quicker here, and settings that belong together."""

import pytest
import torch
import yaml

from tasks.settings import precision
from tasks.settings.compose import composed


def chosen(monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float) -> dict:
    monkeypatch.setattr(precision, "seconds", {torch.bfloat16: bfloat16, torch.float32: float32}.__getitem__)
    return yaml.safe_load(composed(["experiment=smollm2", *precision.overrides().split()]))


@pytest.mark.parametrize(
    ("bfloat16", "float32", "dtype"), [(1.0, 2.3, "bfloat16"), (1.0, 1.1, "float32"), (1.7, 1.0, "float32")]
)
def test_bfloat16_is_taken_where_it_is_clearly_quicker(monkeypatch, bfloat16, float32, dtype):
    found = chosen(monkeypatch, bfloat16, float32)
    assert found["prepare_subject"]["pretrained"]["dtype"] == dtype
    assert found["explainer"]["pretrained"]["dtype"] == found["evaluate"]["writer"]["model"]["dtype"] == dtype
    assert found["explainer"]["bf16"] == (dtype == "bfloat16")


def test_a_product_takes_time():
    assert 0 < precision.seconds(torch.float32) < 10
