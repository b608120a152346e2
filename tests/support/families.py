"""Tiny checkpoints of the model families that people train SAEs on, and tokenizers like theirs, made on the spot."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as t
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH, BLOCKS, CONTEXT = 32, 4, 64
TEXTS = ["the dog chases the cat", "the dog", "does the dog chase the cat in the garden ?"]
END = "<|endoftext|>"


@dataclass(frozen=True)
class Family:
    """How a family is built, and what its parts are called; only tests know names."""

    build: Callable[[int], t.PreTrainedModel]  # of the vocabulary's size
    tokenizer: str  # key of TOKENIZERS
    attention: str  # the block's child whose output is added to the residual stream first
    mlp: str  # and second
    norm: str  # final norm, a path in the model


def _modern(config: type, model: type, **more: object) -> Callable[[int], t.PreTrainedModel]:
    """Of a family with Llama's names for sizes; more heads than key-value heads, and a width of head of its own."""
    return lambda vocabulary: model(
        config(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS,
            num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=CONTEXT, **more,
        )
    )  # fmt: skip


def _gpt2(vocabulary: int) -> t.PreTrainedModel:
    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=vocabulary, n_embd=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=CONTEXT)
    )


def _gpt_neox(parallel: bool) -> Callable[[int], t.PreTrainedModel]:
    return lambda vocabulary: t.GPTNeoXForCausalLM(
        t.GPTNeoXConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS,
            num_attention_heads=4, max_position_embeddings=CONTEXT, use_parallel_residual=parallel,
        )
    )  # fmt: skip


def _gemma3_with_images(vocabulary: int) -> t.PreTrainedModel:
    """Its vision tower has as many blocks as its language model."""
    text = _GEMMA3(vocabulary).config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    return t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


_GEMMA3 = _modern(t.Gemma3TextConfig, t.Gemma3ForCausalLM, sliding_window=4, query_pre_attn_scalar=12)
_GEMMA = ("gemma", "post_attention_layernorm", "post_feedforward_layernorm", "model.norm")
_LLAMA = ("self_attn", "mlp", "model.norm")
FAMILIES = {
    "gpt2": Family(_gpt2, "gpt2", "attn", "mlp", "transformer.ln_f"),
    "pythia": Family(_gpt_neox(True), "gpt2", "attention", "mlp", "gpt_neox.final_layer_norm"),
    "neox_sequential": Family(_gpt_neox(False), "gpt2", "attention", "mlp", "gpt_neox.final_layer_norm"),
    "llama": Family(_modern(t.LlamaConfig, t.LlamaForCausalLM), "llama", *_LLAMA),
    "mistral": Family(_modern(t.MistralConfig, t.MistralForCausalLM, sliding_window=4), "llama", *_LLAMA),
    "qwen2": Family(_modern(t.Qwen2Config, t.Qwen2ForCausalLM), "qwen", *_LLAMA),
    "qwen3": Family(_modern(t.Qwen3Config, t.Qwen3ForCausalLM), "qwen", *_LLAMA),
    "gemma2": Family(_modern(t.Gemma2Config, t.Gemma2ForCausalLM, sliding_window=4, query_pre_attn_scalar=12), *_GEMMA),
    "gemma3": Family(_GEMMA3, *_GEMMA),
    "gemma3_with_images": Family(_gemma3_with_images, *_GEMMA[:3], "model.language_model.norm"),
}


def _hybrid(config: type, model: type, **more: object) -> Callable[[int], t.PreTrainedModel]:
    """Of a family with state-space blocks; the sizes that all of them name alike."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS}
    return lambda vocabulary: model(config(vocab_size=vocabulary, **sizes, **more))


_MIXED = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_SSD = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
# With blocks that carry a state: they take a residual stream and give it on as attention's do.
STATE_SPACE: dict[str, Callable[[int], t.PreTrainedModel]] = {
    "mamba": _hybrid(t.MambaConfig, t.MambaForCausalLM, state_size=8),
    "mamba2": _hybrid(
        t.Mamba2Config, t.Mamba2ForCausalLM, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=8
    ),
    "falcon_mamba": _hybrid(t.FalconMambaConfig, t.FalconMambaForCausalLM, state_size=8),
    "jamba": _hybrid(
        t.JambaConfig, t.JambaForCausalLM, **_MIXED, attn_layer_period=2, attn_layer_offset=1, num_experts=BLOCKS,
        expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8,
    ),
    "zamba": _hybrid(
        t.ZambaConfig, t.ZambaForCausalLM, **_MIXED | {"num_key_value_heads": 4}, mamba_d_state=8,
        layers_block_type=["mamba", "mamba", "hybrid", "hybrid"],
    ),
    "zamba2": _hybrid(
        t.Zamba2Config, t.Zamba2ForCausalLM, **_MIXED | {"num_key_value_heads": 4}, mamba_d_state=8, n_mamba_heads=8,
        mamba_ngroups=1, chunk_size=8, num_mem_blocks=1, layers_block_type=["mamba", "hybrid"] * 2,
    ),
    "bamba": _hybrid(t.BambaConfig, t.BambaForCausalLM, **_MIXED, **_SSD, attn_layer_indices=[1]),
    "lfm2": _hybrid(t.Lfm2Config, t.Lfm2ForCausalLM, **_MIXED, layer_types=["conv", "full_attention"] * 2),
}  # fmt: skip
# To what is wrong with them as subjects.
NO_SUBJECTS: dict[str, tuple[Callable[[int], t.PreTrainedModel], str]] = {
    "rwkv": (_hybrid(t.RwkvConfig, t.RwkvForCausalLM), "padding before a prompt changes what is written"),
    "rwkv_rescaled": (
        _hybrid(t.RwkvConfig, t.RwkvForCausalLM, rescale_every=2), "what leaves block 1 is not what enters block 2",
    ),
    "recurrent_gemma": (
        _hybrid(t.RecurrentGemmaConfig, t.RecurrentGemmaForCausalLM, **_MIXED, attention_window_size=8, lru_width=32),
        "padding before a prompt changes what is written",
    ),
    "xlstm": (
        _hybrid(t.xLSTMConfig, t.xLSTMForCausalLM, num_heads=4, chunk_size=16),
        "it does not run as a causal language model does (ValueError: ",
    ),
}  # fmt: skip


def _byte_level(*special: str) -> Tokenizer:
    """A small BPE over bytes, as GPT-2, Llama 3 and Qwen have; the last of the special tokens have no role."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return tokenizer


def _with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _published(kind: type, *special: str, **roles: str) -> t.PreTrainedTokenizerFast:
    """A tokenizer of the family's own class."""
    raw = json.loads(_byte_level(*special).to_str())
    vocabulary = raw["model"]["vocab"] | {token["content"]: token["id"] for token in raw["added_tokens"]}
    return kind(vocab=vocabulary, merges=[tuple(pair) for pair in raw["model"]["merges"]], **roles)


def _fast(tokenizer: Tokenizer, **roles: str) -> t.PreTrainedTokenizerFast:
    return t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


TOKENIZERS: dict[str, Callable[[], t.PreTrainedTokenizerFast]] = {
    # No BOS of its own accord, one token for both ends, no padding token.
    "gpt2": lambda: _published(t.GPT2Tokenizer, END),
    # BOS added, no padding token, special tokens without a role.
    "llama": lambda: _fast(
        _with_bos(_byte_level("<bos>", "<eos>", "<|header|>"), "<bos>"), bos_token="<bos>", eos_token="<eos>"
    ),
    # No BOS at all.
    "qwen": lambda: _published(
        t.Qwen2Tokenizer, END, "<|im_start|>", eos_token=END, pad_token=END, extra_special_tokens=["<|im_start|>"]
    ),
    # BOS added, a padding token.
    "gemma": lambda: _fast(
        _with_bos(_byte_level("<pad>", "<eos>", "<bos>"), "<bos>"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    ),
}


def save_family(name: str, folder: Path) -> None:
    """Save an untrained model and its tokenizer, as their authors publish them."""
    family = FAMILIES[name]
    save(family.build, TOKENIZERS[family.tokenizer](), folder)


def save(build: Callable[[int], t.PreTrainedModel], tokenizer: t.PreTrainedTokenizerFast, folder: Path) -> None:
    """Save an untrained model and a tokenizer."""
    torch.manual_seed(0)
    model = build(len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():  # far from their starting values, biases and norms too
            parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
