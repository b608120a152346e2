"""The answer within a reply, and the JSON in it: thoughts are none, slips are taken, what was cut is not made up."""

import json

import pytest
from hypothesis import given, strategies as st

from saeexplainer.judges import endpoint as judges_endpoint
from saeexplainer.labellers import asking
from saeexplainer.models.replies import HARMONY, THOUGHTS, answer, ends_whole, last_json, straight_to_the_answer
from saeexplainer.writers import endpoint as writers_endpoint

DRAFT, FINAL = '{"explanation": "DRAFT"}', '{"explanation": "a dog"}'
HARMONIOUS = f"<|channel|>analysis<|message|>Perhaps {DRAFT}<|end|><|start|>assistant"


@pytest.mark.parametrize(("opens", "closes"), THOUGHTS, ids=[opens for opens, _ in THOUGHTS])
def test_thoughts_are_no_answer_whatever_marks_them(opens, closes):
    assert answer(f"{opens}\nHm, {DRAFT}? {closes}\n\n{FINAL}") == FINAL
    assert answer(f"Hm, {DRAFT}? {closes} A dog barks.") == "A dog barks."  # the chat template opened them
    assert answer(f"{opens} {DRAFT} {closes} one {opens} {DRAFT} {closes} two") == "two"
    assert answer(f"A dog barks. {opens} Was that all?") == "A dog barks."
    assert asking.parsed(answer(f"{opens} {DRAFT} {closes} I cannot say.")) is None
    for cut in range(1, len(text := f"{opens} {DRAFT} and so {DRAFT}")):
        assert asking.parsed(answer(text[: len(opens) + cut])) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (HARMONIOUS + f"<|channel|>final<|message|>{FINAL}<|return|>", FINAL),
        (HARMONIOUS + f"<|channel|>final <|constrain|>json<|message|>{FINAL}", FINAL),
        (HARMONIOUS + "<|channel|>fin", ""), (HARMONIOUS, ""), (HARMONIOUS[:40], ""),
        (HARMONIOUS + f"<|channel|>commentary to=functions.x<|message|>{DRAFT}<|call|>", ""),
        (f"analysisWe need one. Perhaps {DRAFT}.assistantfinal{FINAL}", FINAL),
        (f"analysisWe need one. Perhaps {DRAFT}", ""),
        ("analysis of the data", "analysis of the data"),
        (f"\ufeff{FINAL}", FINAL), ("", ""), ("  a dog ", "a dog"),
    ],
)  # fmt: skip
def test_of_a_model_with_channels_the_final_one_counts(said, found):
    assert answer(said) == found


@pytest.mark.parametrize("mark", [mark for pair in THOUGHTS for mark in pair] + list(HARMONY))
def test_json_may_speak_about_marks(mark):
    said = json.dumps({"explanation": f"the tag {mark} itself"})
    for reply in (said, f"```json\n{said}\n```", f"<think>which? </think>{said}"):
        assert asking.parsed(answer(reply)) == f"the tag {mark} itself"


def test_a_prompt_that_leaves_a_model_about_to_think_goes_straight_to_the_answer():
    assert straight_to_the_answer("<|user|>a dog<|assistant|><think>\n") == "\n\n</think>\n\n"
    assert straight_to_the_answer("<|start|>assistant") == "<|channel|>final<|message|>"
    assert (
        straight_to_the_answer("<|assistant|><think>\n\n</think>\n\n") == straight_to_the_answer("<|assistant|>") == ""
    )


@given(st.text(st.sampled_from('<think>/{}[]"ab|channel\n ') | st.characters(), max_size=80))
def test_no_reply_breaks_a_reader(said):
    text = answer(said)
    ends_whole(text)
    asking.parsed(text), writers_endpoint.parsed(text, 2), judges_endpoint.parsed(text, 2)


TWO = ["a dog\nbarks", "a cat"]
SLIPS = {
    "right": '{"texts": ["a dog\\nbarks", "a cat"]}',
    "a raw line break": '{"texts": ["a dog\nbarks", "a cat"]}',
    "a comma too many": '{"texts": ["a dog\\nbarks", "a cat",],}',
    "a comma too few": '{"texts": ["a dog\\nbarks"\n "a cat"]}',
    "objects": '{"texts": [{"text": "a dog\\nbarks"}, {"text": "a cat"}]}',
    "objects that say more": '{"texts": [{"id": 1, "text": "a dog\\nbarks"}, {"id": 2, "text": "a cat"}]}',
    "objects of another name": '{"texts": [{"passage": "a dog\\nbarks"}, {"passage": "a cat"}]}',
    "a fence": '```json\n{"texts": ["a dog\\nbarks", "a cat"]}\n```',
    "prose and a fence": 'Sure:\n```\n{"texts": ["a dog\\nbarks", "a cat",]}\n```\nAnything else?',
    "single quotes": "{'texts': ['a dog\\nbarks', 'a cat']}",
    "a list alone": '["a dog\\nbarks", "a cat"]',
    "a list of objects in a fence": '```\n[{"text": "a dog\\nbarks"}, {"text": "a cat"}]\n```',
    "one object deeper": '{"answer": {"texts": ["a dog\\nbarks", "a cat"]}}',
    "twice, the last one counts": '{"texts": ["x", "y"], "texts": ["a dog\\nbarks", "a cat"]}',
    "one more than asked for": '{"texts": ["a dog\\nbarks", "a cat", "a cow"]}',
}


@pytest.mark.parametrize("said", SLIPS.values(), ids=SLIPS)
def test_slips_are_taken(said):
    assert writers_endpoint.parsed(answer(said), 2) == TWO


@pytest.mark.parametrize(
    "said",
    ['{"texts": ["a dog", "half', '{"texts": ["a dog", "half {it}', '{"texts": [{"text": "a dog"}, {"text": "ha}',
     '{"texts": ["a dog"]}', '["a dog"]', '{"texts": ["a dog", "a cat" ', '{"texts": ["it\'s", ""]}', '{"texts": "ab"}',
     '{"texts": {"text": "a dog"}}', "{'texts': ['it's', 'a dog',]}", '{"texts": [["a"], ["b"]]}', '{"texts": [1, 2]}',
     '{"text": ["a", "b"]}', "{" * 3000, '{"texts": ' * 3000 + "]}"],
    ids=range(15),
)  # fmt: skip
def test_what_was_cut_or_is_no_text_is_no_answer(said):
    assert writers_endpoint.parsed(answer(said), 2) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [('{"ratings": ["5", "7"]}', [5, 7]), ('{"ratings": ["5/10", " 7 "]}', [5, 7]), ('{"ratings": [5, 7,]}', [5, 7]),
     ('{"ratings": [{"text": "a", "rating": 5}, {"text": "b", "rating": "7.5"}]}', [5, 7.5]), ("[5, 7]", [5, 7]),
     ('{"ratings": [{"score": 5}, {"score": 7}]}', [5, 7]), ('{"ratings": ["5", "NaN"]}', None),
     ('{"ratings": ["5", "high"]}', None), ('{"ratings": [5, 7, 9]}', None), ('{"ratings": ["5", "11"]}', None),
     ('{"ratings": [5, null]}', None), ("[5, 7, 9]", None), ('{"ratings": [5, 1e999]}', None), ("5, 7", None),
     ('{"ratings": [1' + "0" * 5000 + ", 7]}", None)],
    ids=range(15),
)  # fmt: skip
def test_ratings_are_numbers_however_they_are_written(said, found):
    assert judges_endpoint.parsed(answer(said), 2) == found


def test_an_explanation_with_slips_is_taken_and_half_of_one_is_not():
    assert asking.parsed('{"explanation": "the word\n"dog" or "cat"",}') == 'the word "dog" or "cat"'
    assert asking.parsed('{"explanation": "a dog') is None and asking.parsed('{"explanation": "a {dog}') is None
    assert last_json('{"explanation": 1, }', "explanation", str) is None
    assert asking.parsed('{"explanation": "DRAFT"} or rather {"explanation": "a d') is None
    assert asking.parsed('{"explanation": "DRAFT"} or rather {"explanation": "a dog",}') == "a dog"
