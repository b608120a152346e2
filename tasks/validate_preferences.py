"""Decide whether a round's preference set may train anything: `python -m tasks.validate_preferences r1`.

Pairs that fail an expectation go to quarantine with the reason, the rest to validated.parquet, which is what train_dpo
reads. If what is left fails as a set, the stage fails and leaves no table, so training cannot start. Data Docs under
reports/data_docs/<round> are written either way: they are where one looks then.
"""

from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.records import DroppedFeature, FeatureRow, PreferencePair, QuarantinedPair
from saeexplainer.storage import read_rows, replacing, write_json, write_rows
from tasks import expectations
from tasks.expectations import Outcome, Validator
from tasks.stage import Report, main

ROUNDS = Path("data/rounds")
FEATURES = Path("data/activations/features.parquet")
DATA_DOCS = Path("reports/data_docs")


def run(params: Params, item: str) -> Report:
    """Write data/rounds/<item>/{validated,quarantine}.parquet and validation.json.

    Raises UserError, in one line, if the set that is left breaks a limit of params.validate_preferences; then none of
    the three files is there.
    """
    folder = ROUNDS / item
    for name in ("validated.parquet", "quarantine.parquet", "validation.json"):
        (folder / name).unlink(missing_ok=True)
    pairs = read_rows(folder / "pairs.parquet", PreferencePair)
    dropped = read_rows(folder / "dropped.parquet", DroppedFeature)
    features = read_rows(FEATURES, FeatureRow)
    with replacing(DATA_DOCS / item) as docs:
        validator = Validator(docs)
        columns = expectations.pair_columns(pairs, features, params)
        about_pairs = validator.check("pair", columns, expectations.pair_expectations(params))
        reasons = _reasons(about_pairs)
        left = [pair for row, pair in enumerate(pairs) if row not in reasons]
        quarantined = [_quarantined(pairs[row], reasons[row]) for row in sorted(reasons)]
        rules = expectations.set_expectations(params)
        about_set = validator.check("set", expectations.set_columns(left, pairs, dropped), rules)
    limits = {rule.meta["rule"]: rule.meta["limit"] for rule in rules}
    _refuse(item, about_set, limits, _tally(about_pairs))
    write_rows(folder / "quarantine.parquet", quarantined, QuarantinedPair)
    write_json(folder / "validation.json", _summary(item, [*about_pairs, *about_set], len(left), len(quarantined)))
    write_rows(folder / "validated.parquet", left, PreferencePair)
    return Report(
        metrics={"validated": len(left), "quarantined": len(quarantined)},
        lines=[
            f"{item}: {len(left)} of {len(pairs)} pairs may train; in quarantine: {_tally(about_pairs) or 'none'}",
            f"Data Docs: {DATA_DOCS / item / 'index.html'}",
        ],
    )


def _reasons(outcomes: list[Outcome]) -> dict[int, list[str]]:
    """Row of pairs.parquet to the names of the rules it breaks."""
    reasons: dict[int, list[str]] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            reasons.setdefault(row, []).append(outcome.name)
    return reasons


def _quarantined(pair: PreferencePair, reasons: list[str]) -> QuarantinedPair:
    values = {field.name: getattr(pair, field.name) for field in fields(PreferencePair)}
    return QuarantinedPair(**values, reason="; ".join(reasons))


def _tally(outcomes: list[Outcome]) -> str:
    counts = Counter({outcome.name: outcome.unexpected_count for outcome in outcomes if outcome.unexpected_count})
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _refuse(item: str, outcomes: list[Outcome], limits: dict[str, str], tally: str) -> None:
    failed = [
        f"{outcome.name}: {outcome.column} is {outcome.observed:.4g}, must be {limits[outcome.name]}"
        for outcome in outcomes
        if not outcome.success
    ]
    if failed:
        raise UserError(
            f"round {item}: the preference set may not train: {'; '.join(failed)}; quarantined: {tally or 'none'}; "
            f"see {DATA_DOCS / item / 'index.html'}, then change the round or the limit in params' validate_preferences"
        )


def _summary(item: str, outcomes: list[Outcome], left: int, quarantined: int) -> dict:
    """validation.json: no time and no run id, so that the same pairs give the same bytes."""
    entries = [asdict(outcome) for outcome in outcomes]
    for entry in entries:
        del entry["rows"]  # quarantine.parquet has them
    return {"round": item, "validated": left, "quarantined": quarantined, "expectations": entries}


if __name__ == "__main__":
    main(run)
