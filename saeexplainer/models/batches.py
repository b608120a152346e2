"""Texts of different lengths as batches that fit into memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saeexplainer.errors import UserError
from saeexplainer.models.tokenizers import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


Result = TypeVar("Result")
ROOM = 2**28  # numbers in one array, 1 GiB in float32: what reads many texts at once takes a small multiple of it


def encode_batch(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], context_length: int
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Token ids, attention mask and valid mask, right-padded; valid leaves out every special token, BOS included.

    There is always a position, if one of padding. Raises UserError if the tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; load it with load_tokenizer, or set its pad_token")
    encoded = tokenizer(
        list(texts),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=context_length,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    ids, mask = encoded["input_ids"].long(), encoded["attention_mask"].long()
    if not ids.shape[1]:  # empty texts alone, without BOS: a model needs a position
        ids, mask = ids.new_full((len(ids), 1), tokenizer.pad_token_id), mask.new_zeros(len(ids), 1)
    valid = mask.bool() & ~torch.isin(ids, torch.tensor(special_ids(tokenizer)))
    return ids, mask, valid


def padded(sequences: Iterable[Sequence[int]], value: int, side: str = "right") -> Int[Tensor, "batch tokens"]:
    """Whole numbers, such as token ids, in rows of one length; on the CPU."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def fitting(most: int, numbers: int) -> int:
    """How many things to compute at once: at most `most`, at least one, and few enough that an array of `numbers`
    numbers for each stays within ROOM."""
    return max(1, min(most, ROOM // numbers))


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices, longest first, so that little padding is computed and the first batch shows the peak."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def in_order(batches: Sequence[Sequence[int]], results: Sequence[Sequence[Result]]) -> list[Result]:
    """The results of batches of indices, each index's at its place: whole if every index is in a batch."""
    found = {
        index: one
        for indices, part in zip(batches, results, strict=True)
        for index, one in zip(indices, part, strict=True)
    }
    return [found[index] for index in range(len(found))]
