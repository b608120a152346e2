"""How the subject's documents begin: neutral texts to see what a direction does to what follows."""

from itertools import islice
from typing import TYPE_CHECKING

from saeexplainer.config import Params
from saeexplainer.domains.domain import ReadingLimit
from saeexplainer.domains.opening import open_domain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def beginnings(
    params: Params, tokenizer: "PreTrainedTokenizerFast", stream: str, count: int, length: int
) -> list[list[int]]:
    """The first `length` tokens of `count` documents of a stream, BOS included; fewer documents where too few are
    longer."""
    limit = ReadingLimit(tokenizer, params.prepare_subject.context_length)
    domain = open_domain(params.prepare_subject.domain, params.seed, params.prepare_subject.corpus, limit)
    encoded = (tokenizer(document.text)["input_ids"] for document in domain.documents(stream, 50 * count))
    long = [ids[:length] for ids in encoded if len(ids) > length]
    return list(islice((list(ids) for ids in dict.fromkeys(map(tuple, long))), count))
