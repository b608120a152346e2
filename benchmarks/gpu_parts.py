"""The parts of benchmarks/gpu.py: models of real size with random weights, and what the pipeline makes them do.

No part reads a checkpoint or a corpus: weights and token ids are random numbers made on the device. What is timed is
the pipeline's own reading, columns, feature tokens and sampling, and TRL's DPOTrainer.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import yaml

from saeexplainer.costs import memory
from saeexplainer.costs.memory import Memory, Setup
from saeexplainer.costs.shapes import Shape, matrices, shape_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
    from trl import DPOTrainer

    from saeexplainer.saes.sites import SiteReader

SPECIAL = ["<bos>", "<eos>", "<pad>"]
BFLOAT16 = 2  # bytes
TEMPERATURE, TOP_P = 0.9, 0.9  # the reference's (arXiv 2606.08496)


@dataclass(frozen=True)
class Bench:
    """A model with its SAE, and how much of it each part does at once."""

    model: str  # name in conf/shapes.yaml
    hook_block: int  # the SAE reads the residual stream after it
    d_sae: int  # latents
    documents: int  # of a pass of extraction
    document_tokens: int
    texts: int  # of a pass of scoring
    text_tokens: int
    features: int  # columns that scoring keeps
    sequences: int  # generated at once
    prompt_tokens: int  # of a question to the explainer, one of them a feature's
    answer_tokens: int  # of an explanation, generated or preferred
    pairs: int  # of a step of DPO
    rank: int  # of the adapters, which all linear layers have
    passes: int  # that are timed, after one that is not


BENCHES = {
    "llama31_8b": Bench(
        model="llama-3.1-8b", hook_block=15, d_sae=32768, documents=64, document_tokens=256, texts=512, text_tokens=40,
        features=1024, sequences=256, prompt_tokens=32, answer_tokens=64, pairs=8, rank=32, passes=5,
    ),
    "tiny": Bench(
        model="sandbox", hook_block=1, d_sae=768, documents=8, document_tokens=32, texts=16, text_tokens=12,
        features=32, sequences=8, prompt_tokens=8, answer_tokens=8, pairs=4, rank=4, passes=2,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A part that is set up."""

    run: Callable[[int], list[float]]  # the seconds of so many passes
    tokens: int  # of a pass
    flops: int | None = None  # of a pass; None where they are not counted


@dataclass(frozen=True)
class Part:
    """A part of the benchmark."""

    set_up: "Callable[[Bench, torch.device], Work]"
    planned: Callable[[Bench], Memory]  # what the plan says of it
    lower: str  # the field of Bench that its memory grows with
    tokens: str  # what is counted


def published(bench: Bench) -> dict[str, Any]:
    """The keys of the model's config.json that decide its size."""
    known = yaml.safe_load((REPOSITORY / "conf" / "shapes.yaml").read_text(encoding="utf-8"))[bench.model]
    return {name: value for name, value in known.items() if name not in ("hub", "published")}


def whole(bench: Bench) -> Shape:
    """The whole model."""
    return shape_of(published(bench), bench.model)


def cut(bench: Bench) -> Shape:
    """The model up to the hook."""
    return replace(whole(bench), layers=bench.hook_block + 1)


def told(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr, flush=True)


def make_model(shape: Shape, bench: Bench, device: "torch.device") -> "PreTrainedModel":
    """A model with random weights in bfloat16, made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = published(bench) | {"num_hidden_layers": shape.layers, "eos_token_id": None}  # nothing ends a text
    config = AutoConfig.for_model(known.pop("model_type"), **known)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    told(f"{sum(parameter.numel() for parameter in model.parameters()):,} weights on {model.device}")
    return model.eval()


def make_sae(bench: Bench, device: "torch.device") -> Any:
    """A JumpReLU SAE with random weights in float32."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    return JumpReLUSAE(JumpReLUSAEConfig(d_in=whole(bench).width, d_sae=bench.d_sae, device=str(device)))


def make_tokenizer(bench: Bench) -> "PreTrainedTokenizerFast":
    """One token a word, as many as the model has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = SPECIAL + [f"w{at}" for at in range(whole(bench).vocabulary - len(SPECIAL))]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=SPECIAL[-1]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=pad)


def attach_features(model: "PreTrainedModel", features: int) -> None:
    """Feature tokens with random directions, added after block 1."""
    import torch

    from saeexplainer.explainer.feature_tokens import FeatureTokens

    directions = torch.randn(features, model.config.hidden_size, device=model.device, dtype=model.dtype)
    FeatureTokens(
        model, directions, first_id=model.config.vocab_size, placeholder_id=0, block=1, scale=1.0
    )  # fmt: skip


def random_ids(bench: Bench, rows: int, tokens: int, device: "torch.device") -> "Tensor":
    """Token ids [rows, tokens], none of them special."""
    import torch

    return torch.randint(len(SPECIAL), whole(bench).vocabulary, (rows, tokens), device=device)


def timed(work: Callable[[], object], device: "torch.device", passes: int) -> list[float]:
    """The seconds of each pass, of which the device has finished all."""
    found = []
    for at in range(passes):
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
        told(f"pass {at} of {passes - 1}: {found[-1]:.3f} s" + (" (not counted)" if at == 0 else ""))
    return found


def wait(device: "torch.device") -> None:
    """Until the device has done all it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reader_of(model: "PreTrainedModel", bench: Bench) -> "SiteReader":
    """Reads the residual stream after the hook block."""
    from saeexplainer.saes.sites import Place, Site, SiteReader

    return SiteReader(model, Site(bench.hook_block, Place.resid_post))


def extraction(bench: Bench, device: "torch.device") -> Work:
    """Documents of one length through the blocks up to the hook and the SAE, as extract_activations reads them."""
    import torch

    model, sae = make_model(cut(bench), bench, device), make_sae(bench, device)
    read = reader_of(model, bench)
    ids = random_ids(bench, bench.documents, bench.document_tokens, device)

    @torch.no_grad()
    def work() -> None:
        sae.encode(read(ids, ids.new_ones(ids.shape)))

    tokens = ids.numel()
    return Work(partial(timed, work, device), tokens, tokens * flops_a_token(bench, bench.document_tokens, bench.d_sae))


def scoring(bench: Bench, device: "torch.device") -> Work:
    """Texts through the blocks up to the hook; some features' maximum on each, as score_explanations keeps it."""
    import torch

    from saeexplainer.saes.subset import take_columns

    model = make_model(cut(bench), bench, device)
    read = reader_of(model, bench)
    columns = take_columns(make_sae(bench, device), range(0, bench.d_sae, bench.d_sae // bench.features))
    ids = random_ids(bench, bench.texts, bench.text_tokens, device)

    @torch.no_grad()
    def work() -> None:
        codes = columns.encode(read(ids, ids.new_ones(ids.shape)))
        codes.amax(dim=1).cpu()

    tokens = ids.numel()
    return Work(partial(timed, work, device), tokens, tokens * flops_a_token(bench, bench.text_tokens, bench.features))


def flops_a_token(bench: Bench, tokens: int, latents: int) -> int:
    """Two a weight of the blocks' matrices and of the SAE's encoder, and four times the heads' width in every block for
    each token of the text: all of the attention matrix, though its upper half is not needed."""
    shape = cut(bench)
    weights = shape.layers * sum(inputs * outputs for inputs, outputs in matrices(shape))
    attention = 4 * tokens * shape.heads * shape.head_width * shape.layers
    return 2 * weights + attention + 2 * shape.width * latents


def generation(bench: Bench, device: "torch.device") -> Work:
    """Explanations, each as long as it may be, because nothing ends one."""
    import torch

    from saeexplainer.models.generation import generate

    model, tokenizer = make_model(whole(bench), bench, device), make_tokenizer(bench)
    attach_features(model, bench.sequences)
    tokenizer.eos_token = None
    prompts = random_ids(bench, bench.sequences, bench.prompt_tokens, torch.device("cpu"))
    prompts[:, -2] = whole(bench).vocabulary + torch.arange(bench.sequences)

    def work() -> None:
        with torch.device(device):
            generate(
                model, tokenizer, prompts.tolist(), temperature=TEMPERATURE, top_p=TOP_P,
                max_new_tokens=bench.answer_tokens, batch_size=bench.sequences,
            )  # fmt: skip

    return Work(partial(timed, work, device), bench.sequences * bench.answer_tokens)


def preference(bench: Bench, device: "torch.device") -> Work:
    """Steps of TRL's DPOTrainer on pairs of one length."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    features = bench.pairs
    model, tokenizer = make_model(whole(bench), bench, device), make_tokenizer(bench)
    attach_features(model, features)
    one, other = len(SPECIAL), len(SPECIAL) + 1  # token ids
    prompt, answer = [one] * (bench.prompt_tokens - 2), [other] * (bench.answer_tokens - 2)
    rows = [
        {
            "prompt_ids": [tokenizer.bos_token_id, *prompt, whole(bench).vocabulary + at],
            "chosen_ids": [*answer, one, tokenizer.eos_token_id],
            "rejected_ids": [*answer, other, tokenizer.eos_token_id],
        }
        for at in range(features)
    ]

    def run(passes: int) -> list[float]:
        with tempfile.TemporaryDirectory() as scratch:
            return train(model, tokenizer, Dataset.from_list(rows * passes), bench, device, Path(scratch))

    return Work(run, 2 * bench.pairs * (bench.prompt_tokens + bench.answer_tokens))


def train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    rows: Any,
    bench: Bench,
    device: "torch.device",
    scratch: Path,
) -> list[float]:
    """The seconds of each step over the rows."""
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import DPOConfig

    from saeexplainer.training.dpo import prepared_trainer

    arguments = DPOConfig(
        output_dir=str(scratch), num_train_epochs=1, per_device_train_batch_size=bench.pairs, learning_rate=5e-6,
        beta=0.1, max_length=None, bf16=False, gradient_checkpointing=True, save_strategy="no", report_to="none",
        logging_strategy="no", use_cpu=device.type == "cpu", dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=bench.rank, lora_alpha=2 * bench.rank, lora_dropout=0.05, target_modules="all-linear")
    trainer = prepared_trainer()(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output
    return steps(trainer, device)


def steps(trainer: "DPOTrainer", device: "torch.device") -> list[float]:
    """Train; the seconds of each step."""
    from transformers import TrainerCallback

    found: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            """Start."""
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_) -> None:
            """Stop."""
            wait(device)
            found.append(time.perf_counter() - self.start)
            told(f"step {state.global_step} of {state.max_steps}: {found[-1]:.3f} s")

    trainer.add_callback(Clock())
    trainer.train()
    return found


def planned_reading(bench: Bench, tokens: int, latents: int) -> Memory:
    """The plan of a pass that reads so many tokens through so many latents."""
    return memory.reading(cut(bench), Setup(BFLOAT16, 0, False), tokens, [latents], tables=memory.JUMPRELU)


def planned_generation(bench: Bench) -> Memory:
    """The plan of generation."""
    length = bench.prompt_tokens + bench.answer_tokens
    setup = Setup(BFLOAT16, 0, False)
    return memory.generation(whole(bench), setup, bench.sequences, bench.prompt_tokens, length, top_p=TOP_P)


def planned_preference(bench: Bench) -> Memory:
    """The plan of a step of DPO; the reference needs no copy of the adapters, and none is kept."""
    length = bench.prompt_tokens + bench.answer_tokens
    return memory.training(whole(bench), Setup(BFLOAT16, bench.rank, True), 2 * bench.pairs * length, copies=1)


PARTS = {
    "extraction": Part(
        extraction, lambda b: planned_reading(b, b.documents * b.document_tokens, b.d_sae), "documents", "read"
    ),
    "scoring": Part(scoring, lambda b: planned_reading(b, b.texts * b.text_tokens, b.features), "texts", "read"),
    "generation": Part(generation, planned_generation, "sequences", "generated"),
    "preference": Part(preference, planned_preference, "pairs", "of both sides"),
}
