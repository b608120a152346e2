"""The explainer learns to say what it is reading: raw activations of the subject, and something true about each.

    python -m tasks.warm_up

It depends on the subject and on the site that the SAEs read, on none of the SAEs and no label, so it is not run again
when those change. Writes data/warmup (the examples, of which train_sft replays some), data/explainers/warmup
(`saeexplainer.explainer.folder`) and reports/training/warmup.csv. Without examples the explainer is the model that
starts.
"""

import random
from dataclasses import replace

from saeexplainer.config import Params
from saeexplainer.config.parts import Promotion
from saeexplainer.domains.domain import ReadingLimit
from saeexplainer.domains.opening import open_domain
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.explainer import Prompts
from saeexplainer.features.contexts import promotes
from saeexplainer.features.promoted import promoted
from saeexplainer.features.token_stream import token_batches
from saeexplainer.models.pointer import open_model, open_tokenizer
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import replacing
from saeexplainer.saes.loading import read_site
from saeexplainer.saes.reading import Reader
from saeexplainer.training import sft, warmup
from saeexplainer.training.curves import write_curves
from tasks.effects import effects
from tasks.places import EXPLAINERS, REPORTS, SITE, SUBJECT, WARMUP
from tasks.stage import Report, main


def run(params: Params) -> Report:
    """Make the examples, train on them, save both."""
    config = params.explainer
    seed = seed_torch(params.seed, "warm_up")
    draw = random.Random(seed)
    reader = opened(params)
    parts = explainer_folder.start(config, SUBJECT, reader.width, seed)
    Prompts(parts.tokenizer, 0, config)  # says now, not after the reading, that it cannot be asked so
    found = raw_activations(params, reader, draw) if params.warm_up.examples else warmup.nothing(reader.width)
    history = []
    if found.descriptions:
        history = sft.learn(
            parts, found.vectors, found.contexts, enumerate(found.descriptions), config, params.warm_up,
            section="warm_up", draw=draw, seed=seed,
        )  # fmt: skip
    with replacing(WARMUP) as folder:
        warmup.save(found, folder)
    with replacing(EXPLAINERS / "warmup") as folder:
        explainer_folder.save(parts, folder)
    write_curves(REPORTS / "training/warmup.csv", history)
    return Report({}, [f"warm-up on {len(found.descriptions):,} raw activations"])


def opened(params: Params) -> Reader:
    """The subject up to the site that SAEs read, or the whole where it is asked what vectors do to its output."""
    site = read_site(SITE)
    clamps = params.explainer.prompt.shown_promoted and params.extract_activations.promoted_by is Promotion.clamp
    model, tokenizer = open_model(SUBJECT, blocks=None if clamps else site.blocks), open_tokenizer(SUBJECT)
    return Reader(model, tokenizer, site, params.prepare_subject.context_length)


def raw_activations(params: Params, reader: Reader, draw: random.Random) -> warmup.WarmupSet:
    """Residuals of the subject at random tokens of a stream of their own, with something true about each. What the
    prompt shows of promoted tokens is what they promote."""
    config, prompt = params.warm_up, params.explainer.prompt
    limit = ReadingLimit(reader.tokenizer, reader.context_length)
    domain = open_domain(params.prepare_subject.domain, params.seed, params.prepare_subject.corpus, limit)
    documents = domain.documents("warmup", config.examples)
    batches = token_batches(documents, reader, params.extract_activations.batch_size)
    found = warmup.warmup_set(batches, domain, config, prompt, params.extract_activations.context_tokens, draw)
    if not prompt.shown_promoted:
        return found
    tokens = promoted(effects(params, reader, found.vectors), reader.tokenizer, prompt.shown_promoted)
    contexts = found.contexts or [""] * len(tokens)
    shown = ["\n".join(filter(None, [own, promotes(words)])) for own, words in zip(contexts, tokens, strict=True)]
    return replace(found, contexts=shown)


if __name__ == "__main__":
    main(run, parallel=True)
