"""`sae-explainer attribute`: a reward model that is a sum over features, fitted to a round's pairs."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from saeexplainer.errors import UserError
from tasks.workspace.printable import printable

SHOWN = 8  # features


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
    """The summary of a round's reward model; or, of one explanation, the terms of its reward. Raises UserError if there
    is no such round, or too few pairs."""
    from tasks.attribution import Attributed
    from tasks.sentence_reward import codes_of
    from tasks.settings import params

    settings = params.load()
    known = [*settings.rounds]
    if name not in known:
        raise UserError(f"{name}: no such round; choose from {', '.join(known) or 'none: there are no rounds'}")
    found = Attributed(settings, name, codes_of(settings))
    return found.of_one(explanation) if explanation else found.summary()


def _told(found: Mapping[str, Any], name: str) -> list[str]:
    if "reward" in found:
        lines = [f"reward {found['reward']:+.3f}, of which"]
    else:
        right, own = found["ranked_right"], found["explainer_ranks_right"]
        lines = [
            f"{name}: fitted to {found['pairs']} pairs, held out {found['held_out_pairs']} of {right['n']} features",
            f"ranked right by the sentence alone: {right['value']:.3f} ({right['low']:.3f} to {right['high']:.3f})",
            f"by the explainer, at the end of its training: {'unknown' if own is None else format(own, '.3f')}",
            *_told_candidates(found["candidates"]),
            "what the chosen have more of, on average:",
        ]
    shown = found["terms"][:SHOWN]
    rest = found["terms"][SHOWN:]
    lines += [f"{term['adds']:+8.3f}  feature {term['latent']}: {term['label'] or '(no label)'}" for term in shown]
    return lines + [f"{sum(term['adds'] for term in rest):+8.3f}  {len(rest)} more features"] * bool(rest)


def _told_candidates(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    said = {"ranked_first": "that it ranks first", "any": "drawn at random", "best": "that earn most"}
    means = ", ".join(f"{words} {found[name]['value']:.3f}" for name, words in said.items())
    return [f"mean reward of held-out candidates {means}"]
