"""What others published about SAEs, asked again of the runs of a plan: the difference between two groups of them, with
its interval, and whether that is what was claimed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saeexplainer.figures.intervals import bootstrap_mean, difference_of_means, known_values
from saeexplainer.figures.notation import DASH, bold, heading, literal, table
from saeexplainer.study.figures import BOOTSTRAP_SEED, COMPLETE, Variant, last_round, of_group

YES, NO, OPEN = "yes", "no", "not shown"


@dataclass(frozen=True)
class Claim:
    """One group of runs against another in one figure."""

    said: str  # what was published
    source: str  # arXiv
    a: str  # a group
    b: str  # what it is compared with
    figure: str  # of reports/sae.json, or a metric of the last round
    sign: int  # 1: a is said to be above b; -1: below; 0: the same


CLAIMS = (
    Claim("a meta-SAE in the loss lowers phi, by 7.5 %", "2604.03436", "meta", "topk", "phi", -1),
    Claim("and raises fuzzing, by 7.6 %", "2604.03436", "meta", "topk", "fuzzing_auc", 1),
    Claim(
        "gated fires fewer latents than an L1 penalty (published: half)", "2404.16014", "gated", "standard", "l0", -1
    ),
    Claim("at equal fidelity", "2404.16014", "gated", "standard", "fraction_variance_unexplained", 0),
    Claim("p-annealing covers known concepts as gated does", "2408.00113", "p_anneal", "gated", "coverage", 0),
    Claim("too low an L0 makes decoder rows alike", "2508.16560", "k2", "topk", "c_dec", 1),
    Claim("and covers concepts less", "2508.16560", "k2", "topk", "coverage", -1),
    Claim("ordered SAEs are more stable from seed to seed", "2512.02194", "ordered", "topk", "stability", 1),
    Claim("and their features steer better", "2512.02194", "ordered", "topk", "output_accuracy", 1),
    Claim("TopK's latents map to concepts better", "2512.07355", "topk", "standard", "coverage", 1),
    Claim("though steering does not follow", "2512.07355", "topk", "standard", "output_accuracy", 0),
)


def summarise(variants: Sequence[Variant], resamples: int) -> list[dict[str, Any]]:
    """Each claim with its difference, null where too few runs are there, and the verdict."""
    return [_asked(claim, variants, resamples) for claim in CLAIMS]


def _asked(claim: Claim, variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    a, b = ([one for one in of_group(variants, group) if one.status == COMPLETE] for group in (claim.a, claim.b))
    found = _of_saes(claim.figure, a, b, resamples) or _of_features(claim.figure, a, b, resamples)
    return asdict(claim) | {"runs": min(len(a), len(b)), "difference": found, "verdict": _verdict(claim.sign, found)}


def _of_saes(figure: str, a: Sequence[Variant], b: Sequence[Variant], resamples: int) -> dict[str, Any] | None:
    """Of a figure of the SAE itself: the mean of the differences seed by seed, and its interval over seeds."""
    of_b = {one.seed: (one.sae or {}).get(figure) for one in b}
    pairs = [((one.sae or {}).get(figure), of_b.get(one.seed)) for one in a]
    differences = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    return asdict(bootstrap_mean(differences, resamples, BOOTSTRAP_SEED)) if len(differences) > 1 else None


def _of_features(metric: str, a: Sequence[Variant], b: Sequence[Variant], resamples: int) -> dict[str, Any] | None:
    """Of a metric of the last round: the features of all seeds of one group less those of the other."""
    values = [[value for one in group for value in _values(one, metric)] for group in (a, b)]
    if min(len(a), len(b)) < 2 or not all(values):
        return None
    return asdict(difference_of_means(*values, resamples, BOOTSTRAP_SEED))


def _values(variant: Variant, metric: str) -> list[float]:
    rows = variant.evaluations.get(last_round(variant.evaluations) or "", [])
    return known_values({row.feature_id: getattr(row, metric, float("nan")) for row in rows})


def _verdict(sign: int, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return DASH
    above, below = found["low"] > 0, found["high"] < 0
    if not sign:
        return NO if above or below else YES
    if not above and not below:
        return OPEN
    return YES if above == (sign > 0) else NO


def sections(claims: Sequence[Mapping[str, Any]], of_saes: Mapping[str, Any]) -> Iterator[str]:
    """A table of them; `of_saes` are the figures that stand in their own units."""
    yield "## Published claims, asked again"
    yield (
        "The first group less the second. For a figure of the SAE it is the mean difference of runs of one seed, and "
        "the interval is over seeds; for a metric of explanations, in points, it is over features. Of a claim "
        "that two are the same, yes means that no difference was shown. It is all of this subject and these settings."
    )
    rows = []
    for one in claims:
        name, form = of_saes.get(one["figure"], (heading(one["figure"]), None))
        groups = literal(f"{one['a']} − {one['b']}")
        shown = _shown(one["difference"], form)
        rows.append([one["said"], f"arXiv {one['source']}", groups, name, shown, str(one["runs"]), one["verdict"]])
    yield table(["claim", "source", "groups", "figure", "difference", "runs", "so here?"], rows)


def _shown(found: Mapping[str, Any] | None, form: str | None) -> str:
    """In points; with a form, in the figure's own units."""
    if found is None or form is None:
        return bold(found)
    value, low, high = (format(found[end], f"+{form}") for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
