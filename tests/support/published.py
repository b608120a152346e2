"""What others publish, tiny and made on the spot: chat models of `families`, and SAEs that fit a model."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import sae_lens as lens
import torch
from datasets import Dataset
from families import CONTEXT, FAMILIES, TOKENIZERS, WIDTH
from sae_lens.saes.sae import SAEMetadata

from saeexplainer.models import batches, loading, tokenizers
from saeexplainer.saes.sites import SiteReader, parse_site

D_SAE = 2 * WIDTH
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)
MAKE: dict[str, Callable[..., lens.SAE]] = {
    "standard": lambda **more: lens.StandardSAE(lens.StandardSAEConfig(WIDTH, D_SAE, **more)),
    "topk": lambda **more: lens.TopKSAE(lens.TopKSAEConfig(WIDTH, D_SAE, k=16, **more)),
    "jumprelu": lambda **more: lens.JumpReLUSAE(lens.JumpReLUSAEConfig(WIDTH, D_SAE, **more)),
    "gated": lambda **more: lens.GatedSAE(lens.GatedSAEConfig(WIDTH, D_SAE, **more)),
}


def save_sae(
    model: Path, prepend_bos: bool | None, kind: str, folder: Path, hook: str, texts: Sequence[str], **more: object
) -> Path:
    """An SAE that fits: both signs of every coordinate in a random basis, around the mean of what it reads of texts."""
    site = parse_site(hook)
    tokenizer = tokenizers.load_tokenizer(model, prepend_bos=prepend_bos)
    ids, mask, valid = batches.encode_batch(tokenizer, texts, CONTEXT)
    x = SiteReader(loading.load_model(model, blocks=site.blocks), site)(ids, mask)[valid]
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))).Q
    metadata = SAEMetadata(model_name="tiny", hook_name=hook, prepend_bos=more.pop("trained_with_bos", prepend_bos))
    made = MAKE[kind](metadata=metadata, **more)
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([basis, -basis], dim=1))
        made.W_dec.copy_(made.W_enc.T)
        made.b_dec.copy_(x.mean(dim=0))
        if kind == "jumprelu":
            made.threshold.fill_(0.3 * float(x.std()))
        if kind == "gated":
            made.b_gate.fill_(-0.3 * float(x.std()))
            made.r_mag.copy_(torch.linspace(-0.5, 0.5, D_SAE))  # or it would be what jumprelu is
    made.save_model(folder)
    return folder


def trained_by_sae_lens(model: Path, hook: str, folder: Path, texts: Sequence[str], prepend_bos: bool) -> Path:
    """An SAE that sae-lens' own runner trained on the transformers model itself, for a moment; `hook` is a module."""
    settings = lens.LanguageModelSAERunnerConfig(
        sae=lens.TopKTrainingSAEConfig(d_in=WIDTH, d_sae=D_SAE, k=16),
        model_name=str(model), model_class_name="AutoModelForCausalLM", hook_name=hook, prepend_bos=prepend_bos,
        dataset_path="texts", is_dataset_tokenized=False, streaming=False, context_size=16,
        training_tokens=150 * 64, train_batch_size_tokens=64, n_batches_in_buffer=4, store_batch_size_prompts=8,
        lr=1e-2, n_eval_batches=0, verbose=False,
        logger=lens.LoggingConfig(log_to_wandb=False), output_path=str(folder), checkpoint_path=None,
    )  # fmt: skip
    lens.LanguageModelSAETrainingRunner(settings, override_dataset=Dataset.from_dict({"text": list(texts)})).run()
    return folder


def save_chat_model(name: str, folder: Path, texts: Sequence[str], steps: int = 60) -> Path:
    """A checkpoint of a family with a chat template, trained for a moment: it says words, and seldom a lone byte."""
    tokenizer = TOKENIZERS[FAMILIES[name].tokenizer]()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = FAMILIES[name].build(len(tokenizer))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, key, getattr(tokenizer, key))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    if name != "gpt2":  # rotary positions: more of them need no weights, and a judge's questions are long
        model.config.max_position_embeddings = 1024
    teach(model, tokenizer, texts, steps)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def teach(model: torch.nn.Module, tokenizer: object, texts: Sequence[str], steps: int) -> None:
    """A few steps on texts, each said as an answer too.

    An answer is tokenized apart from its prompt, as an explainer's is: else the space that ends the prompt would join
    the first word, and what follows that space alone would never be learnt.
    """
    said = [(before, text) for text in texts for before in ("", "[user] What is ??\n[model] ")]
    order = torch.randperm(len(said), generator=torch.Generator().manual_seed(0)).tolist()
    rows = iter([_encoded(tokenizer, *said[at]) for at in order * steps])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        batch = list(islice(rows, 16))
        width = max(map(len, batch))
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
        ids = labels.clamp_min(0)
        model(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _encoded(tokenizer: object, before: str, text: str) -> list[int]:
    ids = tokenizer(before)["input_ids"] + tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[: CONTEXT - 1] + [tokenizer.eos_token_id]
