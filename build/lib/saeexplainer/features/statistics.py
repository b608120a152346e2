"""One streaming pass over a corpus: what each feature of several SAEs fires on.

Memory is bounded by the number of features times the contexts kept, never by the corpus: 12 bytes for each latent and
kept document (`FeatureStatistics`), and while a batch is read three times 4 bytes for each of its tokens and latents.
Special tokens never count.
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
