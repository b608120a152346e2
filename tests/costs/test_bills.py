"""Calls, tokens, seconds and money against numbers derived by hand; the tokenizer is the sandbox's, a token a word."""

from dataclasses import astuple, replace

import pytest
from rows import evaluated
from tiny import settings, tiny_tokenizer

from saeexplainer.config import Prices
from saeexplainer.costs.bills import (
    Bill,
    Cost,
    Costs,
    EvaluationCosts,
    RoundCosts,
    Work,
    bill,
    evaluation_costs,
    from_json,
    sampled,
    table,
    texts_written,
    usd,
)
from saeexplainer.records import ScoreRow
from saeexplainer.runs.storage import read_json, write_json

WRITER = replace(settings().evaluate.writer, prompt="<about> {description} <text>", texts=2, max_new_tokens=40)
FREE, PRICED = Prices(0.0, 0.0), Prices(machine_hour=36.0, million_tokens=10.0)  # a cent a second
COSTS = Costs(
    {
        "r1": RoundCosts(features=4, pairs=5, sampling=Work(20, 80, 40, 0), scoring=Work(30, 150, 30, 90)),
        "r2": RoundCosts(features=4, pairs=0, sampling=Work(20, 80, 40, 0), scoring=Work(30, 150, 30, 90)),
    },
    {"r1": EvaluationCosts(explanations=10, calls=40, call_tokens=400, measuring=Work(100, 500, 100, 200))},
)
TIMINGS = {
    "prepare_subject": 60.0, "generate_explanations@r1": 4.0, "score_explanations@r1": 8.0, "build_preferences@r1": 0.5,
    "validate_preferences@r1": 2.5, "evaluate@r1": 20.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def scored(explanation, texts, feature="a"):
    return ScoreRow(feature, "dpo", 0, explanation, texts, [], [], 0.0)


def test_every_sampled_explanation_is_a_call(tokenizer):
    # An empty explanation is an end of text at once; the limit leaves the longest one no room for its own.
    assert sampled(["the word dog", "", "dog"], 12, tokenizer, max_new_tokens=16) == Work(3, 12, 4 + 1 + 2, 0)
    assert sampled(["the word dog", "", "dog"], 12, tokenizer, max_new_tokens=3) == Work(3, 12, 3 + 1 + 2, 0)
    assert sampled([], 0, tokenizer, max_new_tokens=16) == Work(0, 0, 0, 0)


def test_a_description_is_written_once_for_all_features(tokenizer):
    dog = scored("the word dog", ["the dog", "dog"])
    rows = [dog, replace(dog, feature_id="b"), scored("", []), scored("dog", ["dog", "dog"])]
    # Prompts: <bos> <about> the word dog <text> is 6 tokens, <bos> <about> dog <text> is 4, each asked twice.
    # Written with the end of text: 3 + 2 and 2 + 2. Read: <bos> the dog, <bos> dog.
    assert texts_written(rows, tokenizer, WRITER) == Work(4, 2 * 6 + 2 * 4, 3 + 2 + 2 + 2, 3 + 2)
    assert texts_written(rows[:2], tokenizer, WRITER) == texts_written(rows[:1], tokenizer, WRITER)
    assert texts_written([scored("", [])], tokenizer, WRITER) == Work(0, 0, 0, 0)


def test_what_writes_costs_what_its_prompts_hold(tokenizer):
    rows = [scored("the word dog", ["the dog", "dog"])]
    longer = replace(WRITER, prompt="<about> the the {description} <text>")
    before, after = texts_written(rows, tokenizer, WRITER), texts_written(rows, tokenizer, longer)
    assert after == replace(before, prompt_tokens=before.prompt_tokens + 2 * 2)


def test_an_evaluation_has_its_own_calls_and_those_that_measure_it(tokenizer):
    rows = [replace(row, calls=7, call_tokens=90) for row in evaluated([0.5, 0.25, 0.0])]
    # All three say "the word dog", which got the one text "a dog".
    found = evaluation_costs(rows, tokenizer, WRITER)
    assert found == EvaluationCosts(3, 21, 270, Work(1, 6, 3, 3))


def test_costs_survive_the_file(tmp_path):
    write_json(tmp_path / "costs.json", COSTS)
    assert from_json(read_json(tmp_path / "costs.json")) == COSTS


def test_money_by_hand():
    assert usd(3600.0, 1e6, PRICED) == pytest.approx(46.0)
    assert usd(3600.0, None, PRICED) == pytest.approx(36.0)
    assert usd(None, 5e5, Prices(0.0, 10.0)) == pytest.approx(5.0)
    assert usd(3600.0, 1e6, FREE) is None, "no price, no money"
    assert usd(None, 1e6, PRICED) is None, "half of the money would pass for all of it"


def numbers(cost):
    return list(astuple(cost))


def test_bill_by_hand():
    found = bill(COSTS, TIMINGS, list(TIMINGS), PRICED)
    assert numbers(found.stages["prepare_subject"]) == pytest.approx([60, None, None, 0.60])
    assert numbers(found.stages["generate_explanations@r1"]) == pytest.approx([4, 20, 120, 0.04 + 0.0012])
    assert numbers(found.stages["evaluate@r1"]) == pytest.approx([20, 140, 1000, 0.20 + 0.01])
    assert numbers(found.total) == pytest.approx([95, 190, 1300, 0.95 + 0.013])
    assert found.total.usd == pytest.approx(sum(cost.usd for cost in found.stages.values()))
    # 15 s, 50 calls and 300 tokens up to 5 pairs; r2 has none to share them.
    assert list(found.pairs) == ["r1"] and numbers(found.pairs["r1"]) == pytest.approx([3, 10, 60, 0.03 + 0.0006])
    assert numbers(found.explanations["r1"]) == pytest.approx([2, 4, 40, 0.02 + 0.0004])


def test_what_was_not_timed_has_no_seconds():
    some = {name: value for name, value in TIMINGS.items() if name != "build_preferences@r1"}
    assert bill(COSTS, some, list(some), PRICED).pairs["r1"] == Cost(None, 10.0, 60.0, None)
    nothing = bill(COSTS, {}, [], FREE)
    part = bill(COSTS, {"prepare_subject": 60.0}, ["prepare_subject", "evaluate@r1"], PRICED).total
    assert part == Cost(None, 140.0, 1000.0, None), "the seconds of a part would pass for those of all"
    assert nothing.total == Cost(0.0, 0.0, 0.0, None) and nothing.explanations["r1"] == Cost(None, 4.0, 40.0, None)


def test_table_stands_beside_what_sage_says_of_itself():
    found = Bill({"prepare_subject": Cost(1234.5, None, None, None)}, Cost(1234.5, 0.0, 0.0, None), {}, {})
    assert [line.split() for line in table(found)] == [
        ["seconds", "calls", "tokens", "USD"],
        ["prepare_subject", "1,234", "-", "-", "-"],
        ["all", "of", "these", "1,234", "0", "0", "-"],
        ["SAGE:", "a", "feature", "(published)", "-", *"19 to 34 350,000 to 750,000 0.15 to 0.27".split()],
    ]  # fmt: skip
    dear = Bill({}, Cost(None, None, None, 1234.5), {"r1": Cost(None, None, None, 0.0751)}, {})
    assert [line.split()[-1] for line in table(dear)[1:3]] == ["1,234", "0.075"]
    assert len({len(line) for line in table(bill(COSTS, TIMINGS, list(TIMINGS), PRICED))}) == 1
