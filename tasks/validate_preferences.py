"""Decide whether a round's preference set may train anything: `python -m tasks.validate_preferences r1`.

Pairs that fail an expectation go to quarantine with the reason, the rest to validated.parquet, which is what train_dpo
reads. If what is left fails as a set, the stage fails and leaves no validated.parquet, so training cannot start. The
quarantine, validation.json and Data Docs under reports/data_docs/<round> are written either way: they are where one
looks then. docs/PREFERENCES.md says what is checked and why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.preferences.sets import Figures, drift, figures, read_figures
from saeexplainer.records import DroppedFeature, FeatureRow, PreferencePair, QuarantinedPair, ScoreRow
from saeexplainer.runs.storage import read_rows, replacing, write_json, write_rows
from tasks.places import DATA_DOCS, EXPLAINERS, ROUNDS
from tasks.stage import Report, main
from tasks.validation import pair_suite, set_suite
from tasks.validation.data_docs import VERDICT, Outcome, Validator, fingerprint, write_index
from tasks.validation.set_suite import SetRule

FEATURES = Path("data/activations/features.parquet")


@dataclass(frozen=True)
class Examination:
    """What the suites found in one preference set."""

    pairs: list[PreferencePair]  # as they came
    reasons: dict[int, list[str]]  # row of a pair that fails -> names of the rules it breaks
    outcomes: list[Outcome]  # every expectation's, in the order of the suites
    rules: list[SetRule]  # what was asked of the set
    figures: Figures  # of what is left
    not_applicable: dict[str, str]  # rules that nothing could be held against, and why

    @property
    def left(self) -> list[PreferencePair]:
        """The pairs that break no rule."""
        return [pair for row, pair in enumerate(self.pairs) if row not in self.reasons]

    @property
    def broken(self) -> list[Outcome]:
        """The rules about the set that are broken; if there is one, nothing may train."""
        return [outcome for outcome in self.outcomes if outcome.level == "set" and not outcome.success]


def run(params: Params, item: str) -> Report:
    """Write data/rounds/<item>/{validated,quarantine}.parquet and validation.json.

    Raises UserError, in one line, if the set that is left breaks a limit of params.validate_preferences; then there is
    no validated.parquet. DVC leaves the other two where they are: it removes outputs before a stage runs, and what a
    failed one wrote is in no dvc.lock.
    """
    folder = ROUNDS / item
    for name in ("validated.parquet", "quarantine.parquet", "validation.json"):
        (folder / name).unlink(missing_ok=True)
    found = examined(params, item)
    left = found.left
    write_rows(folder / "quarantine.parquet", _quarantined(found), QuarantinedPair)
    write_json(folder / "validation.json", _summary(item, found))
    _refuse(item, found)
    write_rows(folder / "validated.parquet", left, PreferencePair)
    tally = _tally(found.outcomes) or "none"
    return Report(
        metrics={"validated": len(left), "quarantined": len(found.reasons)},
        lines=[
            f"{item}: {len(left)} of {len(found.pairs)} pairs may train; in quarantine: {tally}",
            *_notes(found.not_applicable),
            f"Data Docs: {DATA_DOCS / item / 'index.html'}",
        ],
    )


def examined(params: Params, item: str) -> Examination:
    """Run the suites on a round's pairs and write its Data Docs, whatever they find."""
    pairs = read_rows(ROUNDS / item / "pairs.parquet", PreferencePair, gaps=True)
    dropped = read_rows(ROUNDS / item / "dropped.parquet", DroppedFeature)
    features = read_rows(FEATURES, FeatureRow)
    scores = read_rows(ROUNDS / item / "scores.parquet", ScoreRow)
    before = _figures_before(params.rounds[item].start)
    with replacing(DATA_DOCS / item) as docs:
        validator = Validator(docs)
        columns = pair_suite.pair_columns(pairs, features, params)
        about_pairs = validator.check("pair", columns, pair_suite.pair_expectations(params, item))
        sound = sorted(set(range(len(pairs))) - _reasons(about_pairs).keys())
        columns = pair_suite.measured_columns(pairs, scores, sound)
        about_pairs += validator.check("measured", columns, pair_suite.measured_expectations())
        reasons = _reasons(about_pairs)
        left = [pair for row, pair in enumerate(pairs) if row not in reasons]
        now = figures(left, pairs, dropped)
        not_applicable = _without_drift(params, item, before, now)
        drifted = None if before is None or not_applicable else drift(now, before)
        rules = set_suite.set_rules(left, pairs, dropped, drifted, params)
        columns, suite = set_suite.set_columns(rules), set_suite.set_expectations(rules)
        about_set = validator.check("set", columns, suite, "; ".join(_notes(not_applicable)))
        found = Examination(pairs, reasons, [*about_pairs, *about_set], rules, now, not_applicable)
        validator.write_docs()
        write_json(docs / VERDICT, _verdict(found) | {"pairs": fingerprint(ROUNDS / item / "pairs.parquet")})
    write_index(list(params.rounds))
    return found


def _figures_before(start: str) -> Figures | None:
    """Of the set that the round's start was trained on; None for sft, which no preference set has trained."""
    return None if start == "sft" else read_figures(EXPLAINERS / start / "preferences.json")


def _without_drift(params: Params, item: str, before: Figures | None, now: Figures) -> dict[str, str]:
    """The rules about drift and why they cannot be asked, if they cannot."""
    start, by_sentence = params.rounds[item].start, params.score_explanations.by_sentence
    if before is None:
        why = f"the round starts from {start}, which no preference set has trained"
    elif not now.features:
        why = "no pair is left to compare"
    elif (item in by_sentence) != (start in by_sentence):
        why = f"of {item} and {start} one is rewarded by the sentence alone and one by what texts do"
    else:
        return {}
    return dict.fromkeys(set_suite.DRIFT_RULES, why)


def _notes(not_applicable: dict[str, str]) -> list[str]:
    """A line for each reason not to ask something."""
    by_reason: dict[str, list[str]] = {}
    for rule, why in not_applicable.items():
        by_reason.setdefault(why, []).append(rule)
    return [f"not applicable, because {why}: {', '.join(rules)}" for why, rules in by_reason.items()]


def _reasons(outcomes: Sequence[Outcome]) -> dict[int, list[str]]:
    reasons: dict[int, list[str]] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            reasons.setdefault(row, []).append(outcome.name)
    return reasons


def _quarantined(found: Examination) -> list[QuarantinedPair]:
    names = [field.name for field in fields(PreferencePair)]
    return [
        QuarantinedPair(**{name: getattr(found.pairs[row], name) for name in names}, reason="; ".join(reasons))
        for row, reasons in sorted(found.reasons.items())
    ]


def _tally(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(
        {outcome.name: outcome.unexpected_count for outcome in outcomes if outcome.rows and outcome.unexpected_count}
    )
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _refuse(item: str, found: Examination) -> None:
    limits = {rule.name: rule.limit for rule in found.rules}
    failed = [
        f"{outcome.name}: {outcome.column} is {outcome.observed:.4g}, must be {limits[outcome.name]}"
        for outcome in found.broken
    ]
    if failed:
        raise UserError(
            f"round {item}: the preference set may not train: {'; '.join(failed)}; quarantined: "
            f"{_tally(found.outcomes) or 'none'}; see {DATA_DOCS / item / 'index.html'} and "
            f"{ROUNDS / item / 'quarantine.parquet'}, then change the round or the limit in params' "
            "validate_preferences"
        )


def _summary(item: str, found: Examination) -> dict:
    """validation.json: no time and no run id, so that the same pairs give the same bytes. `refused` is there only where
    the set is."""
    refused = [outcome.name for outcome in found.broken]
    entries = [asdict(outcome) for outcome in found.outcomes]
    for entry in entries:
        del entry["rows"]  # quarantine.parquet has them
    return {
        "round": item,
        "validated": 0 if refused else len(found.left),
        "quarantined": len(found.reasons),
        "expectations": entries,
        "not_applicable": found.not_applicable,
        "figures": asdict(found.figures),
        **({"refused": refused} if refused else {}),
    }


def _verdict(found: Examination) -> dict:
    """A round's line in the index over rounds."""
    broken = ", ".join(outcome.name.replace("_", " ") for outcome in found.broken)
    return {
        "verdict": f"refused: {broken}" if broken else "may train",
        "validated": 0 if broken else len(found.left),
        "quarantined": len(found.reasons),
        "notes": "; ".join(_notes(found.not_applicable)),
    }


if __name__ == "__main__":
    main(run)
