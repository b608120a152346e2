"""A GGUF file of a tiny Llama, written as llama.cpp's converter writes one, and the model that went into it."""

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH, BLOCKS, HEADS, KEYS = 32, 3, 4, 2
TEXTS = ["In 2024, the price rose by 12,345 dollars and didn't fall.", "the dog chases the cat", "a  b\n\nc — ü"]
BOS, EOS = "<|im_start|>", "<|im_end|>"
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}<|im_start|>"


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose digits stand alone, as SmolLM's do."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", BOS, EOS], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    found.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token=BOS, eos_token=EOS, pad_token=EOS)


def model(vocabulary: int) -> LlamaForCausalLM:
    """Random, its weights spread so far that argmax never hangs on a last digit."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=BLOCKS, bos_token_id=1,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, max_position_embeddings=128, eos_token_id=2,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    found = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.3)
    return found.eval()


def write(
    path: Path,
    of: LlamaForCausalLM,
    words: PreTrainedTokenizerFast,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    template: str | None = TEMPLATE,
    quantised: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> None:
    """Write the file; matrices are `quantised`, which blocks of 32 must fit."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(of.config.rms_norm_eps)
    writer.add_vocab_size(len(words))
    _add_tokenizer(writer, words, pre, template)
    for name, weight in of.state_dict().items():
        if name != "lm_head.weight":  # tied
            _add(writer, name, weight, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter, words: PreTrainedTokenizerFast, pre: str, template: str | None) -> None:
    inside = json.loads(words.backend_tokenizer.to_str())["model"]
    tokens = sorted(inside["vocab"], key=inside["vocab"].__getitem__)
    kinds = [TokenType.CONTROL if token.startswith("<|") else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in inside["merges"]])
    writer.add_bos_token_id(words.bos_token_id)
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_pad_token_id(words.pad_token_id)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _add(writer: GGUFWriter, name: str, weight: torch.Tensor, quantised: GGMLQuantizationType) -> None:
    values = weight.numpy()
    if "q_proj" in name:
        values = _interleaved(values, HEADS)
    if "k_proj" in name:
        values = _interleaved(values, KEYS)
    if values.ndim == 1 or quantised is GGMLQuantizationType.F32:
        writer.add_tensor(gguf_name(name), values)
    else:
        writer.add_tensor(gguf_name(name), quants.quantize(values, quantised), raw_dtype=quantised)


def gguf_name(name: str) -> str:
    """What llama.cpp calls a weight of transformers' Llama."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, block, *inner, kind = name.split(".")
    return f"blk.{block}.{NAMES['.'.join(inner)]}.{kind}"


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary halves as llama.cpp keeps them: pair by pair."""
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
