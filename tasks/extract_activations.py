"""One streaming pass over the corpus: what each feature fires on, which features are live, and their split.

    python -m tasks.extract_activations

Killed, it goes on where it was, and writes the same bytes: `Checkpoint` keeps both passes over the corpus under
.cache/extract_activations until the artifacts are written. Writes data/activations: features.parquet,
neighbours.parquet, contexts.parquet, spread.parquet (contexts in which a feature fires at all, where they are asked
for), promoted.parquet (what each decoder row does to the subject's output),
directions.safetensors (decoder rows, mean top activations, one row a feature) and, where truth_documents are asked for,
truth.safetensors: the concepts of their tokens, which are the truth in the sandbox and hypotheses elsewhere.
"""

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import saeexplainer
from saeexplainer.config import Params
from saeexplainer.config.parts import Promotion
from saeexplainer.domains.corpus.installed import versions
from saeexplainer.domains.corpus.text import is_installed
from saeexplainer.domains.domain import Document, Domain, ReadingLimit
from saeexplainer.domains.opening import open_domain
from saeexplainer.features import neighbours, splits as features_splits, token_stream, truth
from saeexplainer.features.neighbours import CoFiring
from saeexplainer.features.promoted import promoted
from saeexplainer.features.statistics import DocumentSample, FeatureStatistics
from saeexplainer.features.token_stream import TokenBatch
from saeexplainer.features.top_contexts import TopContexts
from saeexplainer.models.gguf import SUFFIX
from saeexplainer.records import NOT_EXPLAINED, ContextRow, FeatureRow, NeighbourRow, PromotedRow
from saeexplainer.runs import processes
from saeexplainer.runs.checkpoint import Checkpoint, Kept, fingerprint
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import replacing, write_rows, write_tensors
from saeexplainer.saes.reading import open_reader
from saeexplainer.saes.subset import decoder_rows
from tasks.effects import effects
from tasks.places import ACTIVATIONS, SAES, SUBJECT
from tasks.stage import Report, main

KEPT = Path(".cache/extract_activations")
STREAM = "extract"
PROMOTED = 10  # tokens of a feature


class Extraction:
    """The models and settings that every pass shares."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.config = params.extract_activations
        names = [spec.name for spec in params.prepare_sae.saes]
        clamps = self.config.promoted_by is Promotion.clamp
        self.reader = open_reader(SUBJECT, SAES, names, params.prepare_subject.context_length, whole=clamps)
        self.saes = self.reader.saes
        limit = ReadingLimit(self.reader.tokenizer, self.reader.context_length)
        self.domain: Domain = open_domain(
            params.prepare_subject.domain, params.seed, params.prepare_subject.corpus, limit
        )  # fmt: skip
        self.checkpoint = Checkpoint(KEPT, depends_on(params))

    def batches(self, documents: Iterable[Document], *, shared: bool, first: int = 0) -> Iterator[TokenBatch]:
        """Stream documents, numbered from `first`, through the subject up to the SAEs' site; `shared` among processes,
        or all here."""
        return token_stream.token_batches(documents, self.reader, self.config.batch_size, shared=shared, first=first)

    def documents(self) -> Iterator[Document]:
        """The corpus, the same at every call."""
        return self.domain.documents(STREAM, self.config.documents)

    def gather(self, name: str, work: Kept, documents: Iterable[Document], count: int) -> None:
        """Add this process's share of `documents`, of which there are `count` at most, to `work`; after a kill, what
        was not added before. The text before that is passed over, not read by the subject."""
        from tqdm.auto import tqdm

        done = self.checkpoint.restore(name, work)
        if done and processes.is_first():
            print(f"extraction, {name}: goes on at document {done:,} of {count:,}", file=sys.stderr, flush=True)
        if done == count:
            return
        rest = tqdm(islice(documents, done, None), desc=f"reading documents, {name}", total=count, initial=done)
        for batch in self.batches(iter(rest), shared=True, first=done):  # a bar itself looks as if it began anew
            work.update(batch)
            self.checkpoint.save(name, work, batch.first + len(batch.documents))


def depends_on(params: Params) -> str:
    """Fingerprint of what a half-done extraction may go on with: settings, models, corpus, this code."""
    others = [params.prepare_subject.pretrained, params.prepare_subject.corpus]
    settings = [
        params.seed, *others, params.prepare_subject.domain, params.prepare_subject.architecture,
        params.prepare_subject.context_length, params.prepare_sae.saes, params.extract_activations,
        platform.python_version(),  # pydoc reads Python's own text
    ]  # fmt: skip
    corpus = params.prepare_subject.corpus
    if corpus is not None and is_installed(corpus):
        settings.append(versions())
    local = [Path(other.source) for other in others if other is not None and Path(other.source).exists()]
    code = [*sorted(Path(saeexplainer.__file__).parent.rglob("*.py")), Path(__file__)]
    return fingerprint(settings, [SUBJECT, SAES, *code], local)


class Survey:
    """What the first pass gathers: maximum, density, top documents and company of every latent, and the residuals."""

    def __init__(self, work: Extraction) -> None:
        self.saes, top, device = work.saes, work.config.top_contexts, work.reader.device
        self.firing = {name: CoFiring(one.cfg.d_sae) for name, one in self.saes.items()}
        spread = work.config.spread_contexts
        self.samples = {name: DocumentSample(one.cfg.d_sae, spread, device) for name, one in self.saes.items()}
        self.statistics = {name: FeatureStatistics(one.cfg.d_sae, top, device) for name, one in self.saes.items()}
        self.total, self.count = torch.zeros(work.reader.width, dtype=torch.float64), 0  # over valid tokens
        self.contexts: list[ContextRow] = []  # are for the second pass

    def update(self, batch: TokenBatch) -> None:
        """Add one batch."""
        for name, one in self.saes.items():
            codes = one.encode(batch.residual)
            self.statistics[name].update(codes, batch.document, batch.first)
            self.firing[name].update(codes)
            if len(self.samples[name].values):
                self.samples[name].update(codes, batch.document, batch.first)
        self.total += batch.residual.sum(dim=0).cpu()
        self.count += len(batch.residual)

    def state(self) -> dict[str, torch.Tensor]:
        """All of it, for `restore`."""
        found = {"total": self.total, "count": torch.tensor(self.count)}
        for part, name, one in self._parts():
            found |= {f"{part}.{name}.{key}": tensor for key, tensor in one.state().items()}
        return found

    def restore(self, state: dict[str, torch.Tensor], contexts: list[ContextRow]) -> None:
        """Go on from what `state` gave."""
        self.total, self.count = state["total"], int(state["count"])
        for part, name, one in self._parts():
            start = f"{part}.{name}."
            one.restore({key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)})

    def _parts(self) -> Iterator[tuple[str, str, FeatureStatistics | CoFiring | DocumentSample]]:
        yield from (("statistics", name, one) for name, one in self.statistics.items())
        yield from (("firing", name, one) for name, one in self.firing.items())
        yield from (("samples", name, one) for name, one in self.samples.items())

    def gathered(self) -> "Surveyed":
        """Of all processes together."""
        return Surveyed(
            {name: one.gathered() for name, one in self.statistics.items()},
            {name: one.gathered() for name, one in self.firing.items()},
            {name: one.gathered() for name, one in self.samples.items()},
            (processes.total(self.total) / sum(processes.gather([self.count]))).float(),
        )


@dataclass(frozen=True)
class Surveyed:
    """What the first pass found, by the SAE's name."""

    statistics: dict[str, FeatureStatistics]  # maximum, density, top documents of every latent
    firing: dict[str, CoFiring]  # its company
    samples: dict[str, DocumentSample]  # documents in which it fires at all
    mean: torch.Tensor  # [d_model] residual over all valid tokens


def run(params: Params) -> Report:
    """Two passes over the corpus (statistics; the documents of the top contexts), one over the truth sample."""
    seed_torch(params.seed, "extract_activations")
    torch.set_grad_enabled(False)
    work = Extraction(params)
    found = first_pass(work)
    live = {name: features_splits.live_features(stats, work.config) for name, stats in found.statistics.items()}
    decoders = {name: decoder_rows(one) for name, one in work.saes.items()}
    splits = features_splits.split_features(live, decoders, work.config, params.seed)
    rows = features_splits.feature_rows(found.statistics, splits, subject_name(params))
    contexts, further, top_residuals = second_pass(work, rows, found)
    with replacing(ACTIVATIONS) as folder:
        folder.mkdir(parents=True)
        write_rows(folder / "features.parquet", rows, FeatureRow)
        write_rows(folder / "neighbours.parquet", neighbour_rows(work, rows, found.firing), NeighbourRow)
        write_rows(folder / "contexts.parquet", contexts, ContextRow)
        write_rows(folder / "spread.parquet", further, ContextRow)
        decoder = torch.stack([decoders[row.sae][row.index] for row in rows])
        write_rows(folder / "promoted.parquet", promoted_rows(work, rows, decoder), PromotedRow)
        tensors = {
            "decoder": decoder,
            "mean_activation": top_residuals - found.mean,
        }
        write_tensors(folder / "directions.safetensors", tensors | {"corpus_mean": found.mean})
        if work.config.truth_documents:
            truth.save(folder / "truth.safetensors", truth_table(work, rows))
    work.checkpoint.remove()
    counts = Counter(row.split for row in rows)
    listed = ", ".join(f"{name} {counts[name]}" for name in ("sft", "dpo", "valid", "test", *NOT_EXPLAINED))
    return Report({f"features_{name}": float(count) for name, count in counts.items()}, [f"live features: {listed}"])


def subject_name(params: Params) -> str:
    """What feature ids call the subject: its domain and family, or the name of a pretrained model, in one word."""
    if params.prepare_subject.pretrained is not None:
        name = Path(os.path.abspath(params.prepare_subject.pretrained.source)).name
        return "-".join(name.removesuffix(SUFFIX).split())
    return f"{params.prepare_subject.domain}-{params.prepare_subject.architecture}"


def first_pass(work: Extraction) -> Surveyed:
    """What every latent does on the corpus."""
    found = Survey(work)
    work.gather("first pass", found, work.documents(), work.config.documents)
    work.checkpoint.save_now("first pass", found, work.config.documents)  # small, and the second may take as long
    return found.gathered()


def neighbour_rows(work: Extraction, rows: list[FeatureRow], firing: dict[str, CoFiring]) -> list[NeighbourRow]:
    """The neighbours of every live feature, in the order of `rows`."""
    found = []
    for name, one in work.saes.items():
        own = [row for row in rows if row.sae == name]
        found += neighbours.nearest(own, one.W_dec, firing[name], work.config.neighbours)
    return found


def promoted_rows(work: Extraction, rows: list[FeatureRow], decoder: torch.Tensor) -> list[PromotedRow]:
    """The tokens that each feature's decoder row promotes, at the feature's maximum, in the order of `rows`."""
    strongest = decoder * torch.tensor([row.maximum for row in rows]).unsqueeze(1)
    tokens = promoted(effects(work.params, work.reader, strongest), work.reader.tokenizer, PROMOTED)
    return [PromotedRow(row.feature_id, words) for row, words in zip(rows, tokens, strict=True)]


def second_pass(
    work: Extraction, rows: list[FeatureRow], surveyed: Surveyed
) -> tuple[list[ContextRow], list[ContextRow], torch.Tensor]:
    """From the documents that hold a context of some feature: the top ones, those of the sample whose texts are none of
    these, and the mean top residuals."""
    config = work.config
    found = TopContexts(
        rows, surveyed.statistics, work.saes, work.domain.annotate, config.context_tokens, config.direction_contexts,
        surveyed.samples,
    )  # fmt: skip
    documents = (document for number, document in enumerate(work.documents()) if number in found.wanted)
    work.gather("second pass", found, documents, len(found.numbers))
    contexts, residuals = found.gathered()
    top = [one for one in contexts if one.rank < found.further]
    known = {(one.feature_id, one.text) for one in top}
    further = [one for one in contexts if one.rank >= found.further and (one.feature_id, one.text) not in known]
    return top, [replace(one, rank=one.rank - found.further) for one in further], residuals


def truth_table(work: Extraction, rows: list[FeatureRow]) -> truth.TruthTable:
    """Concepts and firing of the explained SAE's features, token by token, on further documents."""
    main_name = next(iter(work.saes))
    explained = [row for row in rows if row.sae == main_name]
    indices = torch.tensor([row.index for row in explained])
    threshold = 0.5 * torch.tensor([row.maximum for row in explained])
    token_concepts: list[tuple[str, ...]] = []
    firing: list[list[np.ndarray]] = [[] for _ in explained]
    documents = islice(work.domain.documents("truth", work.config.truth_documents), work.config.truth_documents)
    for batch in work.batches(documents, shared=False):
        fires = (work.saes[main_name].encode(batch.residual)[:, indices].cpu() >= threshold).numpy()
        for column in range(len(explained)):
            firing[column].append(fires[:, column].nonzero()[0] + len(token_concepts))
        for local, document in enumerate(batch.documents):
            offsets = batch.offsets[batch.document == local].tolist()
            token_concepts += token_stream.concepts_at(work.domain.annotate(document), offsets)
    return truth.build(work.domain.concepts(), token_concepts, [np.concatenate(parts) for parts in firing])


if __name__ == "__main__":
    main(run, parallel=True)
