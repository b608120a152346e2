"""The parts of benchmarks/peers.py: the same work done by this project and by what one would use instead.

A way is a function of no arguments that does the work once, models and inputs at hand. Every part has the way `ours`,
which is the pipeline's own function, and others beside it. Weights and words are random, but for smollm2's.
"""

import asyncio
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

import torch
from gpu_parts import Bench, attach_features, make_tokenizer, published, whole

from saeexplainer.config.parts import Pretrained
from saeexplainer.domains.domain import Document
from saeexplainer.errors import UserError
from saeexplainer.saes.sites import Place, Site

Way = Callable[[], object]
PEERS = REPOSITORY / ".cache" / "peers"  # packages that only this benchmark needs, beside all others
OURS = "ours"
TOP_K = 32  # active latents of the SAE
WEIGHTS = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
UNUSED = ("vllm", "vllm.distributed", "vllm.distributed.parallel_state", "vllm.inputs")  # by delphi on a GPU alone


@dataclass(frozen=True)
class Shape:
    """A model, its SAE, and how much of it each part does."""

    bench: Bench
    real: bool = False  # smollm2's weights, not random ones

    @property
    def blocks(self) -> int:
        """Up to the hook."""
        return self.bench.hook_block + 1

    @cached_property
    def tokenizer(self) -> Any:
        """One token a word where weights are random, so that texts have the length that is asked for."""
        if not self.real:
            return make_tokenizer(self.bench)
        from saeexplainer.models.tokenizers import load_tokenizer

        return load_tokenizer(WEIGHTS)

    @cached_property
    def words(self) -> list[str]:
        """Words of one token each, the space before them included."""
        if not self.real:
            return [f" w{at}" for at in range(whole(self.bench).vocabulary - 3)]
        known = (self.tokenizer.decode([at]) for at in range(len(self.tokenizer)))
        return [word for word in known if re.fullmatch(" [a-z]{3,}", word)]

    def model(self, blocks: int | None = None) -> Any:
        """In float32 on the CPU; `blocks` of it, or all."""
        from transformers import AutoConfig, AutoModelForCausalLM

        from saeexplainer.models.loading import load_pretrained

        if self.real:
            if not (REPOSITORY / WEIGHTS).is_file():
                raise UserError(f"{WEIGHTS}: not there; fetch it: python -m tasks.workspace.weights smollm2")
            return load_pretrained(Pretrained(str(REPOSITORY / WEIGHTS), None, "float32", None, None), blocks).eval()
        known = published(self.bench) | {"eos_token_id": None, "pad_token_id": 2}
        config = AutoConfig.for_model(known.pop("model_type"), **known)
        config.num_hidden_layers = blocks or config.num_hidden_layers
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    def sae(self) -> Any:
        """A TopK SAE with random weights."""
        from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

        torch.manual_seed(0)
        sae = TopKSAE(TopKSAEConfig(d_in=whole(self.bench).width, d_sae=self.bench.d_sae, k=TOP_K))
        torch.nn.init.normal_(sae.W_enc)
        return sae.eval()

    def texts(self, count: int, tokens: int, seed: int = 0) -> list[str]:
        """Random words, so many tokens a text."""
        draw = random.Random(seed)
        return ["".join(draw.choices(self.words, k=tokens)).strip() for _ in range(count)]

    def ids(self, texts: Sequence[str], batch_size: int) -> list[torch.Tensor]:
        """Token ids of batches of texts, all of one length."""
        encoded = [self.tokenizer(text)["input_ids"] for text in texts]
        length = min(map(len, encoded))
        rows = torch.tensor([one[:length] for one in encoded])
        return list(rows.split(batch_size))


BATCH = 32
SHAPES = {
    "sandbox": Shape(Bench(
        model="sandbox", hook_block=1, d_sae=768, documents=512, document_tokens=40, texts=512, text_tokens=12,
        features=64, sequences=256, prompt_tokens=8, answer_tokens=8, pairs=32, rank=0, passes=5,
    )),
    "gpt2": Shape(Bench(
        model="gpt2", hook_block=5, d_sae=24576, documents=64, document_tokens=64, texts=64, text_tokens=24,
        features=64, sequences=32, prompt_tokens=24, answer_tokens=16, pairs=4, rank=32, passes=5,
    )),
    "smollm2": Shape(Bench(
        model="smollm2", hook_block=9, d_sae=4096, documents=64, document_tokens=64, texts=64, text_tokens=24,
        features=64, sequences=32, prompt_tokens=24, answer_tokens=16, pairs=4, rank=32, passes=5,
    ), real=True),
    "tiny": Shape(Bench(
        model="sandbox", hook_block=1, d_sae=64, documents=32, document_tokens=16, texts=8, text_tokens=8,
        features=4, sequences=8, prompt_tokens=8, answer_tokens=4, pairs=4, rank=4, passes=2,
    )),
}  # fmt: skip


def extracting(shape: Shape, sae: Any, cut: Any) -> Way:
    """Documents to what is kept of every latent: maximum, density, top documents, company; `cut` ends at the hook."""
    from saeexplainer.features.token_stream import token_batches
    from saeexplainer.saes.reading import Reader
    from tasks.extract_activations import Survey

    bench, site = shape.bench, Site(shape.bench.hook_block, Place.resid_post)
    documents = [Document(text, None) for text in shape.texts(bench.documents, bench.document_tokens)]
    reader = Reader(cut, shape.tokenizer, site, bench.document_tokens, {"main": sae})
    kept = SimpleNamespace(top_contexts=20, spread_contexts=0)

    @torch.no_grad()
    def way() -> None:
        survey = Survey(SimpleNamespace(saes=reader.saes, config=kept, reader=reader))
        for batch in token_batches(documents, reader, BATCH):
            survey.update(batch)

    return way


def extraction(shape: Shape) -> dict[str, Way]:
    """The pipeline's first pass over the corpus beside others who cache activations."""
    sae, cut = shape.sae(), shape.model(shape.blocks)
    batches = shape.ids(shape.texts(shape.bench.documents, shape.bench.document_tokens), BATCH)

    @torch.no_grad()
    def forward() -> None:
        for ids in batches:
            cut.base_model(input_ids=ids, use_cache=False)

    @torch.no_grad()
    def encoded() -> None:
        for ids in batches:
            sae.encode(cut.base_model(input_ids=ids, use_cache=False).last_hidden_state)

    ways: dict[str, Way] = {
        OURS: extracting(shape, sae, cut),
        "forward pass to the hook": forward,
        "the same and sae.encode": encoded,
    }
    if delphi():
        ways["delphi's LatentCache"] = _latent_cache(shape, sae, batches)
    if not shape.real:
        ways["TransformerLens and sae.encode"] = _hooked(shape, sae, batches)
    return ways


def _latent_cache(shape: Shape, sae: Any, batches: Sequence[torch.Tensor]) -> Way:
    """As delphi's own command uses it: the base model, dense codes of one module."""
    from delphi.latents.cache import LatentCache

    model = shape.model().base_model
    names = [name for name, _ in model.named_modules() if re.fullmatch(rf"(h|layers)\.{shape.bench.hook_block}", name)]
    tokens = torch.cat(list(batches))

    def way() -> None:
        LatentCache(model, {names[0]: sae.encode}, BATCH).run(tokens.numel(), tokens)

    return way


def _hooked(shape: Shape, sae: Any, batches: Sequence[torch.Tensor]) -> Way:
    """`run_with_cache` of one hook, stopped behind it, on a model of the same size."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    size = whole(shape.bench)
    gpt2 = shape.bench.model == "gpt2"
    hooked = HookedTransformer(HookedTransformerConfig(
        n_layers=size.layers, d_model=size.width, d_head=size.head_width, n_heads=size.heads, d_mlp=size.intermediate,
        d_vocab=size.vocabulary, n_ctx=1024, act_fn="gelu_new" if gpt2 else "silu", gated_mlp=not gpt2,
        normalization_type="LN" if gpt2 else "RMS", positional_embedding_type="standard" if gpt2 else "rotary",
        device="cpu",
    )).eval()  # fmt: skip
    hook = f"blocks.{shape.bench.hook_block}.hook_resid_post"

    @torch.no_grad()
    def way() -> None:
        for ids in batches:
            _, cache = hooked.run_with_cache(ids, names_filter=hook, stop_at_layer=shape.blocks)
            sae.encode(cache[hook])

    return way


def scoring(shape: Shape) -> dict[str, Way]:
    """Texts to the strongest activation of one latent on each, the texts of a few latents together."""
    from saeexplainer.saes.reading import Reader
    from saeexplainer.saes.text_activations import read_texts

    bench, sae = shape.bench, shape.sae()
    texts = shape.texts(bench.texts, bench.text_tokens)
    latents = [at * bench.d_sae // bench.features for at in range(bench.features)]
    site = Site(bench.hook_block, Place.resid_post)
    reader = Reader(shape.model(shape.blocks), shape.tokenizer, site, bench.text_tokens, {"main": sae})
    model = shape.model()

    def ours() -> None:
        read_texts(texts, reader, {"main": latents})

    @torch.no_grad()
    def reference() -> None:
        """The reference's: the whole model, and the whole SAE for each text (arXiv 2606.08496's code)."""
        for at, ids in enumerate(shape.ids(texts, 1)):
            found = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[shape.blocks]
            sae.encode(found)[..., latents[at % len(latents)]].max()

    return {OURS: ours, "whole model, whole SAE, text by text": reference}


def detection(shape: Shape) -> dict[str, Way]:
    """Which of ten texts an explanation is about, asked of the same chat model."""
    if not shape.real or not delphi():
        return {}
    from saeexplainer.judges.chat import ChatJudge
    from saeexplainer.judges.judge import Question

    texts = shape.texts(10, shape.bench.text_tokens)
    judge = ChatJudge(Pretrained(str(REPOSITORY / WEIGHTS), None, "float32", None, None), BATCH)

    def ours() -> None:
        judge.relevance([Question("words about rivers", text) for text in texts])

    return {OURS: ours, "delphi's DetectionScorer": _detection_scorer(shape, judge.model, texts)}


def _detection_scorer(shape: Shape, model: Any, texts: Sequence[str]) -> Way:
    """With its own prompt, five texts in each as its settings have it, and a client that generates here."""
    from delphi.clients.client import Client, Response
    from delphi.latents.latents import ActivatingExample, Latent, LatentRecord
    from delphi.scorers.classifier.detection import DetectionScorer

    class Local(Client):
        @torch.no_grad()
        async def generate(self, prompt: list[dict[str, str]], **_: object) -> Response:
            """Greedily, as long as a list of five answers is."""
            ids = shape.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            found = model.generate(**ids, do_sample=False, max_new_tokens=12, pad_token_id=shape.tokenizer.pad_token_id)
            return Response(shape.tokenizer.decode(found[0, ids["input_ids"].shape[1] :]))

    def example(text: str) -> Any:
        ids = torch.tensor(shape.tokenizer(text)["input_ids"])
        return ActivatingExample(ids, torch.ones(len(ids)), str_tokens=[text])

    record = LatentRecord(Latent("layers.9", 0), test=[example(text) for text in texts])
    record.explanation = "words about rivers"
    scorer = DetectionScorer(Local("local"), n_examples_shown=5)
    return lambda: asyncio.run(scorer(record))


def generation(shape: Shape) -> dict[str, Way]:
    """Explanations by feature tokens beside plain ones by transformers, sampled alike."""
    from transformers import GenerationConfig

    from saeexplainer.models.generation import generate

    bench = shape.bench
    rows = torch.cat(shape.ids(shape.texts(bench.sequences, bench.prompt_tokens), bench.sequences))
    plain, own = shape.model(), shape.model()
    shape.tokenizer.eos_token = None  # nothing ends a text
    for model in (plain, own):
        model.generation_config = GenerationConfig(eos_token_id=None)
    attach_features(own, bench.sequences)
    asked = rows.clone()
    asked[:, -2] = own.config.vocab_size + torch.arange(bench.sequences)
    how = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": bench.answer_tokens}
    config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0, **how)

    def ours() -> None:
        generate(own, shape.tokenizer, asked.tolist(), batch_size=bench.sequences, **how)

    @torch.no_grad()
    def stock() -> None:
        plain.generate(input_ids=rows, attention_mask=torch.ones_like(rows), generation_config=config)

    return {OURS: ours, "transformers without features": stock}


def preference(shape: Shape) -> dict[str, Way]:
    """Two steps of TRL's DPO with feature tokens in the prompts, and without any."""
    own, stock = shape.model(), shape.model()
    attach_features(own, shape.bench.pairs)
    size = own.config.vocab_size
    features = [size + at for at in range(shape.bench.pairs)]
    return {OURS: _dpo(shape, own, features), "TRL without features": _dpo(shape, stock, [5] * shape.bench.pairs)}


def _dpo(shape: Shape, model: Any, features: Sequence[int]) -> Way:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback
    from trl import DPOConfig

    from saeexplainer.training.dpo import prepared_trainer

    disable_progress_bars()
    bench = shape.bench
    rows = [
        {"prompt_ids": [4] * (bench.prompt_tokens - 1) + [feature], "chosen_ids": [6] * bench.answer_tokens,
         "rejected_ids": [7] * bench.answer_tokens} for feature in features
    ] * 2  # fmt: skip
    lora = LoraConfig(r=bench.rank, lora_alpha=2 * bench.rank, target_modules="all-linear") if bench.rank else None
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=bench.pairs, learning_rate=5e-6,
        beta=0.1, max_length=None, bf16=False, gradient_checkpointing=False, save_strategy="no", report_to="none",
        logging_strategy="no", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = prepared_trainer()(
        model=get_peft_model(model, lora) if lora else model,
        ref_model=None if lora else deepcopy(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=shape.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer.train


def delphi() -> bool:
    """Make delphi importable, if its packages are there. On a CPU it never runs vllm, which it imports all the same:
    an empty module stands for it."""
    if not PEERS.is_dir():
        return False
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))  # last: what is installed here comes first
    for name in UNUSED:
        sys.modules.setdefault(name, MagicMock())
    return True


PARTS: dict[str, Callable[[Shape], dict[str, Way]]] = {
    "extraction": extraction,
    "scoring": scoring,
    "detection": detection,
    "generation": generation,
    "preference": preference,
}
