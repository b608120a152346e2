"""One streaming pass over a corpus: what each feature of several SAEs fires on.

Memory is bounded by the number of features times the contexts kept, never by the corpus: 12 bytes for each latent and
kept document (`FeatureStatistics`), and while a batch is read three times 4 bytes for each of its tokens and latents.
Special tokens never count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer import processes
from saeexplainer.config import ExtractActivations
from saeexplainer.domain import Annotation, Document, Domain
from saeexplainer.errors import UserError
from saeexplainer.records import ContextRow, FeatureRow
from saeexplainer.seeds import stage_seed

if TYPE_CHECKING:
    from sae_lens import SAE

    from saeexplainer.reading import Reader


@dataclass(frozen=True)
class TokenBatch:
    """The valid tokens of a few documents, in order."""

    documents: list[Document]
    first: int  # the first one's number in the stream
    residual: Float[Tensor, "valid_tokens d_model"]  # activations at the SAEs' site, float32, on their device
    document: Tensor  # [valid_tokens] index into documents
    offsets: Tensor  # [valid_tokens, 2] character span in its document


def token_batches(
    documents: Iterable[Document], reader: "Reader", batch_size: int, *, shared: bool = False, first: int = 0
) -> Iterator[TokenBatch]:
    """Stream documents through the subject up to the SAEs' site; `shared`: this process's share of the batches alone.

    `first` is the number of the first document in its stream, where a batch begins. Raises UserError if the stream has
    no document.
    """
    stream = iter(documents)
    for number in count(first // batch_size):
        group = list(islice(stream, batch_size))
        if not group:
            break
        if not shared or processes.is_mine(number):
            yield _token_batch(group, reader, first)
        first += len(group)
    if not first:
        raise UserError("extract_activations.documents: the corpus is empty; raise it, or name another domain")


def _token_batch(documents: list[Document], reader: "Reader", first: int) -> TokenBatch:
    texts = [document.text for document in documents]
    batch = reader.read(texts)
    spans = reader.tokenizer(texts, truncation=True, max_length=reader.context_length, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    offsets = torch.zeros(*batch.ids.shape, 2, dtype=torch.long)
    for row, pairs in enumerate(spans):
        offsets[row, : len(pairs)] = torch.tensor(pairs)
    return TokenBatch(
        documents=documents,
        first=first,
        residual=batch.of_valid,
        document=torch.arange(len(texts)).unsqueeze(1).expand_as(batch.ids)[batch.valid],
        offsets=offsets[batch.valid],
    )


def concepts_at(annotation: Annotation, offsets: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """The concepts at each token [start, end): those of the annotated span in which its last character lies."""
    found, span = [], 0
    for start, end in offsets:
        # Byte-level tokens begin with their space: the last character is always inside the word.
        last = max(start, end - 1)
        while span < len(annotation.spans) and annotation.spans[span][1] <= last:
            span += 1
        inside = span < len(annotation.spans) and annotation.spans[span][0] <= last
        found.append(annotation.concepts[span] if inside else ())
    return found


class FeatureStatistics:
    """Running statistics of every latent of one SAE; `top` documents are remembered for each."""

    RUNNING = ("maximum", "fired", "top_values", "top_documents")  # the tensors

    def __init__(self, d_sae: int, top: int, device: torch.device | str = "cpu") -> None:
        """`device` is that of the codes."""
        self.tokens = 0
        self.maximum = torch.zeros(d_sae, device=device)
        self.fired = torch.zeros(d_sae, dtype=torch.long, device=device)  # tokens on which the latent is active
        self.top_values = torch.zeros(top, d_sae, device=device)  # strongest first; zero where there are fewer
        self.top_documents = torch.zeros(top, d_sae, dtype=torch.long, device=device)

    def update(self, codes: Float[Tensor, "valid_tokens d_sae"], document: Tensor, first_document: int) -> None:
        """Add one batch; `document` numbers the batch's documents from 0, `first_document` is the first one's number."""
        if not len(codes):  # documents of special tokens alone
            return
        self.tokens += len(codes)
        self.fired += (codes > 0).sum(dim=0)
        self.maximum = torch.maximum(self.maximum, codes.max(dim=0).values)
        held = int(document.max()) + 1
        # A document counts once for a latent: its strongest token.
        peaks = torch.zeros(held, codes.shape[1], device=codes.device)
        peaks.scatter_reduce_(0, document.to(codes.device).unsqueeze(1).expand_as(codes), codes, reduce="amax")
        numbers = torch.arange(first_document, first_document + held, device=codes.device).unsqueeze(1)
        self._keep(torch.cat([self.top_values, peaks]), torch.cat([self.top_documents, numbers.expand_as(peaks)]))

    def _keep(self, values: Float[Tensor, "candidates d_sae"], documents: Tensor) -> None:
        """The strongest candidates of each latent; of equals the earlier one, so that no order of work decides."""
        top = values.sort(dim=0, descending=True, stable=True).indices[: len(self.top_values)]
        self.top_values, self.top_documents = values.gather(0, top), documents.gather(0, top)

    def state(self) -> dict[str, Tensor]:
        """All of it, for `restore`."""
        return {"tokens": torch.tensor(self.tokens), **{name: getattr(self, name) for name in self.RUNNING}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, on the same device as before."""
        self.tokens = int(state["tokens"])
        for name in self.RUNNING:
            setattr(self, name, state[name].to(self.maximum.device))

    def gathered(self) -> "FeatureStatistics":
        """Those of all processes together, on the CPU."""
        own = (self.tokens, *(one.cpu() for one in (self.maximum, self.fired, self.top_values, self.top_documents)))
        tokens, maximum, fired, values, documents = zip(*processes.gather([own]))
        found = FeatureStatistics(len(self.maximum), len(self.top_values))
        found.tokens, found.fired = sum(tokens), torch.stack(fired).sum(dim=0)
        found.maximum = torch.stack(maximum).max(dim=0).values
        every = torch.cat(documents)
        earliest = every.argsort(dim=0, stable=True)
        found._keep(torch.cat(values).gather(0, earliest), every.gather(0, earliest))
        return found

    def top_document_numbers(self, latent: int) -> list[int]:
        """Numbers of the documents in which the latent fires hardest, strongest first."""
        return self.top_documents[self.top_values[:, latent] > 0, latent].tolist()


def live_features(statistics: FeatureStatistics, config: ExtractActivations) -> list[int]:
    """Latents whose density lies within the configured limits."""
    density = statistics.fired / max(statistics.tokens, 1)
    live = (density >= config.min_density) & (density <= config.max_density) & (statistics.maximum > 0)
    return live.nonzero().flatten().tolist()


def split_features(
    live: dict[str, list[int]], decoders: dict[str, Float[Tensor, "d_sae d_model"]], config: ExtractActivations,
    seed: int,
) -> dict[tuple[str, int], str]:  # fmt: skip
    """The split of every live feature. Valid and test come from the first SAE; what is too like one of them is a twin,
    and what is beyond max_features is spare.

    Raises UserError if the first SAE has fewer live features than valid and test need.
    """
    main = next(iter(live))
    needed = config.valid_features + config.test_features
    if len(live[main]) <= needed:
        raise UserError(
            f"extract_activations.test_features: valid and test need {needed} features, but the SAE {main} has "
            f"{len(live[main])} live ones; lower valid_features or test_features, or train a wider SAE"
        )
    generator = torch.Generator().manual_seed(stage_seed(seed, "split_features"))
    order = [live[main][at] for at in torch.randperm(len(live[main]), generator=generator).tolist()]
    held = order[:needed]
    splits = {(main, index): "test" if at < config.test_features else "valid" for at, index in enumerate(held)}
    held_rows = torch.nn.functional.normalize(decoders[main][held], dim=1)
    for sae, indices in live.items():
        training = [index for index in indices if (sae, index) not in splits]
        rows = torch.nn.functional.normalize(decoders[sae][training], dim=1)
        twin = (rows @ held_rows.T).max(dim=1).values >= config.twin_cosine
        chance = torch.rand(len(training), generator=generator)
        for at, index in enumerate(training):
            name = "sft" if chance[at] < config.sft_share else "dpo"
            splits[sae, index] = "twin" if twin[at] else name
    training = [feature for feature, name in splits.items() if name in ("sft", "dpo")]
    if config.max_features is not None and len(training) > config.max_features:
        order = torch.randperm(len(training), generator=generator).tolist()
        splits |= {training[at]: "spare" for at in order[config.max_features :]}
    return splits


def feature_rows(
    statistics: dict[str, FeatureStatistics], splits: dict[tuple[str, int], str], subject: str
) -> list[FeatureRow]:
    """One row a live feature, by SAE and index; its id is the reference's: subject/sae/index."""
    rows = []
    for (sae, index), split in sorted(splits.items()):
        stats = statistics[sae]
        rows.append(
            FeatureRow(
                feature_id=f"{subject}/{sae}/{index}",
                sae=sae,
                index=index,
                split=split,
                maximum=float(stats.maximum[index]),
                density=float(stats.fired[index]) / stats.tokens,
            )  # fmt: skip
        )
    return rows


class TopContexts:
    """Second look at the documents that hold a top context: windows with activations, and mean top residuals."""

    def __init__(
        self, rows: Sequence[FeatureRow], statistics: dict[str, FeatureStatistics], saes: dict[str, "SAE"],
        domain: Domain, config: ExtractActivations,
    ) -> None:  # fmt: skip
        self.rows, self.saes, self.domain, self.config = rows, saes, domain, config
        self.wanted: dict[int, list[tuple[int, int]]] = {}  # document's number to places in `rows` and ranks
        for at, row in enumerate(rows):
            for rank, number in enumerate(statistics[row.sae].top_document_numbers(row.index)):
                self.wanted.setdefault(number, []).append((at, rank))
        self.numbers = sorted(self.wanted)  # of the documents to read, in this order
        self.contexts: list[ContextRow] = []
        width = next(iter(saes.values())).cfg.d_in
        # In float64, so that the order of the documents leaves the rounded mean as it is.
        self.sums, self.counts = torch.zeros(len(rows), width, dtype=torch.float64), torch.zeros(len(rows))

    def update(self, batch: TokenBatch) -> None:
        """Add one batch of the documents of `numbers`."""
        codes = {name: sae.encode(batch.residual) for name, sae in self.saes.items()}
        for local, document in enumerate(batch.documents):
            here = (batch.document == local).nonzero().flatten()
            offsets = batch.offsets[here].tolist()
            concepts = concepts_at(self.domain.annotate(document), offsets)
            for at, rank in self.wanted[self.numbers[batch.first + local]]:
                row = self.rows[at]
                values = codes[row.sae][here, row.index].cpu()
                peak = int(values.argmax())
                if rank < self.config.direction_contexts:
                    self.sums[at] += batch.residual[here[peak]].cpu()
                    self.counts[at] += 1
                self.contexts.append(_context(row, rank, document, offsets, values, peak, concepts[peak], self.config))

    def state(self) -> dict[str, Tensor]:
        """What the means are made of, for `restore`; `contexts` is the rest."""
        return {"sums": self.sums, "counts": self.counts}

    def restore(self, state: Mapping[str, Tensor], contexts: list[ContextRow]) -> None:
        """Go on from what `state` gave."""
        self.sums, self.counts, self.contexts = state["sums"], state["counts"], contexts

    def gathered(self) -> tuple[list[ContextRow], Float[Tensor, "features d_model"]]:
        """Of all processes together: the contexts by feature and rank, and each feature's mean residual over the
        strongest tokens of its first `direction_contexts`, in the order of `rows`."""
        found = sorted(processes.gather(self.contexts), key=lambda context: (context.feature_id, context.rank))
        means = processes.total(self.sums) / processes.total(self.counts).clamp_min(1).unsqueeze(1)
        return found, means.float()


def _at_word(text: str, start: int) -> bool:
    """Whether no letter of a word stands right before this place."""
    return start == 0 or text[start - 1].isspace() or text[start].isspace()


def _context(
    row: FeatureRow, rank: int, document: Document, offsets: list[list[int]], values: Tensor, peak: int,
    concepts: tuple[str, ...], config: ExtractActivations,
) -> ContextRow:  # fmt: skip
    first = max(0, peak - config.context_tokens)
    while first and not _at_word(document.text, offsets[first][0]):  # read by itself, half a word is another token
        first -= 1
    last = min(len(offsets), peak + config.context_tokens + 1)
    return ContextRow(
        feature_id=row.feature_id,
        rank=rank,
        text=document.text[offsets[first][0] : offsets[last - 1][1]],
        tokens=[document.text[start:end] for start, end in offsets[first:last]],
        activations=[round(float(value), 5) for value in values[first:last]],
        peak=peak - first,
        concepts=list(concepts),
    )
