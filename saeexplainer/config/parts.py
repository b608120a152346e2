"""What the settings of stages are made of: bounded numbers, choices of a name, models and servers that are asked.

A bound stands in the type of a field, and pydantic holds every record to it, wherever it is made. Nothing is converted
but an integer where a fraction may stand: "1" is no number.
"""

import re
import string
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

# Of every record: a key that it does not know is a mistake, and what checks its fields is built when it is first made.
CLOSED = ConfigDict(extra="forbid", defer_build=True)

Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Natural = Annotated[int, Field(strict=True, ge=0, lt=2**63)]  # may say "the first", "none" or "no limit below"
Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Several = Annotated[int, Field(strict=True, ge=2, lt=2**63)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
PositiveShare = Annotated[float, Field(strict=True, gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
InnerShare = Annotated[float, Field(strict=True, gt=0, lt=1)]
Item = TypeVar("Item")
NonEmpty = Annotated[list[Item], Field(min_length=1)]


def matching(pattern: str, what: str) -> AfterValidator:
    """The bound of a text that the whole pattern matches; `what` says in a message what it must be."""

    def checked(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}")
        return text

    return AfterValidator(checked)


def holding(*names: str) -> AfterValidator:
    """The bound of a prompt that holds these names between braces, and no other."""

    def checked(prompt: str) -> str:
        try:
            found = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
        except ValueError:  # braces that do not match
            found = set()
        if found != set(names):
            raise ValueError(f"must hold {' and '.join(f'{{{name}}}' for name in names)} and no other braces")
        return prompt

    return AfterValidator(checked)


Name = Annotated[str, matching("[a-z0-9_]+", "small letters, digits and _ only: it names files and stages")]
Commit = Annotated[str, matching("[0-9a-f]{40}", "the 40 hex digits of a commit, or null for what lies here")]
Revision = Annotated[
    str,
    matching("[0-9a-f]{40}|[0-9a-f]{64}", "the 40 hex digits of a commit, the 64 of a GGUF file's SHA-256, or null"),
]
DescriptionPrompt = Annotated[str, holding("description")]
# {contexts}: a feature's strongest, a line each, the strongest token between << and >>
ContextsPrompt = Annotated[str, holding("contexts")]
Dtype = Literal["float32", "bfloat16", "float16"]  # number types of the weights of a pretrained model


class DomainName(StrEnum):
    """Where the text comes from."""

    sandbox = "sandbox"
    pydoc = "pydoc"
    corpus = "corpus"  # prepare_subject.corpus: files here, prose of installed packages, or a data set of the hub


class Architecture(StrEnum):
    """The shape of the subject that is trained here."""

    llama = "llama"
    gpt2 = "gpt2"


class Direction(StrEnum):
    """Which vector a feature's token carries into the explainer."""

    decoder = "decoder"  # the paper's: the feature's decoder row
    mean_activation = "mean_activation"  # mean residual at the feature's top tokens minus the corpus mean


class Promotion(StrEnum):
    """How it is found what tokens a direction promotes (METHOD section 2)."""

    lens = "lens"  # the subject's last norm and output head read the direction alone
    clamp = "clamp"  # the subject continues neutral beginnings while the direction is added where the SAEs read


class LabelChoice(StrEnum):
    """Which of the readings that fit its contexts the labeller names."""

    any = "any"  # one at random
    rarest = "rarest"  # the one that the fewest contexts of other features share: a careful labeller's
    telling = "telling"  # the one of the highest tf-idf, which need not fit the most contexts


class PairingRule(StrEnum):
    """How candidates become (chosen, rejected)."""

    reference = "reference"  # the best against the highest of the lower half with a relative gap (METHOD section 1, 5)
    best_worst = "best_worst"  # the best against the lowest
    all_pairs = "all_pairs"  # every better one against every worse one with a relative gap, widest gaps first


class DpoLoss(StrEnum):
    """What DPO minimises over the difference of log-probability ratios."""

    sigmoid = "sigmoid"  # -log sigmoid(beta * difference): the paper's
    ipo = "ipo"  # (difference a token - 1 / (2 beta))^2, arXiv 2310.12036: beta is on another scale than sigmoid's


class Structured(StrEnum):
    """How a server is held to JSON (`response_format`)."""

    json_schema = "json_schema"  # it must fit the schema that is sent
    json_object = "json_object"  # any JSON object


class EvaluationKind(StrEnum):
    """Where the explanations under evaluation come from."""

    table = "table"  # a table of explanations
    explainer = "explainer"  # greedy generation
    best_of_n = "best_of_n"  # samples of an explainer, picked by activation feedback at inference
    agent = "agent"  # hypotheses, texts that test them, refinement on what they made the feature do (after SAGE)
    other_feature = "other_feature"  # an explainer's explanation of another feature: a floor
    zero_vector = (
        "zero_vector"  # what an explainer says when it reads the zero vector, its contexts alone if it has any
    )
    vector_alone = "vector_alone"  # what it says when it is shown no contexts
    other_vector = "other_vector"  # what it says of another feature's vector beside the feature's contexts
    scaled = "scaled"  # what it says when the vector is added at another scale than in its training
    unmodified = "unmodified"  # what it says, without the second concept where it names two
    other_contexts = "other_contexts"  # what it says of the feature's vector beside another feature's contexts
    truth = "truth"  # the concept with the best F1: a ceiling in the sandbox, elsewhere the best lexical hypothesis


@dataclass(frozen=True, config=CLOSED)
class Pretrained:
    """A causal LM that others trained."""

    source: Text  # a folder that transformers saved, a GGUF file (its name ends in .gguf), or an id of the hub
    revision: Revision | None  # of the hub; a GGUF file's SHA-256, null for any; null for a folder
    dtype: Dtype  # of its weights
    device_map: Text | None  # transformers' device_map, such as auto or cuda; null is the CPU
    attention: Text | None  # transformers' attn_implementation, such as sdpa; null is its own choice


@dataclass(frozen=True, config=CLOSED)
class TextEncoder:
    """A sentence encoder that others trained: the mean of its last hidden states says which texts are alike."""

    source: Text  # a folder that transformers saved, or an id of the hub
    revision: Commit | None  # of the hub; null for a folder


@dataclass(frozen=True, config=CLOSED)
class Endpoint:
    """A model behind an OpenAI-compatible server, patience with it, and what it may cost (docs/ENDPOINTS.md)."""

    base_url: Text  # /chat/completions is added to its path; a query such as ?api-version=... stays behind it
    model: Text  # the name it serves the model by
    key_variable: Text | None  # name of the environment variable that holds the key, never the key; null: none is sent
    request: dict[str, Any]  # further fields of each call, any JSON: temperature, max_tokens, reasoning_effort, ...
    structured: Structured | None  # null: only the prompt asks for JSON, for servers that refuse response_format
    timeout_seconds: Positive  # of one attempt
    attempts: Count  # at a call, on status 408, 429 and 5xx, timeouts and broken connections
    backoff_seconds: Amount  # pause before the second attempt; it doubles, and is longer if the server says so
    concurrency: Count  # calls at once
    cache: Text  # folder of all answers; a call whose answer is there is not made again
    max_failed_share: Share  # of the calls so far, those without a usable answer; beyond it the stage stops
    max_cost: Positive | None  # USD that one run of a stage may spend here, then it stops; null: no limit
    million_prompt_tokens: Amount  # USD a million tokens that are sent
    million_completion_tokens: Amount  # USD a million tokens that are written


@dataclass(frozen=True, config=CLOSED)
class ChatLineSpec:
    """A local chat model that answers a question with one line."""

    kind: Literal["chat"]
    model: Pretrained
    temperature: Amount  # of sampling; 0 is greedy
    max_new_tokens: Count  # an answer; longer ones are cut
    batch_size: Count  # answers generated at once


@dataclass(frozen=True, config=CLOSED)
class EndpointLineSpec:
    """A served chat model that answers a question with one line; how long that may be is its request's business
    (max_tokens)."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    temperature: Amount  # of sampling; 0 is greedy


@dataclass(frozen=True, config=CLOSED)
class ChatLabellerSpec(ChatLineSpec):
    """A local chat model that says in a sentence what a feature's top contexts have in common."""

    prompt: ContextsPrompt  # what the user's turn says


@dataclass(frozen=True, config=CLOSED)
class EndpointLabellerSpec(EndpointLineSpec):
    """A served chat model that says the same."""

    prompt: ContextsPrompt  # what the user says


Labeller = Annotated[ChatLabellerSpec | EndpointLabellerSpec, Field(discriminator="kind")]


@dataclass(frozen=True, config=CLOSED)
class AgentPrompts:
    """What an agent that is a language model is asked; each question is for one hypothesis about a feature."""

    first: ContextsPrompt  # the first question
    next: Annotated[str, holding("contexts", "tested")]  # later ones; {tested}: hypotheses so far, what their texts did


@dataclass(frozen=True, config=CLOSED)
class AgentSpec:
    """What all agents have that are language models: each states hypotheses about a feature, and better ones once texts
    of theirs were measured."""

    prompts: AgentPrompts
    contexts: Count  # how many top contexts it sees of each feature
    texts: Count  # how many texts of each tested hypothesis it sees, those that fired and silent ones in turn


@dataclass(frozen=True, config=CLOSED)
class ChatAgentSpec(AgentSpec, ChatLineSpec):
    """A local chat model as the agent."""


@dataclass(frozen=True, config=CLOSED)
class EndpointAgentSpec(AgentSpec, EndpointLineSpec):
    """A served chat model as the agent."""


Agent = Annotated[ChatAgentSpec | EndpointAgentSpec, Field(discriminator="kind")]


@dataclass(frozen=True, config=CLOSED)
class WriterSpec:
    """What all writers have: how an explanation becomes texts (docs/METHOD.md section 10)."""

    texts: Count  # an explanation
    temperature: Positive  # of sampling
    top_p: PositiveShare  # nucleus: share of probability that is sampled from; 1.0 is all
    max_new_tokens: Count  # a text; longer ones are cut (those of an endpoint as the subject's tokenizer counts)


@dataclass(frozen=True, config=CLOSED)
class SubjectWriterSpec(WriterSpec):
    """The subject, which continues the prompt."""

    kind: Literal["subject"]
    prompt: DescriptionPrompt  # what a text follows
    batch_size: Count  # texts generated at once


@dataclass(frozen=True, config=CLOSED)
class ChatWriterSpec(WriterSpec):
    """A local chat model, asked for one text at a time."""

    kind: Literal["chat"]
    model: Pretrained
    prompt: DescriptionPrompt  # what the user's turn says
    batch_size: Count  # texts generated at once


@dataclass(frozen=True, config=CLOSED)
class EndpointWriterSpec(WriterSpec):
    """A served chat model, asked for all texts of a description in one call."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    prompt: Annotated[str, holding("description", "count")]  # {count}: how many texts are asked for


Writer = Annotated[SubjectWriterSpec | ChatWriterSpec | EndpointWriterSpec, Field(discriminator="kind")]


@dataclass(frozen=True, config=CLOSED)
class LikelihoodJudgeSpec:
    """The subject: how much an explanation raises its probability of a text (docs/METHOD.md section 11)."""

    kind: Literal["likelihood"]
    prompt: DescriptionPrompt  # what the subject reads before a text
    batch_size: Count  # texts read at once


@dataclass(frozen=True, config=CLOSED)
class ChatJudgeSpec:
    """A local chat model: log-odds of yes against no."""

    kind: Literal["chat"]
    model: Pretrained  # an instruct model
    batch_size: Count  # texts read at once


@dataclass(frozen=True, config=CLOSED)
class EndpointJudgeSpec:
    """A served chat model: ratings from 0 to 10."""

    kind: Literal["endpoint"]
    endpoint: Endpoint
    batch_size: Count  # texts in one call


Judge = Annotated[LikelihoodJudgeSpec | ChatJudgeSpec | EndpointJudgeSpec, Field(discriminator="kind")]
