"""The open-loop labeller that is a language model: it reads a feature's strongest contexts and says what they share.

A local chat model is asked through its template, a served one through `endpoint.Client`. Both answer with one sentence;
where none can be had the feature has no label. Equal contexts are asked about once. `labels` is the labeller that a
domain is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from saeexplainer.config.parts import ChatLabellerSpec, EndpointLabellerSpec, Labeller
from saeexplainer.endpoints.client import Ask, Client, Failure, object_schema
from saeexplainer.features.contexts import without_special
from saeexplainer.models.replies import last_json
from saeexplainer.records import Usage

WHERE = "label_features.labeller"  # the setting that messages name
FORM = """{prompt}

Answer with JSON alone: {{"explanation": string}}"""
REPAIR = """That was not {"explanation": string}. Answer with that JSON alone."""
SCHEMA = object_schema("explanation", {"type": "string"})


@dataclass(frozen=True)
class Labels:
    """What a labeller said."""

    texts: list[str]  # one for each feature; empty where it said nothing
    usage: Usage  # of all answers; a local model's tokens are counted from what was kept
    notes: list[str]  # what a person should know, such as what it cost


def ask(contexts: Sequence[str], config: Labeller) -> Labels:
    """A label for each feature's lines (`contexts.listed`); a feature without lines is not asked about.

    A local model draws from torch's generator. Raises UserError on a source without a chat model, on a prompt that it
    cannot read, and as `endpoint.Client` does.
    """
    distinct = sorted(set(contexts) - {""})
    found = _chat(distinct, config) if isinstance(config, ChatLabellerSpec) else _served(distinct, config)
    said = dict(zip(distinct, found.texts, strict=True))
    return replace(found, texts=[said.get(lines, "") for lines in contexts])


def parsed(answer: str) -> str | None:
    """The explanation in an answer, on one line; None if there is none."""
    return _one_line(last_json(answer, "explanation", str) or "") or None


def _served(contexts: Sequence[str], config: EndpointLabellerSpec) -> Labels:
    client = Client(config.endpoint, WHERE)
    prompts = [FORM.format(prompt=config.prompt.format(contexts=lines)) for lines in contexts]
    asked = [Ask(prompt, REPAIR, SCHEMA, {"temperature": config.temperature}, parsed) for prompt in prompts]
    answers = client.ask(asked, "asking the labeller")
    texts = ["" if isinstance(answer.value, Failure) else answer.value for answer in answers]
    return Labels(texts, sum((answer.usage for answer in answers), Usage(0, 0, 0)), client.notes())


def _chat(contexts: Sequence[str], config: ChatLabellerSpec) -> Labels:
    from saeexplainer.models.blocks import check_context
    from saeexplainer.models.chat import chat_prompt, open_chat, plain, silence, thought_marks
    from saeexplainer.models.generation import generate

    model, tokenizer = open_chat(config.model)
    said = [config.prompt.format(contexts=without_special(lines, tokenizer)) for lines in contexts]
    prompts = [chat_prompt(tokenizer, text) for text in said]
    longest = max(map(len, prompts), default=0) + config.max_new_tokens
    check_context(model, longest, f"{WHERE}.max_new_tokens with the prompt")
    answers = generate(
        model, tokenizer, prompts, temperature=config.temperature, top_p=1.0, max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size, progress="labels", kept=thought_marks(tokenizer),
    )  # fmt: skip
    # An answer's end is a token too, where the limit left room for it.
    written = sum(
        min(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1, config.max_new_tokens)
        for answer in answers
    )
    usage = Usage(len(prompts), sum(map(len, prompts)), written)
    texts = [_one_line(plain(answer)) for answer in answers]
    return Labels(texts, usage, silence(texts, f"{WHERE}.max_new_tokens"))


def _one_line(text: str) -> str:
    return " ".join(text.split())
