"""What calls to an endpoint cost, and the limit that stops them before it is passed.

A reply costs what the server says it took; where it says nothing, four characters are taken for a token. An attempt
that times out or breaks off may have been billed without a word, so it counts at its estimate: the sum errs upwards.
"""

import math
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from saeexplainer.config.parts import Endpoint
from saeexplainer.errors import UserError
from saeexplainer.records import Usage

CHARACTERS_A_TOKEN = 4
MILLION = 1_000_000
MOST = 2**63  # tokens; what is more is no count
LENGTH_FIELDS = ("max_completion_tokens", "max_tokens")  # of a request: what its reply may have at most


def reported(usage: object) -> dict[str, int] | None:
    """Tokens of prompt and completion in the usage field of a reply; None unless it holds both."""
    if not isinstance(usage, Mapping):
        return None
    found: dict[str, Any] = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    known = all(type(value) in (int, float) and 0 <= value < MOST and value == value // 1 for value in found.values())
    return {name: int(value) for name, value in found.items()} if known else None


def used(usage: Mapping[str, int] | None, body: Mapping[str, Any], reply: str) -> Usage:
    """What a reply took: as `reported` has it, or estimated."""
    if usage is None:
        return Usage(1, prompt_tokens(body), _tokens(reply))
    return Usage(1, usage["prompt_tokens"], usage["completion_tokens"])


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of a request's messages, estimated."""
    return sum(_tokens(message["content"]) for message in body["messages"])


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_A_TOKEN)


class Bill:
    """What became of one attempt. Unless it says otherwise it cost nothing."""

    def __init__(self) -> None:
        self.usage: Usage | None = None  # of a reply
        self.estimated = False  # the server did not report it
        self.unknown = False  # it may have been billed, and no reply came


class Purse:
    """What one client has spent in this run, counted over all its threads."""

    def __init__(self, endpoint: Endpoint, where: str) -> None:
        """`where` is the setting that messages name."""
        self.endpoint, self.where = endpoint, where
        self.usage, self.broken, self.estimated = Usage(0, 0, 0), 0, 0  # of replies, attempts, replies
        self.spent = 0.0  # USD
        self._open: list[float] = []  # USD that each attempt under way may take
        self._longest = 0  # written tokens of a reply so far
        self._turn = threading.Condition()

    @contextmanager
    def paying(self, body: Mapping[str, Any]) -> Generator[Bill, None, None]:
        """Hold the money of one attempt until its bill is known. Raises UserError where the limit leaves too little."""
        bill, cost = Bill(), self._take(body)
        try:
            yield bill
        finally:
            self._settle(bill, cost)

    def _take(self, body: Mapping[str, Any]) -> float:
        """USD that an attempt may take; waits while those under way may leave enough."""
        with self._turn:
            while (limit := self.endpoint.max_cost) is not None:
                cost = self._estimate(body)
                if self.spent + sum(self._open) + cost <= limit:
                    break
                if not self._open:
                    raise UserError(self._used_up(cost, limit))
                self._turn.wait()
            cost = self._estimate(body)
            self._open.append(cost)
            return cost

    def _settle(self, bill: Bill, cost: float) -> None:
        with self._turn:
            self._open.remove(cost)
            if bill.usage is not None:
                self.usage += bill.usage
                self.estimated += bill.estimated
                self.spent += self._usd(bill.usage)
                self._longest = max(self._longest, bill.usage.written_tokens)
            elif bill.unknown:
                self.broken += 1
                self.spent += cost
            self._turn.notify_all()

    def _estimate(self, body: Mapping[str, Any]) -> float:
        """A reply may be as long as the request lets it, or else as the longest so far."""
        written = next((int(body[name]) for name in LENGTH_FIELDS if name in body), self._longest)
        return self._usd(Usage(1, prompt_tokens(body), written))

    def _usd(self, usage: Usage) -> float:
        sent = usage.prompt_tokens * self.endpoint.million_prompt_tokens
        return (sent + usage.written_tokens * self.endpoint.million_completion_tokens) / MILLION

    def _used_up(self, cost: float, limit: float) -> str:
        return (
            f"{self.where}.endpoint.max_cost: {self.spent:.4g} of {limit:g} USD are spent on {self.usage.calls} calls, "
            f"and the next may take {cost:.4g}; all answers are kept in {self.endpoint.cache}: raise max_cost and run "
            "the stage again, which goes on from there"
        )

    def notes(self) -> list[str]:
        """What was paid for, if anything was asked."""
        if not self.usage.calls and not self.broken:
            return []
        usage = self.usage
        said = (
            f"{self.where}: {usage.calls} calls paid for, {usage.prompt_tokens} + {usage.written_tokens} tokens, "
            f"{self.spent:.4g} USD"
        )
        if self.estimated:
            said += f"; {self.estimated} replies did not say their tokens, which are estimated"
        if self.broken:
            said += f"; {self.broken} attempts broke off and are in the money by estimate"
        return [said]
