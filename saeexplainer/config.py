"""Every setting of the pipeline: one frozen dataclass a stage, named as the stage, holding no defaults.

The values come from params.yaml, which `sae-explainer compose` writes from conf/; `tasks.settings.params` loads and checks it.
A field's comment says its unit and its effect. Lists, not tuples: OmegaConf returns lists.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class DomainName(StrEnum):
    """Where the text comes from."""

    sandbox = "sandbox"
    pydoc = "pydoc"
    corpus = "corpus"  # prepare_subject.corpus: files here, or a data set of the hub


class Architecture(StrEnum):
    """The shape of the subject that is trained here."""

    llama = "llama"
    gpt2 = "gpt2"


class Direction(StrEnum):
    """Which vectors a feature's tokens carry into the explainer, in this order, one token each."""

    decoder = "decoder"  # the reference's: the feature's decoder row
    encoder = "encoder"
    decoder_and_encoder = "decoder_and_encoder"  # two tokens
    mean_activation = "mean_activation"  # mean residual at the feature's top tokens minus the corpus mean
    decoder_and_mean_activation = "decoder_and_mean_activation"  # two tokens


class LabelChoice(StrEnum):
    """Which of the readings that fit its contexts the labeller names."""

    any = "any"  # one at random
    rarest = "rarest"  # the one that the fewest contexts of other features share: a careful labeller's


class PairingRule(StrEnum):
    """How candidates become (chosen, rejected)."""

    reference = "reference"  # the best against the highest of the lower half with a relative gap (METHOD section 1, 5)
    best_worst = "best_worst"  # the best against the lowest
    all_pairs = "all_pairs"  # every better one against every worse one with a relative gap, widest gaps first


class DpoLoss(StrEnum):
    """What DPO minimises over the difference of log-probability ratios."""

    sigmoid = "sigmoid"  # -log sigmoid(beta * difference): the reference's
    ipo = "ipo"  # (difference a token - 1 / (2 beta))^2, arXiv 2310.12036: beta is on another scale than sigmoid's


DTYPES = ("float32", "bfloat16", "float16")  # number types of the weights of a model of others


@dataclass(frozen=True)
class Pretrained:
    """A causal LM that others trained."""

    source: str  # a folder that transformers saved, or an id of the hub
    revision: str | None  # of the hub: the 40 hex digits of a commit; null for a folder
    dtype: str  # float32, bfloat16 or float16
    device_map: str | None  # transformers' device_map, such as auto or cuda; null is the CPU
    attention: str | None  # transformers' attn_implementation, such as sdpa; null is its own choice


@dataclass(frozen=True)
class Corpus:
    """Text from outside."""

    source: str  # a file or a folder of .txt, .jsonl or .parquet; or a data set of the hub
    revision: str | None  # of the hub: the 40 hex digits of a commit; null for files
    subset: str | None  # of the hub: the data set's configuration; null where it has one only
    split: str | None  # of the hub, such as train; null for files
    column: str  # the field that holds the text, such as text; of .txt files it means nothing
    packed: bool  # documents are joined and cut to context_length tokens; false: a long one is cut, the rest unread


class PromptKind(StrEnum):
    """How the explainer is asked."""

    tokens = "tokens"  # <explain>, the feature's tokens, <about>: of a tokenizer made here
    chat = "chat"  # an instruction in the user's turn of the tokenizer's chat template


@dataclass(frozen=True)
class ExplainerPrompt:
    """What the explainer is asked; the feature's tokens stand in it."""

    kind: PromptKind
    instruction: str | None  # of chat: holds {feature}, and {contexts} where any are shown; null for tokens
    shown_contexts: int  # of the feature's strongest that stand in it, never one that evaluations ask about; 0: none


@dataclass(frozen=True)
class Adapter:
    """Low-rank weights (LoRA) on every linear layer but the output head; the model itself stays as it is."""

    rank: int  # of each layer's update
    alpha: float  # the update counts alpha / rank times
    dropout: float  # of the updates' inputs, below 1, in supervised training; TRL's DPO switches it off
    quantize: bool  # the model in 4 bits (QLoRA); needs the package bitsandbytes


@dataclass(frozen=True)
class PrepareSubject:
    """The subject model: trained here, where it is writer and start of the explainer too, or one of others."""

    pretrained: Pretrained | None  # null: it is trained here, as the fields from architecture on say
    prepend_bos: bool | None  # whether texts start with BOS, as in the SAE's training; null: as the tokenizer has it
    domain: DomainName  # the source of text
    corpus: Corpus | None  # null but for domain corpus
    architecture: Architecture  # the transformers family
    d_model: int  # width of the residual stream
    blocks: int  # transformer blocks
    heads: int  # attention heads a block
    context_length: int  # tokens a training sequence holds; longer documents are cut
    documents: int  # plain documents in the training set
    lessons: int  # description-to-text lessons in the training set
    steps: int  # optimizer steps
    batch_size: int  # sequences a step
    learning_rate: float  # peak, linear warm-up then cosine to zero
    held_out_documents: int  # documents for the reported loss


@dataclass(frozen=True)
class PretrainedSae:
    """An SAE that others trained; it says itself where it reads the subject."""

    source: str  # a folder that sae-lens saved, or a release that it knows
    sae_id: str | None  # in the release; null for a folder
    norm_scaling_factor: float | None  # sqrt(d_in) over activations' mean norm, where the SAE asks for one and has none


@dataclass(frozen=True)
class SaeSpec:
    """One SAE; the first of the list is the one that is explained, the others only lend training features."""

    name: str  # its folder under data/saes
    pretrained: PretrainedSae | None  # null: it is trained here
    d_sae: int  # number of latents; of a pretrained one it must be its own
    k: int | None  # active latents a token; null for a pretrained one
    seed: int | None  # added to the run's seed; null for a pretrained one


@dataclass(frozen=True)
class PrepareSae:
    """Sparse autoencoders trained by sae-lens on one residual stream of the subject, or by others."""

    hook_block: int  # of those trained here: residual stream after this block (0-based), hidden_states[hook_block + 1]
    saes: list[SaeSpec]  # the first is explained
    documents: int  # plain documents whose tokens are the training activations, where one is trained here
    steps: int  # optimizer steps of each SAE
    batch_tokens: int  # activations a step
    learning_rate: float  # Adam


@dataclass(frozen=True)
class ExtractActivations:
    """One streaming pass over the corpus: what each feature fires on."""

    documents: int  # plain documents of the pass
    truth_documents: int  # further documents whose concepts are kept token by token (F1 against the truth)
    batch_size: int  # documents a forward pass
    top_contexts: int  # kept for each feature
    context_tokens: int  # tokens on each side of the strongest one that a stored context holds
    min_density: float  # share of tokens; a feature that fires less often is dead
    max_density: float  # share of tokens; a feature that fires more often is not explained
    valid_features: int  # of the main SAE
    test_features: int  # of the main SAE; the rest is split between sft and dpo
    max_features: int | None  # of sft and dpo together, drawn at random; the others are spare. null: all
    sft_share: float  # of the training features, over all SAEs
    direction_contexts: int  # top contexts over whose strongest tokens the direction mean_activation is taken
    neighbours: int  # kept for each feature: as many by decoder cosine as by co-firing
    twin_cosine: float  # a training feature whose decoder row is this close to a valid or test one is left out


@dataclass(frozen=True)
class Steer:
    """Holding a feature up or down to see what it does to the output (METHOD section 2, output accuracy)."""

    divergences: list[float]  # nats of KL(clean, steered) to reach, each once upwards and once downwards
    prompts: int  # neutral beginnings of documents
    prompt_tokens: int  # length of each, BOS included
    max_new_tokens: int  # a continuation
    temperature: float  # of sampling
    top_p: float  # nucleus: share of probability that is sampled from
    batch_size: int  # (feature, target) pairs at once


@dataclass(frozen=True)
class ProbeFeatures:
    """What explanations of the held-out features are asked, beside what their own texts do."""

    first_rank: int  # of the top contexts asked about; labels, directions and the agent see those before it alone
    contexts: int  # where the feature fires, for each feature at most
    silent: int  # where it does not, for each feature at most
    steer: Steer


class Structured(StrEnum):
    """How a server is held to JSON (`response_format`)."""

    json_schema = "json_schema"  # it must fit the schema that is sent
    json_object = "json_object"  # any JSON object


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, patience with it, and what it may cost (docs/ENDPOINTS.md)."""

    base_url: str  # /chat/completions is added to its path; a query such as ?api-version=... stays behind it
    model: str  # the name it serves the model by
    key_variable: str | None  # name of the environment variable that holds the key, never the key; null: none is sent
    request: dict[str, Any]  # further fields of each call, any JSON: temperature, max_tokens, reasoning_effort, ...
    structured: Structured | None  # null: only the prompt asks for JSON, for servers that refuse response_format
    timeout_seconds: float  # of one attempt
    attempts: int  # at a call, on status 408, 429 and 5xx, timeouts and broken connections
    backoff_seconds: float  # pause before the second attempt; it doubles, and is longer if the server says so
    concurrency: int  # calls at once
    cache: str  # folder of all answers; a call whose answer is there is not made again
    max_failed_share: float  # of calls without a usable answer; beyond it the stage stops
    max_cost: float | None  # USD that one run of a stage may spend here, then it stops; null: no limit
    million_prompt_tokens: float  # USD a million tokens that are sent
    million_completion_tokens: float  # USD a million tokens that are written


class LabellerKind(StrEnum):
    """Which language model labels features (docs/EXCHANGE.md, Labels)."""

    chat = "chat"  # a local chat model
    endpoint = "endpoint"  # a served chat model


@dataclass(frozen=True)
class Labeller:
    """A language model that says in a sentence what a feature's top contexts have in common."""

    kind: LabellerKind
    model: Pretrained | None  # null but for kind chat
    endpoint: Endpoint | None  # null but for kind endpoint
    prompt: str  # holds {contexts}: a line each, the strongest token between << and >>
    max_new_tokens: int  # a label; longer ones are cut. Of an endpoint it means nothing: its request has max_tokens
    temperature: float  # of sampling; 0 is greedy
    batch_size: int  # labels generated at once; of an endpoint it means nothing


@dataclass(frozen=True)
class LabelFeatures:
    """The open-loop labels: what a few top contexts have in common in the words of the domain or of a language model,
    or labels that were brought along."""

    source: str  # the table of contexts, which domain and labeller read, or a table of explanations: the labels
    labeller: Labeller | None  # null: the domain labels
    contexts: int  # how many top contexts domain or labeller see of each feature
    choice: LabelChoice
    wrong_share: float  # share of features that get the label of another one, to show what labels are worth
    modifier_share: float  # share of labels that name a second concept, where the contexts share one


@dataclass(frozen=True)
class TrainSft:
    """The explainer before any preference: warm-up on raw activations, then supervised labels."""

    pretrained: Pretrained | None  # the model that it is made of; null: the subject
    adapter: Adapter | None  # null: every weight is trained, in all rounds too
    prompt: ExplainerPrompt
    bf16: bool  # this training and the rounds' compute in bfloat16, weights as they are
    gradient_checkpointing: bool  # these keep few activations and compute the others again: less memory, more time
    accumulate: int  # batches whose gradients are added up before a step, warm-up's too
    direction: Direction  # what the explainer reads of a feature
    injection_block: int  # the direction is added after this block (0-based) of the explainer
    injection_scale: float  # c of METHOD: the added vector's norm over the residual's norm
    warmup_examples: int  # raw activations to verbalise; no SAE feature is seen; 0: there is no warm-up
    warmup_epochs: float  # over the warm-up examples
    warmup_batch_size: int  # sequences at once
    warmup_learning_rate: float  # peak, AdamW
    warmup_modifier_share: float  # share of warm-up descriptions with a second concept
    epochs: float  # over the labels of the sft split
    learning_rate: float  # peak, AdamW, on the labels
    batch_size: int  # sequences at once
    replay_share: float  # share of warm-up examples mixed into the labels; 0 without warm-up
    direction_noise: float  # training only: standard deviation of relative gaussian noise on the injected direction


@dataclass(frozen=True)
class GenerateExplanations:
    """Candidates of the dpo and valid features."""

    candidates: int  # explanations a feature
    temperature: float  # of sampling; higher gives candidates that differ more
    top_p: float  # nucleus: share of probability that is sampled from; 1.0 is all
    max_new_tokens: int  # an explanation; longer ones are cut
    batch_size: int  # sequences generated at once


class WriterKind(StrEnum):
    """Who writes texts about a description (docs/METHOD.md, Writers)."""

    subject = "subject"  # the subject, which continues the prompt
    chat = "chat"  # a local chat model, asked for one text at a time
    endpoint = "endpoint"  # a served chat model, asked for all texts of a description at once


@dataclass(frozen=True)
class Writer:
    """How an explanation becomes texts."""

    kind: WriterKind
    model: Pretrained | None  # null but for kind chat
    endpoint: Endpoint | None  # null but for kind endpoint
    prompt: str  # holds {description}, and of kind endpoint {count}: how many texts are asked for
    texts: int  # texts an explanation
    temperatures: list[float]  # texts are spread evenly over these; of an endpoint a call each
    top_p: float  # nucleus: share of probability that is sampled from; 1.0 is all
    max_new_tokens: int  # a text; longer ones are cut (those of an endpoint as the subject's tokenizer counts)
    batch_size: int  # texts generated at once; of an endpoint it means nothing


@dataclass(frozen=True)
class Reward:
    """weight_share * share of texts at or over the threshold + weight_any * any text there + weight_mean * mean
    clipped normalised activation + weight_max * maximum normalised activation - weight_neighbours * mean over texts of the
    clipped activation of the hardest firing neighbour; never below 0. All in units of each feature's own maximum."""

    threshold: float  # share of the feature's corpus maximum that counts as firing (METHOD: one half)
    weight_share: float  # reward of a candidate all of whose texts reach the threshold
    weight_any: float  # reward added if one text does
    weight_mean: float  # reward per unit of mean activation, each text clipped at 1
    weight_max: float  # alone at 1.0 this is the reference's reward, normalised
    weight_neighbours: float  # reward lost where a nearest neighbour fires: an explanation must single out its feature
    shuffle: bool  # control: rewards are permuted among the candidates of each feature


@dataclass(frozen=True)
class ScoreExplanations:
    """Candidates to texts to activations to rewards."""

    writer: Writer
    reward: Reward


@dataclass(frozen=True)
class BuildPreferences:
    """Rewards to pairs (METHOD section 1, step 5)."""

    rule: PairingRule
    floor: float  # a feature whose best reward is below it is dropped; what one lucky text earns should be below
    min_spread: float  # (best - worst) / best at or under which a feature is dropped
    min_gap: float  # relative gap that a rejected candidate must show
    max_pairs: int  # of a feature at most


@dataclass(frozen=True)
class ReasonShares:
    """Features that may be dropped for one reason, as a share of all features; named as build_preferences says them."""

    best_is_zero: float  # no text of any candidate did anything
    below_floor: float  # no candidate reached build_preferences.floor
    best_is_empty: float  # the explainer was rewarded for saying nothing
    no_spread: float  # the candidates were worth the same
    no_gap: float  # no candidate was far enough below the best


@dataclass(frozen=True)
class ValidatePreferences:
    """Limits of the Great Expectations suites (docs/PREFERENCES.md)."""

    min_words: int  # an explanation has at least
    max_words: int  # an explanation has at most
    max_characters: int  # an explanation has at most; a "word" may be endless
    min_pairs: int  # of the dpo split
    min_valid_pairs: int  # of the valid split, by which the checkpoint is chosen
    max_quarantined_share: float  # pairs that fail, of all: beyond it the rest is not to be trusted either
    max_dropped_share: float  # features without a pair
    max_reason_share: ReasonShares  # the mix of reasons
    max_length_bias: float  # |mean words of chosen - mean words of rejected|
    max_top_share: float  # of the most frequent explanation among the chosen, and among the rejected
    min_distinct_share: float  # different chosen explanations over features with a pair
    max_words_drift: float  # words that chosen lengths moved since the round before (Wasserstein distance)
    max_score_drift: float  # change of the mean chosen score, relative to the round before
    max_dropped_drift: float  # change of the share of dropped features
    max_vocabulary_drift: float  # Jensen-Shannon distance of the chosen explanations' words, 0 to 1


@dataclass(frozen=True)
class Round:
    """One preference round: its own start is its reference."""

    start: str  # the explainer it starts from: sft or an earlier round
    beta: float  # of DPO; higher keeps closer to the start
    learning_rate: float  # peak, AdamW


@dataclass(frozen=True)
class TrainDpo:
    """What all rounds share of DPO (TRL's DPOTrainer)."""

    epochs: float  # over the pairs
    batch_size: int  # pairs at once
    accumulate: int  # batches whose gradients are added up before a step
    loss: DpoLoss
    sft_weight: float  # weight of the negative log-likelihood of chosen beside it
    direction_noise: float  # as in TrainSft
    evaluations_per_epoch: int  # the best checkpoint by validation accuracy, then margin, is kept


class EvaluationKind(StrEnum):
    """Where the explanations under evaluation come from."""

    table = "table"  # a table of explanations
    explainer = "explainer"  # greedy generation
    best_of_n = "best_of_n"  # samples of an explainer, picked by activation feedback at inference
    agent = "agent"  # hypotheses, texts that test them, refinement on what they made the feature do (after SAGE)
    other_feature = "other_feature"  # an explainer's explanation of another feature: a floor
    truth = "truth"  # the concept with the best F1, where the domain knows it: a ceiling


@dataclass(frozen=True)
class Evaluation:
    """One set of explanations to measure."""

    kind: EvaluationKind
    source: str  # the parquet table, the explainer's folder, or for truth the truth table


class JudgeKind(StrEnum):
    """Who says how much a text is about an explanation (docs/METHOD.md, Judges)."""

    likelihood = "likelihood"  # the writer: how much the explanation raises its probability of the text
    chat = "chat"  # a local chat model: log-odds of yes against no
    endpoint = "endpoint"  # a chat completions endpoint: ratings from 0 to 10


@dataclass(frozen=True)
class Judge:
    """Who answers questions about explanations."""

    kind: JudgeKind
    prompt: str | None  # likelihood: what the subject reads before a text, holds {description}; null for other kinds
    model: Pretrained | None  # chat: an instruct model; null for other kinds
    batch_size: int  # texts read at once; of an endpoint the texts in one call
    endpoint: Endpoint | None  # null but for kind endpoint


@dataclass(frozen=True)
class Evaluate:
    """The metrics of METHOD section 2 on one split."""

    split: str  # test; valid while settings are chosen
    writer: Writer  # another prompt and other seeds than in training
    agent_turns: int  # rounds of hypotheses and tests that agent has
    agent_hypotheses: int  # a turn; with turns * hypotheses = best_of both baselines spend alike
    best_of: int  # explanations best_of_n chooses from: the greedy one and samples
    best_of_temperature: float  # of those samples
    negatives: int  # texts of other explanations that input accuracy compares with
    judges: list[Judge]  # the first gives the metrics; how far the others agree with it is a metric of its own
    collision_max_density: float  # rivals that fire on a larger share of tokens cannot be singled out by any text


@dataclass(frozen=True)
class Prices:
    """What makes money of seconds and tokens; where both are 0 no money is shown."""

    machine_hour: float  # USD an hour of the machine that runs the stages; 0 is unknown
    million_tokens: float  # USD a million tokens of the calls, prompts included, where a model is remote; 0 is local


@dataclass(frozen=True)
class CompareRounds:
    """Intervals, confidence, costs and the report."""

    resamples: int  # bootstrap
    confidence_folds: int  # expected accuracies are judged by as many fits, each over the features of the other folds
    confidence_bins: int  # points of a calibration curve, of equally many features
    prices: Prices
    page_contexts: int  # strongest contexts of a feature that the report page shows
    experiment: str  # the MLflow experiment, named after the experiment file
    criterion: str  # metric on which a round must beat the champion, beyond its interval, to be promoted
    guarded: list[str]  # metrics on which it must not lose beyond the interval; none switches the guard off


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml."""

    seed: int  # reseeds world, subject, SAE, split, labels and sampling
    processes: int  # that a heavy stage runs in, one a GPU; its rows are the same in any number
    prepare_subject: PrepareSubject
    prepare_sae: PrepareSae
    extract_activations: ExtractActivations
    probe_features: ProbeFeatures
    label_features: LabelFeatures
    train_sft: TrainSft
    generate_explanations: GenerateExplanations
    score_explanations: ScoreExplanations
    build_preferences: BuildPreferences
    validate_preferences: ValidatePreferences
    train_dpo: TrainDpo
    rounds: dict[str, Round]  # in order; a round starts from sft or an earlier one
    evaluate: Evaluate
    evaluations: dict[str, Evaluation]  # open_loop, sft and one for each round; more are welcome
    compare_rounds: CompareRounds
