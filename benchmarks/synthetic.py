"""How well each architecture finds features that are known: SynthSAEBench (arXiv 2602.14687) at an eighth of its size.

    python benchmarks/synthetic.py [--only topk,gated,...] [--seeds 0,1,2] [--write]

The world is sae-lens' own: sparse features, frequent and rare, in trees whose siblings exclude each other. SAEs are
trained on its activations by the pipeline's code, saved, loaded by plain sae-lens and measured by its benchmark.
Architectures that are told no k have their coefficient tuned on the first seed until as many latents fire as in the
others. --write puts docs/SYNTHETIC.md and docs/synthetic.json there, with the rows that were not asked for as they
stand.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from jaxtyping import Float
from pydantic import TypeAdapter
from sae_lens import SAE, synthetic
from torch import Tensor

from saeexplainer.config import PrepareSae
from saeexplainer.config.saes import ArchitectureOfSae, TrainedSae
from saeexplainer.errors import UserError
from saeexplainer.figures.notation import table
from saeexplainer.runs.storage import read_json, write_json
from saeexplainer.saes.training import train_and_save

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES, PAGE = REPOSITORY / "docs" / "synthetic.json", REPOSITORY / "docs" / "SYNTHETIC.md"
ARCHITECTURES = "topk batchtopk matryoshka standard gated jumprelu p_anneal ordered meta".split()  # of conf/sae
TOLERANCE, TRIALS = 0.05, 8  # a tuned L0 may be so far off, as a share; trainings that tuning may cost
METRICS = {  # as a heading, and how it is written
    "f1": ("F1", "{:.3f}"),
    "mcc": ("MCC", "{:.3f}"),
    "uniqueness": ("uniqueness", "{:.3f}"),
    "explained": ("variance explained", "{:.3f}"),
    "l0": ("L0", "{:.1f}"),
    "dead": ("dead", "{:.0f}"),
}
PUBLISHED = {  # at 16,384 features, width 4,096, 200 million samples: F1 and MCC at L0 25
    "batchtopk": (0.732, 0.757),
    "matryoshka": (0.879, 0.793),
    "standard": (0.556, 0.604),
    "jumprelu": (0.732, 0.753),
}


@dataclass(frozen=True)
class Size:
    """How large the world is and how long is trained."""

    features: int = 2048
    d_model: int = 256
    trees: int = 16  # of 85 features each
    d_sae: int = 512
    samples: int = 1_024_000  # activations that all are trained on
    steps: int = 2000
    batch: int = 1024
    learning_rate: float = 1e-3
    measured: int = 100_000  # activations of the measurement


def world(size: Size) -> synthetic.SyntheticModel:
    """The published world but for its size."""
    return synthetic.SyntheticModel(
        synthetic.SyntheticModelConfig(
            num_features=size.features,
            hidden_dim=size.d_model,
            firing_probability=synthetic.ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
            hierarchy=synthetic.HierarchyConfig(
                total_root_nodes=size.trees, branching_factor=4, max_depth=3, mutually_exclusive_portion=1.0,
                mutually_exclusive_min_depth=0, compensate_probabilities=True, scale_children_by_parent=True,
            ),
            orthogonalization=synthetic.OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=synthetic.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
            mean_firing_magnitudes=synthetic.LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=synthetic.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=0.5,
            seed=42,
        )
    )  # fmt: skip


@torch.no_grad()
def drawn(model: synthetic.SyntheticModel, size: Size) -> Float[Tensor, "samples d_model"]:
    """Activations to train on."""
    torch.manual_seed(0)
    batches = [model.sample(size.batch) for _ in range(size.samples // size.batch)]
    return torch.cat(batches)


def settings(name: str) -> ArchitectureOfSae:
    """What conf/sae has of an architecture."""
    given = yaml.safe_load((REPOSITORY / "conf" / "sae" / f"{name}.yaml").read_text())
    return TypeAdapter(ArchitectureOfSae).validate_python(given["prepare_sae"]["architecture"])


def trained(architecture: ArchitectureOfSae, activations: Tensor, size: Size, seed: int) -> tuple[SAE[Any], float]:
    """The SAE as anybody loads it, and the seconds of its training."""
    spec = TrainedSae(name="main", d_sae=size.d_sae, seed=seed)
    config = PrepareSae(
        hook_block=0, architecture=architecture, saes=[spec], seed=0, documents=1, steps=size.steps,
        batch_tokens=size.batch, learning_rate=size.learning_rate, text_encoder=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train_and_save(activations, config, spec, seed, Path(folder))
        seconds = time.perf_counter() - start
        return SAE.load_from_disk(folder), seconds


def measured(sae: SAE[Any], model: synthetic.SyntheticModel, size: Size) -> dict[str, float]:
    """The benchmark's metrics, on activations that are the same for all."""
    torch.manual_seed(1)
    found = synthetic.eval_sae_on_synthetic_data(
        sae, model.feature_dict, model.activation_generator, num_samples=size.measured, batch_size=size.batch
    )
    return {
        "f1": found.classification.f1_score, "mcc": found.mcc, "uniqueness": found.uniqueness,
        "explained": found.explained_variance, "l0": found.sae_l0, "dead": found.dead_latents,
    }  # fmt: skip


def tuned(l0_of: Callable[[float], float], coefficient: float, target: float) -> float:
    """The coefficient whose L0 comes closest to the target; L0 falls as it grows. Costs at most `TRIALS` trainings."""
    tried: dict[float, float] = {}
    while len(tried) < TRIALS:
        tried[coefficient] = l0_of(coefficient)
        if abs(tried[coefficient] / target - 1) <= TOLERANCE:
            break
        too_low = [one for one, l0 in tried.items() if l0 > target]
        too_high = [one for one, l0 in tried.items() if l0 <= target]
        if too_low and too_high:
            coefficient = math.sqrt(max(too_low) * min(too_high))
        else:
            coefficient = 2 * max(too_low) if too_low else min(too_high) / 2
    return min(tried, key=lambda one: abs(tried[one] - target))


def page(figures: Mapping[str, Any]) -> str:
    """docs/SYNTHETIC.md."""
    size, rows = figures["size"], []
    for name, found in figures["architectures"].items():
        seeds = found["seeds"].values()
        cells = [_spread([one[metric] for one in seeds], shown) for metric, (_, shown) in METRICS.items()]
        theirs = " / ".join(f"{value:.3f}" for value in PUBLISHED.get(name, ())) or "–"
        rows.append([f"`{name}`", found["told"], *cells, f"{found['times_topk']:.2f}", theirs])
    head = [
        "architecture",
        "told",
        *(head for head, _ in METRICS.values()),
        "seconds over TopK's",
        "published F1 / MCC",
    ]
    return "\n\n".join(
        [
            "<!-- Written by `benchmarks/synthetic.py --write`; what is edited here is lost. -->",
            "# Features that are known",
            "SynthSAEBench ([arXiv 2602.14687](https://arxiv.org/abs/2602.14687)) draws activations from features that "
            f"it knows and asks how many of them an SAE finds. Here it has {size['features']:,} features in "
            f"{size['d_model']} dimensions, an eighth of the published number, and SAEs of {size['d_sae']} latents see "
            f"{size['steps'] * size['batch']:,} activations, a hundredth. The SAEs are trained by the pipeline's own "
            "code and loaded by plain sae-lens, whose benchmark measures them. So a row may be compared with the other "
            "rows, and with the published column, of an L0 of 25, only by its order.",
            f"About {figures['true_l0']:.1f} of the {size['d_sae']} most frequent features fire at once; as many "
            "latents may. An architecture that is told no k has its coefficient tuned to that on the first seed. Means "
            f"over {len(figures['seeds'])} seeds of the training, with least and most in brackets; the world is one. "
            "Seconds are of the training, divided by those of TopK with the same seed in the same run.",
            table(head, rows),
            "F1: a latent as a detector of its closest feature. MCC: mean absolute cosine of decoder rows and "
            "features, matched one to one. Uniqueness: features that are closest to some latent, over latents.",
            "`python benchmarks/synthetic.py` measures all again.",
        ]
    ) + "\n"  # fmt: skip


def _spread(values: Sequence[float], shown: str) -> str:
    middle, low, high = (shown.format(value) for value in (statistics.mean(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def run(names: Sequence[str], seeds: Sequence[int], size: Size) -> dict[str, Any]:
    """Every architecture on every seed."""
    model = world(size)
    activations = drawn(model, size)
    with torch.no_grad():
        firing = model.activation_generator.sample(10 * size.batch)[:, : size.d_sae]
    true_l0 = float((firing > 0).float().sum(dim=1).mean())
    asked = ["topk", *(name for name in names if name != "topk")]  # whose seconds the others are divided by
    fitted = {name: _fitted(settings(name), true_l0, activations, model, size, seeds[0]) for name in asked}
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in asked}
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for seed in seeds:
        for name, architecture in fitted.items():  # in turns: what slows the machine slows all alike
            sae, taken = trained(architecture, activations, size, seed)
            seconds[name].append(taken)
            rows[name][str(seed)] = measured(sae, model, size)
            print(f"{name}, seed {seed}: {rows[name][str(seed)]}, {taken:.0f} s", file=sys.stderr, flush=True)
    found = {}
    for name, architecture in fitted.items():
        told = f"k {architecture.k}" if hasattr(architecture, "k") else f"coefficient {architecture.coefficient:.3g}"
        ratio = statistics.median(own / base for own, base in zip(seconds[name], seconds["topk"], strict=True))
        found[name] = {"told": told, "seeds": rows[name], "times_topk": ratio}
    return {"size": asdict(size), "true_l0": true_l0, "seeds": list(seeds), "architectures": found}


def _fitted(
    architecture: Any, l0: float, activations: Tensor, model: synthetic.SyntheticModel, size: Size, seed: int
) -> Any:
    """As many active latents as the world has features."""
    if hasattr(architecture, "k"):
        return replace(architecture, k=round(l0))

    def l0_of(coefficient: float) -> float:
        sae, _ = trained(replace(architecture, coefficient=coefficient), activations, size, seed)
        fired = measured(sae, model, size)["l0"]
        print(f"{architecture.kind}: coefficient {coefficient:.4g}, L0 {fired:.1f}", file=sys.stderr, flush=True)
        return fired

    return replace(architecture, coefficient=tuned(l0_of, architecture.coefficient, l0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with --write keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ARCHITECTURES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise UserError(f"--only: {unknown[0]}: choose from {', '.join(ARCHITECTURES)}")
    if not all(seed.isdecimal() for seed in given.seeds.split(",")):
        raise UserError(f"--seeds: {given.seeds}: must be whole numbers, such as 0,1,2")
    figures = run(names, [int(seed) for seed in given.seeds.split(",")], Size())
    if given.write and FIGURES.is_file():
        before = read_json(FIGURES)
        if all(before[key] == figures[key] for key in ("size", "true_l0", "seeds")):
            figures["architectures"] = before["architectures"] | figures["architectures"]
    print(page(figures))
    if given.write:
        write_json(FIGURES, figures)
        PAGE.write_text(page(figures))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
