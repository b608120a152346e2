"""The GPU check at tiny shapes on the CPU: every part runs, and inference takes the memory that the plan says."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
from tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
from gpu_parts import BENCHES, PARTS, flops_a_token

TINY = BENCHES["tiny"]


@cache
def result(name: str) -> dict:
    return json.loads(json.dumps(gpu.in_this_process(name, TINY, peak_tflops=2.0)))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_runs_and_says_what_it_took(name: str) -> None:
    found = result(name)
    numbers = [
        *found["passes"],
        *(found[key] for key in ("seconds", "tokens", "tokens_per_second", "peak_bytes", "ratio")),
    ]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert len(found["passes"]) == TINY.passes and min(found["passes"]) <= found["seconds"] <= max(found["passes"])
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(found["tokens"])
    assert found["planned_bytes"] == sum(found["planned"].values())
    assert (found["flops"] is None) is (found["share_of_peak"] is None) is (name in ("generation", "preference"))
    hardware = found["hardware"]
    assert hardware["device"].startswith("CPU") and hardware["torch"] and hardware["trl"] and hardware["sae_lens"]
    assert (hardware["driver"], hardware["memory_bytes"], found["reserved_bytes"]) == (None, None, None)
    assert name in gpu.line(name, found) and "\n" not in gpu.line(name, found)


@pytest.mark.parametrize("name", ["extraction", "scoring", "generation"])
def test_memory_is_what_the_plan_says(name: str) -> None:
    assert result(name)["ratio"] == pytest.approx(1, abs=gpu.WITHIN)


def test_tokens_and_operations_by_hand() -> None:
    tokens = {name: result(name)["tokens"] for name in PARTS}
    assert tokens == {"extraction": 8 * 32, "scoring": 16 * 12, "generation": 8 * 8, "preference": 2 * 4 * 16}
    # Two blocks of four matrices of 128 by 128 and three of 128 by 384; heads of 128 in all; 768 latents.
    block = 2 * (4 * 128 * 128 + 3 * 128 * 384) + 4 * 32 * 128
    assert flops_a_token(TINY, 32, 768) == 2 * block + 2 * 128 * 768
    found = result("extraction")
    assert found["flops"] == 256 * flops_a_token(TINY, 32, 768)
    assert found["share_of_peak"] == pytest.approx(found["flops"] / found["seconds"] / 2e12)


def test_too_much_is_one_line_that_says_what_to_lower() -> None:
    found = gpu.in_this_process("scoring", replace(TINY, texts=10**12), None)
    said = gpu.line("scoring", found)
    assert said.startswith("error: scoring: out of memory; planned") and "lower --texts (now 1000000000000)" in said


def test_an_unknown_part_is_refused() -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--shape", "tiny", "--parts", "sleeping"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "choose from extraction, scoring, generation, preference" in done.stderr
