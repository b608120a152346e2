"""`sae-explainer attribute`: a reward model that is a sum over features, fitted to a round's pairs."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from saeexplainer.errors import UserError
from tasks.places import LABELS, REPORTS, ROUNDS, SAES, SUBJECT
from tasks.workspace.printable import printable

SHOWN = 8  # features
FEWEST = 10  # pairs on either side
RESAMPLES = 2000


def attribute(
    round_: Annotated[str, typer.Argument(metavar="ROUND", help="Whose validated pairs, such as r1.")],
    explanation: Annotated[
        str, typer.Option(metavar="TEXT", help="Show the reward of this explanation instead, feature by feature.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Fit a reward model to a round's pairs that is a sum over SAE features of the explanation alone, as in SARM.

    It tells how much of what is preferred is in the sentence, whatever feature it is about: the share of held-out pairs
    that it ranks right, beside the explainer's own, and the features that decide.
    Example: sae-explainer attribute r1
    """
    found = fitted(round_, explanation)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for line in _told(found, round_):
        print(printable(line))


def fitted(name: str, explanation: str = "") -> dict[str, Any]:
    """The accuracy on the pairs of valid, and the features that decide; or, of one explanation, the terms of its
    reward. Raises UserError if there is no such round, or too few pairs."""
    from saeexplainer.figures.intervals import bootstrap_mean
    from saeexplainer.preferences import attribution
    from saeexplainer.records import PreferencePair
    from saeexplainer.runs.storage import read_rows
    from saeexplainer.saes.reading import open_reader
    from saeexplainer.saes.text_activations import read_ends
    from tasks.settings import params

    settings = params.load()
    known = [*settings.rounds]
    if name not in known:
        raise UserError(f"{name}: no such round; choose from {', '.join(known) or 'none: there are no rounds'}")
    pairs = read_rows(ROUNDS / name / "validated.parquet", PreferencePair)
    learned, held_out = ([pair for pair in pairs if pair.split == split] for split in ("dpo", "valid"))
    if min(len(learned), len(held_out)) < FEWEST:
        raise UserError(
            f"{ROUNDS / name / 'validated.parquet'}: {len(learned)} pairs to fit and {len(held_out)} held out; both "
            f"need {FEWEST}"
        )
    main = settings.prepare_sae.saes[0].name
    reader = open_reader(SUBJECT, SAES, [main], settings.prepare_subject.context_length, whole=False)

    def sides(some: Sequence[PreferencePair]) -> tuple[Any, Any]:
        told = [pair.chosen_explanation for pair in some], [pair.rejected_explanation for pair in some]
        return tuple(read_ends(texts, reader, main) for texts in told)

    weights = attribution.fit(*sides(learned))
    names = _names(pairs[0].feature_id.split("/")[0], main)
    if explanation:
        terms = attribution.parts(weights, read_ends([explanation], reader, main)[0])
        return {"reward": sum(terms.values()), "terms": _named(terms, names)}
    chosen, rejected = sides(held_out)
    by_feature: dict[str, list[float]] = {}
    for pair, right in zip(held_out, attribution.ranked(weights, chosen, rejected), strict=True):
        by_feature.setdefault(pair.feature_id, []).append(float(right))
    means = [sum(one) / len(one) for one in by_feature.values()]
    return {
        "pairs": len(learned),
        "held_out_pairs": len(held_out),
        "ranked_right": asdict(bootstrap_mean(means, RESAMPLES, settings.seed)),
        "explainer_ranks_right": _own_accuracy(name),
        "terms": _named(attribution.parts(weights, (chosen - rejected).mean(axis=0)), names),
    }


def _names(subject: str, sae: str) -> dict[int, str]:
    """What the labels call the latents."""
    from saeexplainer.records import ExplanationRow, FeatureId
    from saeexplainer.runs.storage import read_rows

    found = {FeatureId.parse(row.feature_id): row.explanation for row in read_rows(LABELS, ExplanationRow)}
    return {one.index: said for one, said in found.items() if (one.subject, one.sae) == (subject, sae)}


def _named(terms: Mapping[int, float], names: Mapping[int, str]) -> list[dict[str, Any]]:
    return [{"latent": at, "label": names.get(at), "adds": value} for at, value in terms.items()]


def _own_accuracy(name: str) -> float | None:
    """The share of valid pairs that the explainer ranks right, as its training measured it last; None if unknown."""
    path = REPORTS / "training" / f"{name}.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as opened:
        values = [row["value"] for row in csv.DictReader(opened) if row["metric"] == "eval_rewards/accuracies"]
    return float(values[-1]) if values else None


def _told(found: Mapping[str, Any], name: str) -> list[str]:
    if "reward" in found:
        lines = [f"reward {found['reward']:+.3f}, of which"]
    else:
        right, own = found["ranked_right"], found["explainer_ranks_right"]
        lines = [
            f"{name}: fitted to {found['pairs']} pairs, held out {found['held_out_pairs']} of {right['n']} features",
            f"ranked right by the sentence alone: {right['value']:.3f} ({right['low']:.3f} to {right['high']:.3f})",
            f"by the explainer, at the end of its training: {'unknown' if own is None else format(own, '.3f')}",
            "what the chosen have more of, on average:",
        ]
    shown = found["terms"][:SHOWN]
    rest = found["terms"][SHOWN:]
    lines += [f"{term['adds']:+8.3f}  feature {term['latent']}: {term['label'] or '(no label)'}" for term in shown]
    return lines + [f"{sum(term['adds'] for term in rest):+8.3f}  {len(rest)} more features"] * bool(rest)
