"""Ask a Prefect server whether its scheduler does its work: an active schedule always has a next run.

A scheduler that fails is easy to miss. The deployments look active and ready, and the only trace is in the server's
log. `sae-explainer doctor` and `make ui` ask this module, over plain HTTP, because tasks/ imports no orchestrator.
"""

import base64
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from saeexplainer.endpoints import web
from saeexplainer.errors import UserError, first_line

SECONDS = 10.0  # that the server may take to answer one question
PATIENCE_SECONDS = 90  # that the scheduler may take for a deployment that is new; it looks at all of them once a minute
PAGE = 200  # deployments in one answer, the most that Prefect gives
ENDLESS = ("cron", "interval")  # kinds of schedules that always have a next run; an rrule may have had its last one
SETTING = "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED"


class NoAnswer(Exception):
    """Nothing that speaks Prefect's API is at the address, or it refuses to answer; the message is a part of a line."""


@dataclass(frozen=True)
class Schedules:
    """What the server says of the deployments whose schedule is active."""

    planned: list[str]  # those whose next run is planned, by flow and name: pipeline/nightly
    unplanned: list[str]  # those without a next run, although the scheduler has had the time to plan it
    switched_off: bool  # whether the server's own settings keep its scheduler from running

    @property
    def problem(self) -> str | None:
        """What is wrong, as the first half of a line; None if nothing is."""
        if not self.unplanned:
            return None
        several = len(self.unplanned) > 1
        return (
            f"{', '.join(self.unplanned)}: {'their schedules are' if several else 'its schedule is'} active, but the "
            f"server plans no run of {'them' if several else 'it'}"
        )

    @property
    def cure(self) -> str:
        """What to do about the problem, as the second half of the line."""
        if self.switched_off:
            return f"its scheduler is switched off: unset {SETTING} or set it to true, and start the server again"
        return "the server's log says why; `make setup` brings the versions that work; then start the server again"


def schedules(api: str) -> Schedules:
    """Which active schedules have a next run. `api` is an address as PREFECT_API_URL has it. Raises NoAnswer."""
    try:
        return _schedules(api)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise NoAnswer("its answers are not those of Prefect 3") from None


def answers(api: str, seconds: float = SECONDS) -> bool:
    """Whether a Prefect server is at the address, and well."""
    try:
        return _request(api, "health", seconds=seconds) is True
    except NoAnswer:
        return False


def _schedules(api: str) -> Schedules:
    active = [one for one in _deployments(api) if _is_due(one)]
    flows = _post(api, "flows/filter", {"flows": {"id": {"any_": sorted({one["flow_id"] for one in active})}}})
    flow_names = {flow["id"]: flow["name"] for flow in flows}
    planned, unplanned = [], []
    for one in active:
        there = planned if _has_next_run(api, one["id"]) else unplanned
        there.append(f"{flow_names.get(one['flow_id'], '?')}/{one['name']}")
    return Schedules(sorted(planned), sorted(unplanned), bool(unplanned) and _is_switched_off(api))


def _deployments(api: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = _post(api, "deployments/filter", {"offset": len(found), "limit": PAGE})
        found += page
        if len(page) < PAGE:
            return found


def _is_due(deployment: dict[str, Any]) -> bool:
    """Whether the scheduler should have planned a run by now."""
    schedules = [one["schedule"] for one in deployment["schedules"] if one["active"]]
    age = datetime.now(UTC) - datetime.fromisoformat(deployment["updated"])
    endless = any(schedule.get(kind) for schedule in schedules for kind in ENDLESS)
    return endless and not deployment["paused"] and age.total_seconds() > PATIENCE_SECONDS


def _has_next_run(api: str, deployment: str) -> bool:
    runs = {
        "state": {"type": {"any_": ["SCHEDULED"]}},
        "expected_start_time": {"after_": datetime.now(UTC).isoformat()},  # late runs are SCHEDULED too
    }
    return _post(api, "flow_runs/count", {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": runs}) > 0


def _is_switched_off(api: str) -> bool:
    """False as well where the server does not show its settings."""
    try:
        return _request(api, "admin/settings")["server"]["services"]["scheduler"]["enabled"] is False
    except (NoAnswer, KeyError, TypeError):
        return False


def _post(api: str, path: str, body: dict[str, Any]) -> Any:
    return _request(api, path, json.dumps(body).encode())


def _request(api: str, path: str, body: bytes | None = None, seconds: float = SECONDS) -> Any:
    import httpx

    address = f"{api.rstrip('/')}/{path}"
    try:
        with web.client(address, seconds, {"Content-Type": "application/json", **_authorization()}) as client:
            answer = client.get(address) if body is None else client.post(address, content=body)
        if answer.is_success:
            return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, UserError) as error:
        raise NoAnswer(first_line(error)) from None
    raise NoAnswer(f"it answers {answer.status_code} {answer.reason_phrase} at /{path}")


def _authorization() -> dict[str, str]:
    """The header for a server that wants to know who asks, from the variables that Prefect's own clients read."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
