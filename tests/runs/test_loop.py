"""Batches of a stage that was stopped are found again, by what their loop is about and by nothing else."""

import math
from pathlib import Path

import numpy as np
import pytest

from saeexplainer.runs.loop import keeping, spread


class Stopped(Exception):
    """What ends a stage early."""


def squares(numbers: list[int], stop_at: int | None = None, about: object = "squares") -> tuple[list, list[int]]:
    """The results, and the batches that were computed for them."""
    computed: list[int] = []

    def work(at: int, number: int) -> list:
        if at == stop_at:
            raise Stopped
        computed.append(at)
        return [number**2, f"{number}é", math.nan if number < 0 else None]

    try:
        return spread(numbers, work, about), computed
    except Stopped:
        return [], computed


def stopped(root: Path, numbers: list[int], at: int) -> None:
    with pytest.raises(Stopped), keeping(root, "f"):
        _, computed = squares(numbers, at)
        assert computed == list(range(at))
        raise Stopped


def test_a_stopped_loop_goes_on_with_the_batch_it_stopped_in(tmp_path, capfd):
    root, numbers = tmp_path / "stage", [3, -2, 0, 7]
    stopped(root, numbers, 2)
    with keeping(root, "f"):
        found, computed = squares(numbers)
        assert computed == [2, 3]
        again, computed = squares(numbers)  # the next loop about the same is another
        assert computed == [0, 1, 2, 3]
    assert "goes on, 2 of 4 batches are there" in capfd.readouterr().err
    assert [one[:2] for one in found] == [[9, "3é"], [4, "-2é"], [0, "0é"], [49, "7é"]]
    assert math.isnan(found[1][2]) and found[0][2] is None and str(again) == str(found)
    assert not root.exists(), "the stage has written"


def test_of_another_fingerprint_or_another_content_nothing_is_found(tmp_path):
    root = tmp_path / "stage"
    stopped(root, [1, 2, 3], 2)
    with pytest.raises(Stopped), keeping(root, "f"):
        assert squares([1, 2, 3], about="cubes")[1] == [0, 1, 2]
        raise Stopped
    with keeping(root, "g"):
        assert not (root / "f").exists()
        assert squares([1, 2, 3])[1] == [0, 1, 2]


def test_arrays_come_back_to_the_last_bit_and_what_is_half_written_is_computed_again(tmp_path):
    root, calls = tmp_path / "stage", []
    arrays = {"main": np.array([[1 / 3, -0.0], [np.inf, 2e-45]], np.float32), "none": np.zeros((0, 3), np.float32)}

    def work(at: int, _: str) -> dict[str, np.ndarray]:
        calls.append(at)
        return arrays

    with pytest.raises(Stopped), keeping(root, "f"):
        spread(["a", "b"], work, "arrays")
        raise Stopped
    first = min(root.rglob("0.safetensors"))
    first.write_bytes(first.read_bytes()[:40])
    with keeping(root, "f"):
        found = spread(["a", "b"], work, "arrays")
    assert calls == [0, 1, 0]
    for one in found:
        assert all(one[name].tobytes() == array.tobytes() and one[name].shape == array.shape
                   for name, array in arrays.items())  # fmt: skip


def test_outside_of_a_stage_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert squares([2])[0] == [[4, "2é", None]]
    assert not list(tmp_path.iterdir())
