"""Every setting of the pipeline: one frozen dataclass a stage, named as the stage, holding no defaults.

The values come from params.yaml, which `sae-explainer compose` writes from conf/; conf/stages/ has the default of each.
A field's type holds its bounds (`saeexplainer.config.parts`), its comment says its unit and its effect. What must hold
between fields is in `tasks.settings.checks`.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag
from pydantic.dataclasses import dataclass

# isort: off
from saeexplainer.config.parts import (
    CLOSED, Agent, Amount, Architecture, Commit, Count, Direction, DomainName, DpoLoss, EvaluationKind, Flag,
    InnerShare, Judge, LabelChoice, Labeller, Name, Natural, NonEmpty, PairingRule, Positive, PositiveShare, Pretrained,
    Promotion, Several, Share, ShareBelowOne, Text, TextEncoder, Writer, matching,
)  # fmt: skip
from saeexplainer.config.explainers import AnyAdapter, ExplainerPrompt
from saeexplainer.config.saes import ArchitectureOfSae, Sae
# isort: on


@dataclass(frozen=True, config=CLOSED)
class Corpus:
    """Text from outside."""

    source: Text  # a file or a folder of .txt, .jsonl or .parquet; python:installed; or a data set of the hub
    revision: Commit | None  # of the hub; null for files
    subset: Text | None  # of the hub: the data set's configuration; null where it has one only
    split: Text | None  # of the hub, such as train; null for files
    column: Text  # the field that holds the text, such as text; of .txt files it means nothing
    packed: Flag  # documents are joined and cut to context_length tokens; false: a long one is cut, the rest unread


@dataclass(frozen=True, config=CLOSED)
class PrepareSubject:
    """The subject model: trained here, where it is writer and start of the explainer too, or a pretrained one."""

    pretrained: Pretrained | None  # null: it is trained here, as the fields from architecture on say
    prepend_bos: Flag | None  # whether texts start with BOS, as in the SAE's training; null: as the tokenizer has it
    domain: DomainName  # the source of text
    corpus: Corpus | None  # null but for domain corpus
    architecture: Architecture  # the transformers family
    d_model: Count  # width of the residual stream
    blocks: Count  # transformer blocks
    heads: Count  # attention heads a block
    context_length: Count  # tokens a training sequence holds; longer documents are cut
    documents: Count  # plain documents in the training set
    lessons: Natural  # description-to-text lessons in the training set
    steps: Count  # optimizer steps
    batch_size: Count  # sequences a step
    learning_rate: Positive  # peak, linear warm-up then cosine to zero
    held_out_documents: Count  # documents for the reported loss


@dataclass(frozen=True, config=CLOSED)
class PrepareSae:
    """Sparse autoencoders trained by sae-lens on one residual stream of the subject, or by others."""

    hook_block: Natural  # of those trained here: residual stream after this block, hidden_states[hook_block + 1]
    architecture: ArchitectureOfSae  # of those trained here
    saes: NonEmpty[Sae]  # the first is explained, the others only lend training features
    seed: Natural  # of their text and training; the run's own, unless runs of several seeds are to share them
    documents: Count  # plain documents whose tokens are the training activations, where one is trained here
    steps: Count  # optimizer steps of each SAE
    batch_tokens: Count  # activations a step
    learning_rate: Positive  # Adam
    text_encoder: TextEncoder | None  # says which documents are alike; null: the subject's own token embeddings do


@dataclass(frozen=True, config=CLOSED)
class ExtractActivations:
    """One streaming pass over the corpus: what each feature fires on."""

    documents: Count  # plain documents of the pass
    truth_documents: Natural  # further documents whose concepts are kept token by token (F1 of kind truth); 0: none
    batch_size: Count  # documents a forward pass
    top_contexts: Count  # kept for each feature
    spread_contexts: Natural  # kept beside them: of a random sample of the documents in which it fires
    context_tokens: Natural  # tokens on each side of the strongest one that a stored context holds
    min_density: Share  # share of tokens; a feature that fires less often is dead
    max_density: PositiveShare  # share of tokens; a feature that fires more often is not explained
    valid_features: Count  # of the main SAE
    test_features: Count  # of the main SAE; the rest is split between sft and dpo
    max_features: Count | None  # of sft and dpo together, drawn at random; the others are spare. null: all
    sft_share: InnerShare  # of the training features, over all SAEs
    direction_contexts: Count  # top contexts over whose strongest tokens the direction mean_activation is taken
    promoted_by: Promotion  # the tokens that a feature's decoder row promotes, and a warm-up vector
    neighbours: Count  # kept for each feature: as many by decoder cosine as by co-firing
    twin_cosine: PositiveShare  # a training feature whose decoder row is this close to a valid or test one is left out


@dataclass(frozen=True, config=CLOSED)
class Steer:
    """Holding a feature up or down to see what it does to the output (METHOD section 2, output accuracy)."""

    divergences: NonEmpty[Amount]  # nats of KL(clean, steered) to reach, each upwards and downwards
    prompts: Count  # neutral beginnings of documents
    prompt_tokens: Several  # length of each, BOS included
    max_new_tokens: Count  # a continuation
    temperature: Positive  # of sampling
    top_p: PositiveShare  # nucleus: share of probability that is sampled from
    batch_size: Count  # (feature, target) pairs at once


@dataclass(frozen=True, config=CLOSED)
class ProbeFeatures:
    """What explanations of the held-out features are asked, beside what their own texts do."""

    first_rank: Count  # of the top contexts asked about; labels, directions and the agent see those before it alone
    contexts: Count  # where the feature fires, for each feature at most
    silent: Count  # where it does not, for each feature at most
    steer: Steer


@dataclass(frozen=True, config=CLOSED)
class LabelFeatures:
    """The open-loop labels: what a few top contexts have in common in the words of the domain or of a language model,
    or labels that were brought along."""

    source: Text  # the table of contexts, which domain and labeller read, or a table of explanations: the labels
    labeller: Labeller | None  # null: the domain labels
    contexts: Count  # how many top contexts domain or labeller see of each feature
    promoted: Natural  # how many tokens that its decoder row promotes the labeller sees, a line after the contexts
    choice: LabelChoice
    wrong_share: Share  # share of features that get the label of another one, to show what labels are worth
    modifier_share: Share  # share of labels that name a second concept, where the contexts share one


@dataclass(frozen=True, config=CLOSED)
class ExplainerSettings:
    """What the explainer is, how it is asked, and what all its trainings share."""

    pretrained: Pretrained | None  # the model that it is made of; null: the subject
    adapter: AnyAdapter | None  # null: every weight is trained, in all rounds too
    prompt: ExplainerPrompt  # how the explainer is asked
    direction: Direction  # what the explainer reads of a feature
    injection_block: Natural  # the direction is added after this block (0-based) of the explainer
    injection_scale: Positive  # c in docs/METHOD.md section 2: the added vector's norm over the residual's norm
    direction_noise: Amount  # on warm-up and labels: standard deviation of relative gaussian noise on the direction
    contexts_dropped: ShareBelowOne  # share of their prompts without contexts, so that bare vectors are read too
    bf16: Flag  # all trainings compute in bfloat16, weights as they are
    gradient_checkpointing: Flag  # these keep few activations and compute the others again: less memory, more time
    accumulate: Count  # warm-up and labels: batches whose gradients are added up before a step


@dataclass(frozen=True, config=CLOSED)
class WarmUp:
    """What the explainer learns before any label: to say what it is reading at a token."""

    examples: Natural  # raw activations to verbalise; no SAE feature is seen; 0: there is no warm-up
    epochs: Positive  # over the examples
    batch_size: Count  # sequences at once
    learning_rate: Positive  # peak, AdamW
    modifier_share: Share  # share of descriptions with a second concept
    places: Count  # an example's vector is the mean over 1 to so many places of which the same is said


@dataclass(frozen=True, config=CLOSED)
class TrainSft:
    """How the explainer learns the labels."""

    epochs: Positive  # over the labels of the sft split
    learning_rate: Positive  # peak, AdamW
    batch_size: Count  # sequences at once
    replay_share: ShareBelowOne  # share of warm-up examples mixed into the labels; 0 without warm-up


@dataclass(frozen=True, config=CLOSED)
class GenerateExplanations:
    """Candidates of the dpo and valid features."""

    candidates: Several  # explanations a feature
    temperature: Positive  # of sampling; higher gives candidates that differ more
    top_p: PositiveShare  # nucleus: share of probability that is sampled from; 1.0 is all
    max_new_tokens: Count  # an explanation; longer ones are cut
    batch_size: Count  # sequences generated at once


@dataclass(frozen=True, config=CLOSED)
class Reward:
    """weight_share * share of texts at or over the threshold + weight_any * any text there + weight_mean * mean clipped
    normalised activation + weight_max * maximum normalised activation - weight_neighbours * mean over texts of the
    clipped activation of the hardest firing neighbour - weight_words * words of the explanation; never below 0.
    Activations are in units of each feature's own maximum."""

    threshold: PositiveShare  # share of the feature's corpus maximum that counts as firing (the paper: one half)
    weight_share: Amount  # reward of a candidate all of whose texts reach the threshold
    weight_any: Amount  # reward added if one text does
    weight_mean: Amount  # reward per unit of mean activation, each text clipped at 1
    weight_max: Amount  # alone at 1.0 this is the paper's reward, normalised
    weight_neighbours: Amount  # reward lost where a nearest neighbour fires: an explanation must single out its feature
    weight_words: Amount  # reward lost for each word of the explanation
    shuffle: Flag  # control: rewards are permuted among the candidates of each feature


@dataclass(frozen=True, config=CLOSED)
class ScoreExplanations:
    """Candidates to texts to activations to rewards."""

    writer: Writer  # its prompt and seeds are not those of the evaluation's
    reward: Reward
    by_sentence: dict[str, str]  # rounds without a writer, and the earlier one whose pairs say what a sentence earns


@dataclass(frozen=True, config=CLOSED)
class BuildPreferences:
    """Rewards to pairs (METHOD section 1, step 5)."""

    rule: PairingRule
    floor: Amount  # a feature whose best reward is below it is dropped; what one lucky text earns should be below
    min_spread: Share  # (best - worst) / best at or under which a feature is dropped
    min_gap: Share  # relative gap that a rejected candidate must show
    max_pairs: Count  # of a feature at most


@dataclass(frozen=True, config=CLOSED)
class ReasonShares:
    """Features that may be dropped for one reason, as a share of all features; named as build_preferences says them."""

    best_is_zero: Share  # no text of any candidate did anything
    below_floor: Share  # no candidate reached build_preferences.floor
    best_is_empty: Share  # the explainer was rewarded for saying nothing
    no_spread: Share  # the candidates were worth the same
    no_gap: Share  # no candidate was far enough below the best


@dataclass(frozen=True, config=CLOSED)
class ValidatePreferences:
    """Limits of the Great Expectations suites (docs/PREFERENCES.md)."""

    min_words: Count  # an explanation has at least
    max_words: Count  # an explanation has at most
    max_characters: Count  # an explanation has at most; a "word" may be endless
    min_pairs: Natural  # of the dpo split
    min_valid_pairs: Count  # of the valid split, by which the checkpoint is chosen
    max_quarantined_share: Share  # pairs that fail, of all: beyond it the rest is not to be trusted either
    max_dropped_share: Share  # features without a pair
    max_reason_share: ReasonShares  # the mix of reasons
    max_length_bias: Amount  # |mean words of chosen - mean words of rejected|
    max_top_share: Share  # of the most frequent explanation among the chosen, and among the rejected
    min_distinct_share: Share  # different chosen explanations over features with a pair
    max_words_drift: Amount  # words that chosen lengths moved since the round before (Wasserstein distance)
    max_score_drift: Amount  # change of the mean chosen score, relative to the round before
    max_dropped_drift: Share  # change of the share of dropped features
    max_vocabulary_drift: Share  # Jensen-Shannon distance of the chosen explanations' words, 0 to 1


@dataclass(frozen=True, config=CLOSED)
class Round:
    """One preference round: its own start is its reference."""

    start: Text  # the explainer it starts from: sft or an earlier round
    beta: Positive  # of DPO; higher keeps closer to the start
    learning_rate: Positive  # peak, AdamW


@dataclass(frozen=True, config=CLOSED)
class TrainDpo:
    """What all rounds share of DPO (TRL's DPOTrainer)."""

    epochs: Positive  # over the pairs
    batch_size: Count  # pairs at once
    accumulate: Count  # batches whose gradients are added up before a step
    loss: DpoLoss
    sft_weight: Amount  # weight of the negative log-likelihood of chosen beside it
    direction_noise: Amount  # as in ExplainerSettings
    evaluations_per_epoch: Count  # the best checkpoint by validation accuracy, then margin, is kept


@dataclass(frozen=True, config=CLOSED)
class Reinforcement:
    """One explainer trained on-policy, without pairs: its own start is its reference."""

    start: Text  # the explainer it starts from: sft, a round or an earlier reinforcement
    epochs: Positive  # over the features of the dpo split
    beta: Amount  # weight of the KL divergence from the start; 0: it is not measured
    learning_rate: Positive  # peak, AdamW


@dataclass(frozen=True, config=CLOSED)
class TrainGrpo:
    """What all reinforcements share of GRPO (TRL's GRPOTrainer)."""

    features: Count  # a step; each is explained generate_explanations.candidates times
    direction_noise: Amount  # as in ExplainerSettings


@dataclass(frozen=True, config=CLOSED)
class Evaluation:
    """One set of explanations to measure."""

    kind: EvaluationKind
    source: Text  # the parquet table, the explainer's folder, or for truth the truth table


@dataclass(frozen=True, config=CLOSED)
class ScaledEvaluation(Evaluation):
    """An explainer whose vectors are added at another scale than in its training."""

    kind: Literal[EvaluationKind.scaled]
    scale: Positive  # times explainer.injection_scale


def _kind_of_evaluation(given: Any) -> str:
    kind = given.get("kind") if isinstance(given, dict) else given.kind
    return "scaled" if kind == EvaluationKind.scaled else "other"


AnyEvaluation = Annotated[
    Annotated[ScaledEvaluation, Tag("scaled")] | Annotated[Evaluation, Tag("other")], Discriminator(_kind_of_evaluation)
]


@dataclass(frozen=True, config=CLOSED)
class Evaluate:
    """The metrics of METHOD section 2 on one split."""

    split: Literal["valid", "test"]  # test; valid while settings are chosen
    writer: Writer  # another prompt and other seeds than in training
    agent: Agent | None  # who states the hypotheses of agent; null: the domain's concepts are they
    agent_turns: Count  # rounds of hypotheses and tests that agent has
    agent_hypotheses: Count  # a turn; with turns * hypotheses = best_of both baselines spend alike
    best_of: Count  # explanations best_of_n chooses from: the greedy one and samples
    best_of_temperature: Positive  # of those samples
    negatives: Count  # texts of other explanations that input accuracy compares with
    judges: NonEmpty[Judge]  # the first gives the metrics, and one of these is how far the others agree with it
    collision_max_density: Share  # rivals that fire on a larger share of tokens cannot be singled out by any text


@dataclass(frozen=True, config=CLOSED)
class Prices:
    """What makes money of seconds and tokens; where both are 0 no money is shown."""

    machine_hour: Amount  # USD an hour of the machine that runs the stages; 0 is unknown
    million_tokens: Amount  # USD a million tokens of the calls, prompts included, where a model is remote; 0 is local


ExperimentName = Annotated[
    str,
    matching(
        r"\w([\w .-]{0,98}\w)?",
        "letters, digits, _, and between them spaces, . and -, 100 at most: it names an experiment and a model of "
        "MLflow, and a folder",
    ),
]


@dataclass(frozen=True, config=CLOSED)
class CompareRounds:
    """Intervals, confidence, costs and the report."""

    resamples: Count  # bootstrap
    confidence_folds: Several  # fits that judge expected accuracies, each over the features of the other folds
    confidence_bins: Count  # points of a calibration curve, of equally many features
    prices: Prices
    page_contexts: Count  # strongest contexts of a feature that the report page shows
    experiment: ExperimentName  # of MLflow; the experiment file has the same
    criterion: Text  # metric on which a round must beat the champion, beyond its interval, to be promoted
    guarded: list[Text]  # metrics on which it must not lose beyond the interval; none switches the guard off


@dataclass(frozen=True, config=CLOSED)
class Params:
    """The whole of params.yaml."""

    seed: Natural  # reseeds world, subject, SAE, split, labels and sampling
    processes: Count  # that a heavy stage runs in, one a GPU; its rows are the same in any number
    prepare_subject: PrepareSubject
    prepare_sae: PrepareSae
    extract_activations: ExtractActivations
    probe_features: ProbeFeatures
    label_features: LabelFeatures
    explainer: ExplainerSettings
    warm_up: WarmUp
    train_sft: TrainSft
    generate_explanations: GenerateExplanations
    score_explanations: ScoreExplanations
    build_preferences: BuildPreferences
    validate_preferences: ValidatePreferences
    train_dpo: TrainDpo
    rounds: dict[Name, Round]  # in order; a round starts from sft or an earlier one
    train_grpo: TrainGrpo
    reinforcements: dict[Name, Reinforcement]  # in order, beside the rounds; none is as common
    evaluate: Evaluate
    evaluations: dict[Name, AnyEvaluation]  # open_loop, sft and one for each round; more are welcome
    compare_rounds: CompareRounds
