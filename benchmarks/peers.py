"""How fast this project is beside what one would use instead: the same model, SAE, texts and machine, in one run.

    python benchmarks/peers.py [--shapes sandbox,gpt2,smollm2] [--parts extraction,...] [--write]

extraction   documents to what is kept of every latent, beside a bare forward pass, TransformerLens and eai-delphi
scoring      texts to activations, beside the whole model and the whole SAE for every text
detection    which texts an explanation is about, beside eai-delphi with the same chat model (smollm2 alone)
generation   explanations by feature tokens, beside transformers without features
preference   steps of DPO with feature tokens, beside TRL without features
memory       the most that a process of extraction held, for 1, 3 and 10 times the documents

Ways take turns, several passes of each after one that is not counted: what slows the machine slows them alike. What is
said of two ways is the median of their ratios, pass by pass. A part is a process of its own. eai-delphi and what
it needs go to .cache/peers at the first run, not into the environment. --write puts docs/PERFORMANCE.md and
docs/performance.json there, with the shapes that were not asked for as they stand.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from peers_parts import OURS, PARTS, PEERS, REPOSITORY, SHAPES, extracting

from saeexplainer.errors import UserError
from saeexplainer.figures.notation import table
from saeexplainer.runs.storage import read_json, write_json

DELPHI = "eai-delphi==0.1.3"  # the one whose interface `peers_parts` knows
WITH_DELPHI = ("faiss-cpu", "blobfile", "lxml", "tiktoken", "sentence_transformers", "asyncer")  # that it imports
MEMORY = "memory"
GROWTH = (1, 3, 10)  # times the documents
FIGURES, PAGE = REPOSITORY / "docs" / "performance.json", REPOSITORY / "docs" / "PERFORMANCE.md"
WORK = {
    "extraction": "{documents} documents of {document_tokens} tokens, {d_sae:,} latents of which 32 fire",
    "scoring": "{texts} texts of {text_tokens} tokens, {features} latents asked about",
    "detection": "10 texts of {text_tokens} tokens",
    "generation": "{sequences} answers of {answer_tokens} tokens to prompts of {prompt_tokens}",
    "preference": "2 steps of {pairs} pairs, prompts of {prompt_tokens} tokens, answers of {answer_tokens}",
    MEMORY: "1, 3 and 10 times {documents} documents of {document_tokens} tokens",
}


def fetch() -> None:
    """Put delphi where `peers_parts` looks for it, once; without it the rest is measured."""
    if PEERS.is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS)]
    if subprocess.run([*command, DELPHI, *WITH_DELPHI], check=False).returncode:
        print(f"{DELPHI} could not be had: it is left out", file=sys.stderr)


def in_this_process(shape: str, part: str) -> dict[str, list[float]]:
    """Way to the seconds of each counted pass."""
    given = SHAPES[shape]
    ways = PARTS[part](given)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.bench.passes + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                found[name].append(time.perf_counter() - start)
        print(f"{shape}, {part}: pass {number} of {given.bench.passes}", file=sys.stderr, flush=True)
    return found


def held(shape: str, times: int) -> float:
    """GiB that this process held at most, after it read so many times the documents."""
    given = SHAPES[shape]
    larger = replace(given, bench=replace(given.bench, documents=times * given.bench.documents))
    extracting(larger, larger.sae(), larger.model(larger.blocks))()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def child(*arguments: str) -> Any:
    """What a process of its own prints."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        raise UserError(f"benchmarks/peers.py: {' '.join(arguments)} failed; what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def measured(shape: str, part: str) -> dict[str, Any]:
    """One part on one shape: seconds by way, or GiB by growth."""
    bench = vars(SHAPES[shape].bench)
    work = WORK[part].format(**bench)
    if part == MEMORY:
        return {"work": work, "gib": {str(times): child(shape, part, str(times)) for times in GROWTH}}
    return {"work": work, "seconds": child(shape, part)}


def ratios(seconds: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Of every other way over ours, pass by pass: median, least, most. Above 1 we are faster."""
    found = {}
    for name, taken in seconds.items():
        if name != OURS:
            each = [theirs / own for theirs, own in zip(taken, seconds[OURS], strict=True)]
            found[name] = (statistics.median(each), min(each), max(each))
    return found


def page(figures: dict[str, Any]) -> str:
    """docs/PERFORMANCE.md, of what each shape was measured on and what was found."""
    parts = [
        "<!-- Written by `benchmarks/peers.py --write`; what is edited here is lost. -->",
        "# Beside its peers",
        "Every way has the same model, SAE, texts and machine, in one run, in float32. Ways take turns; a ratio is the "
        "median over the passes of the other way's seconds over ours, with least and most in brackets: above 1 we are "
        "faster. Weights and words are random, but for smollm2's weights. SAEs are TopK, so one latent takes the whole "
        "SAE. Extraction here tokenises, encodes and keeps statistics of each latent; a bare forward pass does not. "
        "`python benchmarks/peers.py` measures all again.",
    ]
    for shape, run in figures.items():
        found = run["parts"]
        parts += [f"## {shape}", f"On {run['machine']}."]
        rows = []
        for part, one in found.items():
            for name, (middle, low, high) in ratios(one.get("seconds", {})).items():
                own, theirs = (statistics.median(one["seconds"][way]) for way in (OURS, name))
                ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
                rows.append([part, one["work"], name, f"{own:.3f}", f"{theirs:.3f}", ratio])
        parts.append(table(["part", "work", "other way", "our seconds", "its seconds", "its over ours"], rows))
        if MEMORY in found:
            grown = sorted(found[MEMORY]["gib"].items(), key=lambda pair: int(pair[0]))
            told = ", ".join(f"{times} times {gib:.2f} GiB" for times, gib in grown)
            parts.append(f"Memory of extraction as documents grow ({found[MEMORY]['work']}): {told}.")
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """What measures."""
    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    told = re.search("model name.*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    name, capability = told[1] if told else platform.processor(), torch.backends.cpu.get_cpu_capability()
    return (
        f"{name}, {capability}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def chosen(asked: str, known: list[str], option: str) -> list[str]:
    """Names of a list with commas. Raises UserError."""
    for name in asked.split(","):
        if name not in known:
            raise UserError(f"{option}: {name}: choose from {', '.join(known)}")
    return asked.split(",")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python benchmarks/peers.py")
    parser.add_argument("--shapes", default="sandbox,gpt2,smollm2", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--parts", default=",".join([*PARTS, MEMORY]), help="left out: all")
    parser.add_argument("--write", action="store_true", help="write the page, not only print the figures")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        shape, part, *times = options.child
        print(json.dumps(held(shape, int(times[0])) if times else in_this_process(shape, part)))
        return 0
    try:
        shapes = chosen(options.shapes, list(SHAPES), "--shapes")
        parts = chosen(options.parts, [*PARTS, MEMORY], "--parts")
        fetch()
        for shape in shapes:
            found = {shape: {"machine": machine(), "parts": {part: measured(shape, part) for part in parts}}}
            print(page(found), flush=True)
            if options.write:
                keep(found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def keep(found: dict[str, Any]) -> None:
    """Write the page and its figures; shapes that were not measured now stay as they stand."""
    before = read_json(FIGURES) if FIGURES.is_file() else {}
    kept = {shape: run for shape in SHAPES if (run := (before | found).get(shape))}
    write_json(FIGURES, kept)
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
