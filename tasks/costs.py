"""What the explanations of this workspace cost, by stage, by validated pair and by explanation: `sae-explainer costs`.

Calls and tokens come from reports/costs.json, seconds from `tasks.workspace.timings`, prices from
compare_rounds.prices. What each figure holds: docs/COSTS.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields

from saeexplainer.config import Params
from saeexplainer.costs import bills
from saeexplainer.costs.bills import Bill, Costs
from saeexplainer.errors import UserError
from saeexplainer.runs.storage import read_json
from tasks.places import COSTS


def bill(params: Params, timings: Mapping[str, float]) -> Bill:
    """The bill of the result that lies in reports/. Raises UserError if it is not there."""
    found = read()
    counted = [f"{stage}@{name}" for stage in (bills.SAMPLING, bills.SCORING) for name in found.rounds]
    counted += [f"{bills.MEASURING}@{name}" for name in found.evaluations]
    return bills.bill(found, timings, _ordered([*timings, *counted], params), params.compare_rounds.prices)


def read() -> Costs:
    """reports/costs.json. Raises UserError if it is missing or of another shape."""
    try:
        return bills.from_json(read_json(COSTS))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{COSTS}: not the costs of rounds and evaluations; run `dvc repro` to remake it") from None


def _ordered(stages: Iterable[str], params: Params) -> list[str]:
    """Those stages that params.yaml still has, once each, in its order, which is the pipeline's."""
    sections = [field.name for field in fields(params)]
    items = ["", *params.evaluations, *params.rounds, *params.reinforcements]
    place = {name: (stage, item) for name in stages for stage, _, item in [name.partition("@")]}
    known = [name for name, (stage, item) in place.items() if stage in sections and item in items]
    return sorted(known, key=lambda name: (sections.index(place[name][0]), items.index(place[name][1])))
