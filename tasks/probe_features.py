"""What the explanations of the held-out features will be asked: `python -m tasks.probe_features`.

Contexts with the feature's activation on every token, and texts that the subject writes while the feature is held up or
down; and how likely the subject finds both by themselves, which every evaluation compares with. Writes
data/probes/{contexts,steered,alone}.parquet, and reports/probes.json: how many, and how often steering missed.
"""

from dataclasses import asdict

import torch

from saeexplainer.config import Params
from saeexplainer.config.parts import LikelihoodJudgeSpec
from saeexplainer.errors import UserError
from saeexplainer.features import probes
from saeexplainer.judges.likelihood import LikelihoodJudge
from saeexplainer.records import AloneRow, ContextRow, FeatureRow, ProbeRow, SteeredRow
from saeexplainer.runs.seeds import seed_torch, stage_seed
from saeexplainer.runs.storage import read_rows, write_json, write_rows
from saeexplainer.saes import steering, text_activations
from saeexplainer.saes.reading import Reader, open_reader
from tasks.beginnings import beginnings
from tasks.places import ACTIVATIONS, PROBES, REPORTS, SAES, SUBJECT
from tasks.stage import Report, main


def run(params: Params) -> Report:
    """Read contexts, steer, write both tables. Raises UserError if the domain's documents are shorter than a prompt."""
    seed_torch(params.seed, "probe_features")
    features = [
        row for row in read_rows(ACTIVATIONS / "features.parquet", FeatureRow) if row.split == params.evaluate.split
    ]
    explained = features[0].sae
    reader = open_reader(SUBJECT, SAES, [explained], params.prepare_subject.context_length)
    rows = context_probes(params, features, reader, explained)
    held = steering.Steering(reader, reader.saes[explained])
    prompts = neutral_prompts(params, reader.tokenizer)
    written = steering.steer(
        held, reader.tokenizer, prompts, [row.index for row in features], [row.maximum for row in features],
        params.probe_features.steer,
    )  # fmt: skip
    steered = [
        SteeredRow(feature.feature_id, one.target, one.value / feature.maximum, one.divergence, text)
        for feature, ones in zip(features, written, strict=True)
        for one in ones
        for text in one.texts
    ]
    write_rows(PROBES / "contexts.parquet", rows, ProbeRow)
    write_rows(PROBES / "steered.parquet", steered, SteeredRow)
    write_rows(PROBES / "alone.parquet", read_alone(params, reader, [row.text for row in [*rows, *steered]]), AloneRow)
    found = probes.figures(rows, steered)
    write_json(REPORTS / "probes.json", found)
    return Report(asdict(found), [])


def context_probes(params: Params, features: list[FeatureRow], reader: Reader, explained: str) -> list[ProbeRow]:
    """Held-out top contexts of each feature, and contexts of others in which it is silent."""
    config = params.probe_features
    contexts = read_rows(ACTIVATIONS / "contexts.parquet", ContextRow)
    own = probes.held_out_contexts(contexts, features, config.first_rank, config.contexts)
    pool, latents = sorted({text for _, text in own}), [row.index for row in features]
    maxima = text_activations.read_texts(pool, reader, {explained: latents}).of(explained, pool, latents)
    silent = probes.silent_texts(features, pool, maxima, config.silent, stage_seed(params.seed, "silent"))
    asked = sorted([*own, *silent], key=lambda one: one[0].index)
    read = text_activations.read_tokens([(text, row.index) for row, text in asked], reader, explained)
    return probes.probe_rows(asked, read)


def read_alone(params: Params, reader: Reader, texts: list[str]) -> list[AloneRow]:
    """The distinct texts, read by the judge by likelihood; none where no judge goes by that."""
    judges = [judge for judge in params.evaluate.judges if isinstance(judge, LikelihoodJudgeSpec)]
    if not judges:
        return []
    judge = LikelihoodJudge(
        reader.model, reader.tokenizer, judges[0].prompt, reader.context_length, judges[0].batch_size
    )
    distinct = sorted({text for text in texts if text})
    return [AloneRow(text, found) for text, found in zip(distinct, judge.alone(distinct), strict=True)]


def neutral_prompts(params: Params, tokenizer) -> torch.Tensor:
    """The beginnings that are steered, BOS included: [prompts, tokens]. Raises UserError if the documents are too
    short."""
    steer = params.probe_features.steer
    found = beginnings(params, tokenizer, "steering", steer.prompts, steer.prompt_tokens)
    if len(found) < steer.prompts:
        raise UserError(
            f"probe_features.steer.prompt_tokens: {steer.prompt_tokens}, but only {len(found)} documents are longer; "
            "lower it"
        )
    return torch.tensor(found)


if __name__ == "__main__":
    main(run, resumes=True)
