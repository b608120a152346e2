"""One streaming pass over a corpus: what each feature of several SAEs fires on.

Memory is bounded by the number of features times the contexts kept, never by the corpus: 12 bytes for each latent and
kept document (`FeatureStatistics`, `DocumentSample`), and while a batch is read 5 bytes for each of its tokens and
latents. Codes are sparse, so that all but finding out where they are above 0 is of those places alone. Special tokens
never count.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.runs import processes


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
        """Add one batch; `document` numbers its documents from 0, `first_document` is the first one's number."""
        if not len(codes):  # documents of special tokens alone
            return
        self.tokens += len(codes)
        token, latent = (codes > 0).nonzero(as_tuple=True)
        self.fired += torch.bincount(latent, minlength=codes.shape[1])
        peaks, numbers = _peaks(codes, token, latent, document, first_document)
        highest = peaks.max(dim=0).values
        self.maximum = torch.maximum(self.maximum, highest)
        changed = (highest > self.top_values[-1]).nonzero().flatten()  # of equals the earlier document stays
        values = torch.cat([self.top_values[:, changed], peaks[:, changed]])
        documents = torch.cat([self.top_documents[:, changed], numbers[:, changed]])
        self.top_values[:, changed], self.top_documents[:, changed] = _largest(values, documents, len(self.top_values))

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
        found.top_values, found.top_documents = _largest(
            torch.cat(values).gather(0, earliest), every.gather(0, earliest), len(found.top_values)
        )
        return found

    def top_document_numbers(self, latent: int) -> list[int]:
        """Numbers of the documents in which the latent fires hardest, strongest first."""
        return self.top_documents[self.top_values[:, latent] > 0, latent].tolist()


class DocumentSample:
    """Of every latent some of the documents in which it fires, drawn at random: what it does in general, where its top
    documents show its extremes. A document and a latent have a random number of their own, and the largest are kept, so
    that neither batches nor processes decide."""

    def __init__(self, d_sae: int, count: int, device: torch.device | str = "cpu") -> None:
        """`device` is that of the codes."""
        self.values = torch.zeros(count, d_sae, device=device)  # the random numbers, the largest first; zero: none
        self.documents = torch.zeros(count, d_sae, dtype=torch.long, device=device)

    def update(self, codes: Float[Tensor, "valid_tokens d_sae"], document: Tensor, first_document: int) -> None:
        """Add one batch, numbered as in `FeatureStatistics.update`."""
        if not len(codes):
            return
        peaks, numbers = _peaks(codes, *(codes > 0).nonzero(as_tuple=True), document, first_document)
        drawn = torch.stack([_draw(int(number), codes.shape[1]) for number in numbers[:, 0]]).to(peaks)
        self._keep(torch.cat([self.values, drawn * (peaks > 0)]), torch.cat([self.documents, numbers]))

    def _keep(self, values: Float[Tensor, "candidates d_sae"], documents: Tensor) -> None:
        self.values, self.documents = _largest(values, documents, len(self.values))

    def state(self) -> dict[str, Tensor]:
        """All of it, for `restore`."""
        return {"values": self.values, "documents": self.documents}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, on the same device as before."""
        self.values, self.documents = state["values"].to(self.values.device), state["documents"].to(self.values.device)

    def gathered(self) -> "DocumentSample":
        """That of all processes together, on the CPU."""
        values, documents = zip(*processes.gather([(self.values.cpu(), self.documents.cpu())]))
        found = DocumentSample(self.values.shape[1], len(self.values))
        found._keep(torch.cat(values), torch.cat(documents))
        return found

    def document_numbers(self, latent: int) -> list[int]:
        """Numbers of the documents, in no order that means anything."""
        return self.documents[self.values[:, latent] > 0, latent].tolist()


def _draw(document: int, d_sae: int) -> Float[Tensor, "d_sae"]:
    """Above 0, at most 1."""
    return 1 - torch.rand(d_sae, generator=torch.Generator().manual_seed(document))


def _peaks(
    codes: Float[Tensor, "valid_tokens d_sae"], token: Tensor, latent: Tensor, document: Tensor, first_document: int
) -> tuple[Float[Tensor, "documents d_sae"], Tensor]:
    """What each latent does on its strongest token of each document, and the documents' numbers in the same shape.
    `token` and `latent` are the places where codes are above 0."""
    held, d_sae = int(document.max()) + 1, codes.shape[1]
    peaks = torch.zeros(held * d_sae, device=codes.device)
    places = document.to(codes.device)[token] * d_sae + latent
    peaks = peaks.scatter_reduce_(0, places, codes[token, latent], reduce="amax").view(held, d_sae)
    numbers = torch.arange(first_document, first_document + held, device=codes.device).unsqueeze(1)
    return peaks, numbers.expand_as(peaks)


def _largest(values: Float[Tensor, "candidates d_sae"], documents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest candidates of each latent; of equals the earlier one, so that no order of work decides."""
    top = values.sort(dim=0, descending=True, stable=True).indices[:count]
    return values.gather(0, top), documents.gather(0, top)
