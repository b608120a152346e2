"""The subject: a small causal LM trained on a domain's documents and lessons; writer and start of the explainer too.

Half of what it reads are plain documents, half description-to-text lessons in both wordings of the writer's prompt, so
that the wording used in evaluation is not the one used in training.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from saeexplainer.config import PrepareSubject
from saeexplainer.config.parts import Architecture
from saeexplainer.domains.domain import ABOUT, EXAMPLE, TEXT, Domain
from saeexplainer.errors import UserError
from saeexplainer.models.batches import by_length, encode_batch, fitting
from saeexplainer.models.blocks import device_of, transformer_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MUON_RATIO = 5.0  # Muon's learning rate over AdamW's: its updates have unit spectral norm
LESSON_FORMS = (f"{ABOUT} {{description}} {TEXT} {{text}}", f"{EXAMPLE} {{description}} {TEXT} {{text}}")


@dataclass(frozen=True)
class SubjectReport:
    """What training reached, or what a pretrained model does."""

    loss: float  # mean nats a token of held-out plain documents; of one trained here, the end of document included
    entropy_floor: float | None  # the generator's own nats a token on the same documents; None where it is unknown
    parameters: int
    tokens_seen: int  # training tokens, padding left out; 0 of a pretrained model: it is not known here


def build_model(config: PrepareSubject, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """An untrained model of the configured shape; its vocabulary is the tokenizer's."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if config.architecture is Architecture.gpt2:
        shape = GPT2Config(
            vocab_size=len(tokenizer), n_positions=2 * config.context_length, n_embd=config.d_model,
            n_layer=config.blocks, n_head=config.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **special,
        )  # fmt: skip
        return GPT2LMHeadModel(shape)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.d_model, intermediate_size=3 * config.d_model,
        num_hidden_layers=config.blocks, num_attention_heads=config.heads, tie_word_embeddings=True,
        max_position_embeddings=2 * config.context_length, **special,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def training_sequences(domain: Domain, config: PrepareSubject, tokenizer: "PreTrainedTokenizerFast") -> list[list[int]]:
    """Token ids of the training set, each ended by EOS. Raises UserError if the domain has no text."""
    texts = [document.text for document in domain.documents("subject", config.documents)]
    if not texts:
        raise UserError("prepare_subject.documents: the corpus is empty; raise it, or name another domain")
    for number, lesson in enumerate(domain.lessons("subject", config.lessons)):
        form = LESSON_FORMS[number % len(LESSON_FORMS)]
        texts.append(form.format(description=lesson.description, text=lesson.text))
    encoded = tokenizer(texts, truncation=True, max_length=config.context_length - 1)["input_ids"]
    return [ids + [tokenizer.eos_token_id] for ids in encoded]


def train(
    model: "PreTrainedModel", sequences: list[list[int]], config: PrepareSubject, pad_token_id: int, seed: int
) -> int:
    """Train in place by next-token prediction; returns the number of tokens seen, padding left out.

    A plain loop, because it needs two optimizers: Muon for the matrices inside the blocks, AdamW for the rest. In equal
    time that reached 2.71 nats a token where AdamW alone reached 2.84 (docs/LOG.md).
    """
    inside = [parameter for parameter in transformer_blocks(model).parameters() if parameter.ndim == 2]
    ids = {id(parameter) for parameter in inside}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    optimizers = [
        torch.optim.Muon(inside, lr=MUON_RATIO * config.learning_rate, weight_decay=0.01),
        torch.optim.AdamW(outside, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, _warm_up_then_linear(config.steps)) for one in optimizers]
    seen = 0
    model.train()
    bar = tqdm(_shuffled_batches(sequences, config, seed), total=config.steps, desc="training the subject")
    for batch in bar:
        width = max(map(len, batch))
        padded = torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids in batch])
        labels = padded.masked_fill(padded == pad_token_id, -100)
        # Right padding behind a causal mask: no attention mask is needed.
        loss = model(input_ids=padded, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        seen += sum(map(len, batch))
        if bar.n % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return seen


def _warm_up_then_linear(steps: int) -> Callable[[int], float]:
    warm_up = max(1, steps // 20)
    return lambda step: min((step + 1) / warm_up, max(0.01, 1 - step / steps))


def _shuffled_batches(sequences: list[list[int]], config: PrepareSubject, seed: int) -> Iterator[list[list[int]]]:
    """`config.steps` batches of sequences of similar length, in random order, starting over when they run out."""
    draw = random.Random(seed)
    left = config.steps
    while left > 0:
        # Noise on the length mixes neighbours from one pass to the next.
        order = sorted(range(len(sequences)), key=lambda at: len(sequences[at]) + 6 * draw.random())
        starts = list(range(0, len(order), config.batch_size))
        draw.shuffle(starts)
        for start in starts[:left]:
            yield [sequences[at] for at in order[start : start + config.batch_size]]
        left -= len(starts)


@torch.no_grad()
def held_out_loss(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", domain: Domain, config: PrepareSubject
) -> tuple[float, float | None]:
    """Mean nats a token on held-out plain documents, and the generator's own on the same ones (None if unknown).

    Both count the words of the document and its end, so that they can be compared. Raises UserError if no held-out
    document fits into the context.
    """
    documents = list(islice(domain.documents("held_out", config.held_out_documents), config.held_out_documents))
    ids = tokenizer([document.text for document in documents])["input_ids"]
    kept = [index for index, tokens in enumerate(ids) if len(tokens) < config.context_length]
    if not kept:
        raise UserError(
            f"prepare_subject.context_length: {config.context_length}, and no held-out document is that short; raise it"
        )
    sequences = [ids[index] + [tokenizer.eos_token_id] for index in kept]
    nats, tokens = 0.0, 0
    for batch in by_length([len(sequence) for sequence in sequences], 64):
        padded = tokenizer.pad(
            {"input_ids": [sequences[index] for index in batch]}, padding_side="right", return_tensors="pt"
        )
        labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
        count = int((labels[:, 1:] != -100).sum())
        nats += float(model(**padded, labels=labels).loss) * count
        tokens += count
    known = [value for index in kept if (value := documents[index].nats) is not None]
    floor = sum(known) / tokens if len(known) == len(kept) else None
    return nats / tokens, floor


@torch.no_grad()
def loss_on(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", domain: Domain, config: PrepareSubject
) -> float:
    """Mean nats a token on held-out plain documents, cut at the context length; special tokens are not counted.

    Raises UserError if there is no token to predict.
    """
    texts = [
        document.text
        for document in islice(domain.documents("held_out", config.held_out_documents), config.held_out_documents)
    ]
    nats, count = 0.0, 0
    at_once = fitting(64, config.context_length * model.config.vocab_size)
    for batch in tqdm(list(by_length([len(text) for text in texts], at_once)), desc="the subject's loss"):
        ids, mask, valid = (
            one.to(device_of(model))
            for one in encode_batch(tokenizer, [texts[at] for at in batch], config.context_length)
        )
        counted = valid[:, 1:]
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1][counted].float()
        nats += float(torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="sum"))
        count += int(counted.sum())
    if not count:
        raise UserError("prepare_subject.held_out_documents: they hold no two tokens; raise it, or name another corpus")
    return nats / count
