"""One streaming pass over the corpus: what each feature fires on, which features are live, and their split.

    python -m tasks.extract_activations

Writes data/activations: features.parquet, neighbours.parquet, contexts.parquet, directions.safetensors (decoder and encoder rows, mean top
activations, one row a feature) and, where the domain knows it, truth.safetensors.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from saeexplainer import activations, neighbours, processes, truth
from saeexplainer.activations import FeatureStatistics, TokenBatch
from saeexplainer.config import Params
from saeexplainer.domain import Document, Domain, ReadingLimit
from saeexplainer.domains import open_domain
from saeexplainer.neighbours import CoFiring
from saeexplainer.reading import open_reader
from saeexplainer.records import NOT_EXPLAINED, ContextRow, FeatureRow, NeighbourRow
from saeexplainer.seeds import seed_torch
from saeexplainer.storage import replacing, write_rows, write_tensors
from tasks.prepare_sae import SAES
from tasks.prepare_subject import SUBJECT
from tasks.stage import Report, main

ACTIVATIONS = Path("data/activations")
STREAM = "extract"


class Extraction:
    """The models and settings that every pass shares."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.config = params.extract_activations
        names = [spec.name for spec in params.prepare_sae.saes]
        self.reader = open_reader(SUBJECT, SAES, names, params.prepare_subject.context_length, whole=False)
        self.saes = self.reader.saes
        limit = ReadingLimit(self.reader.tokenizer, self.reader.context_length)
        self.domain: Domain = open_domain(
            params.prepare_subject.domain, params.seed, params.prepare_subject.corpus, limit
        )  # fmt: skip

    def batches(self, documents: Iterable[Document], *, shared: bool) -> Iterator[TokenBatch]:
        """Stream documents through the subject up to the SAEs' site; `shared` among processes, or all here."""
        return activations.token_batches(documents, self.reader, self.config.batch_size, shared=shared)

    def documents(self) -> Iterator[Document]:
        """The corpus, the same at every call."""
        from tqdm.auto import tqdm

        found = self.domain.documents(STREAM, self.config.documents)
        return iter(tqdm(found, desc="reading documents", total=self.config.documents))


def run(params: Params) -> Report:
    """Two passes over the corpus (statistics; the documents of the top contexts), one over the truth sample."""
    seed_torch(params.seed, "extract_activations")
    torch.set_grad_enabled(False)
    work = Extraction(params)
    statistics, firing, mean = first_pass(work)
    live = {name: activations.live_features(stats, work.config) for name, stats in statistics.items()}
    decoders = {name: one.W_dec.detach().cpu() for name, one in work.saes.items()}
    # A matching pursuit SAE encodes with its decoder.
    encoders = {
        name: one.W_enc.detach().cpu().T if hasattr(one, "W_enc") else decoders[name] for name, one in work.saes.items()
    }
    splits = activations.split_features(live, decoders, work.config, params.seed)
    rows = activations.feature_rows(statistics, splits, subject_name(params))
    contexts, top_residuals = second_pass(work, rows, statistics)
    with replacing(ACTIVATIONS) as folder:
        folder.mkdir(parents=True)
        write_rows(folder / "features.parquet", rows, FeatureRow)
        write_rows(folder / "neighbours.parquet", neighbour_rows(work, rows, firing), NeighbourRow)
        write_rows(folder / "contexts.parquet", contexts, ContextRow)
        tensors = {
            "decoder": torch.stack([decoders[row.sae][row.index] for row in rows]),
            "encoder": torch.stack([encoders[row.sae][row.index] for row in rows]),
            "mean_activation": top_residuals - mean,
        }
        write_tensors(folder / "directions.safetensors", tensors | {"corpus_mean": mean})
        if work.domain.truth_known:
            truth.save(folder / "truth.safetensors", truth_table(work, rows))
    counts = Counter(row.split for row in rows)
    listed = ", ".join(f"{name} {counts[name]}" for name in ("sft", "dpo", "valid", "test", *NOT_EXPLAINED))
    return Report({f"features_{name}": float(count) for name, count in counts.items()}, [f"live features: {listed}"])


def subject_name(params: Params) -> str:
    """What feature ids call the subject: its domain and family, or the name of a model of others."""
    if params.prepare_subject.pretrained is not None:
        return Path(params.prepare_subject.pretrained.source).name
    return f"{params.prepare_subject.domain}-{params.prepare_subject.architecture}"


def first_pass(work: Extraction) -> tuple[dict[str, FeatureStatistics], dict[str, CoFiring], torch.Tensor]:
    """Maximum, density, top documents and company of every latent, and the mean residual over all valid tokens."""
    firing = {name: CoFiring(one.cfg.d_sae) for name, one in work.saes.items()}
    top, device = work.config.top_contexts, work.reader.device
    statistics = {name: FeatureStatistics(one.cfg.d_sae, top, device) for name, one in work.saes.items()}
    total, count = torch.zeros(work.reader.width, dtype=torch.float64), 0
    for batch in work.batches(work.documents(), shared=True):
        for name, one in work.saes.items():
            codes = one.encode(batch.residual)
            statistics[name].update(codes, batch.document, batch.first)
            firing[name].update(codes)
        total += batch.residual.sum(dim=0).cpu()
        count += len(batch.residual)
    mean = processes.total(total) / sum(processes.gather([count]))
    everyone = {name: stats.gathered() for name, stats in statistics.items()}
    return everyone, {name: counts.gathered() for name, counts in firing.items()}, mean.float()


def neighbour_rows(work: Extraction, rows: list[FeatureRow], firing: dict[str, CoFiring]) -> list[NeighbourRow]:
    """The neighbours of every live feature, in the order of `rows`."""
    found = []
    for name, one in work.saes.items():
        own = [row for row in rows if row.sae == name]
        found += neighbours.nearest(own, one.W_dec, firing[name], work.config.neighbours)
    return found


def second_pass(
    work: Extraction, rows: list[FeatureRow], statistics: dict[str, FeatureStatistics]
) -> tuple[list[ContextRow], torch.Tensor]:
    """Contexts and mean top residuals, from the documents that hold a top context of some feature."""
    wanted = {number for row in rows for number in statistics[row.sae].top_document_numbers(row.index)}
    numbers = sorted(wanted)
    documents = (document for number, document in enumerate(work.documents()) if number in wanted)
    return activations.read_contexts(
        rows, statistics, work.saes, numbers, work.domain, work.batches(documents, shared=True), work.config
    )


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
            token_concepts += activations.concepts_at(work.domain.annotate(document), offsets)
    return truth.build(work.domain.concepts(), token_concepts, [np.concatenate(parts) for parts in firing])


if __name__ == "__main__":
    main(run, parallel=True)
