"""The benchmark beside peers at a tiny shape: every way does its work, and what is said of two is what was measured."""

import subprocess
import sys

import pytest
from tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import peers
import peers_parts

BESIDE = {  # the other ways that need no further package
    "extraction": {"forward pass to the hook", "the same and sae.encode", "TransformerLens and sae.encode"},
    "scoring": {"whole model, whole SAE, text by text"},
    "detection": set(),  # random weights cannot answer
    "generation": {"transformers without features"},
    "preference": {"TRL without features"},
}


@pytest.mark.parametrize("part", peers_parts.PARTS)
def test_a_part_times_every_way(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_parts, "delphi", lambda: False)
    found = peers.in_this_process("tiny", part)
    others = BESIDE[part]
    assert set(found) == others | ({peers.OURS} if others else set())
    assert all(len(taken) == 2 and min(taken) > 0 for taken in found.values())


def test_a_ratio_is_the_median_over_the_passes() -> None:
    seconds = {peers.OURS: [1.0, 2.0, 4.0], "other": [3.0, 2.0, 10.0]}
    assert peers.ratios(seconds) == {"other": (2.5, 1.0, 3.0)}
    parts = {"scoring": {"work": "little", "seconds": seconds}, "memory": {"work": "more", "gib": {"1": 0.5}}}
    page = peers.page({"tiny": {"machine": "a machine", "parts": parts}})
    assert "| scoring | little | other | 2.000 | 3.000 | 2.50 (1.00 to 3.00) |" in page and "1 times 0.50 GiB" in page


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "benchmarks/peers.py", "--shapes", "huge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: --shapes: huge: choose from sandbox, gpt2, smollm2")
