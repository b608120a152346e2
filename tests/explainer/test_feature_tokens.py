"""Feature tokens on unmodified models: what is added, where, what carries a gradient; generation works as ever."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from tiny import BLOCKS, WIDTH, settings, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from saeexplainer.config.explainers import TokensPrompt
from saeexplainer.config.parts import Architecture, Direction
from saeexplainer.errors import UserError
from saeexplainer.explainer.explainer import Explainer, Prompts, attach
from saeexplainer.explainer.feature_tokens import FeatureTokens, new_projection
from saeexplainer.models.blocks import transformer_blocks
from saeexplainer.models.generation import generate

ROWS, SCALE, BLOCK = 6, 1.5, 1
INJECTION = replace(settings().explainer, injection_block=BLOCK)
TOKENIZER = tiny_tokenizer()
BASE = len(TOKENIZER)
PLACEHOLDER = TOKENIZER.convert_tokens_to_ids("<feature>")
WORDS = TOKENIZER.convert_tokens_to_ids(["the", "dog", "cat", "not", "hammer"])
DIRECTIONS = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5)) * torch.logspace(-2, 2, ROWS)[:, None]


@pytest.fixture(scope="module", params=list(Architecture))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


@pytest.fixture
def plain(architecture: Architecture) -> PreTrainedModel:
    return tiny_model(architecture)


@pytest.fixture(scope="module")
def hooked(architecture: Architecture) -> PreTrainedModel:
    model = tiny_model(architecture)
    put(model)
    return model


def put(model: PreTrainedModel, **changes: object) -> FeatureTokens:
    given_ = {"first_id": BASE, "placeholder_id": PLACEHOLDER, "block": BLOCK, "scale": SCALE, **changes}
    return FeatureTokens(model, given_.pop("directions", DIRECTIONS), **given_)


def after_block(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None, learning: bool = False
) -> torch.Tensor:
    """What the block after the injection reads: the residual stream with whatever was added."""
    seen = []
    following = transformer_blocks(model)[BLOCK + 1]
    handle = following.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    with torch.set_grad_enabled(learning):
        model(input_ids=ids, attention_mask=mask)
    handle.remove()
    return seen[0]


def by_hand(plain: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """h + c * ||h|| * v / ||v|| at feature ids, h elsewhere, from an unhooked model that read the placeholder."""
    replaced = ids.clone()
    replaced[ids >= BASE] = PLACEHOLDER
    with torch.no_grad():
        states = plain(input_ids=replaced, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = states[BLOCK + 1].clone()
    for row, position in (ids >= BASE).nonzero().tolist():
        h, v = expected[row, position], DIRECTIONS[ids[row, position] - BASE]
        expected[row, position] = h + SCALE * h.norm() * v / v.norm()
    return expected


def test_adds_the_norm_matched_direction_there_and_nothing_elsewhere(plain, hooked):
    ids = torch.tensor([[1, *WORDS, BASE + 2, WORDS[0]], [1, BASE, BASE + 5, *WORDS[:3], BASE, WORDS[1]]])
    with torch.no_grad():
        untouched = plain(input_ids=ids.where(ids < BASE, PLACEHOLDER), output_hidden_states=True).hidden_states
    found = after_block(hooked, ids)
    torch.testing.assert_close(found, by_hand(plain, ids), rtol=1e-5, atol=1e-5)
    difference = (found - untouched[BLOCK + 1]).norm(dim=-1)
    assert torch.equal(difference > 1e-3, ids >= BASE)


def test_text_without_a_feature_is_read_as_before(plain, hooked):
    ids = torch.tensor([[1, *WORDS]])
    after_block(hooked, torch.tensor([[1, BASE + 1, *WORDS[:4]]]))  # must leave no trace
    assert torch.equal(hooked(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_nothing_is_added_in_a_cached_decode_step(plain, hooked):
    prompt, step = torch.tensor([[1, WORDS[0], BASE + 3, WORDS[1]]]), torch.tensor([[WORDS[2]]])
    with torch.no_grad():
        cache = hooked(input_ids=prompt, use_cache=True).past_key_values
        again = copy.deepcopy(cache)
        unhooked = plain(input_ids=step, past_key_values=again).logits
        assert torch.equal(hooked(input_ids=step, past_key_values=cache).logits, unhooked)


def one_by_one(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> str:
    """Greedy decoding by whole forward passes: no batch, no padding, no cache."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :].argmax()))
        if ids[-1] == TOKENIZER.eos_token_id:
            break
    return TOKENIZER.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


PROMPTS = st.lists(
    st.lists(st.sampled_from([*WORDS, *range(BASE, BASE + ROWS)]), min_size=1, max_size=6).map(lambda ids: [1, *ids]),
    min_size=1,
    max_size=4,
)


@given(prompts=PROMPTS, batch_size=st.integers(1, 3))
@hypothesis_settings(max_examples=8, deadline=None, derandomize=True)
def test_batched_padded_cached_generation_is_generation_one_by_one(hooked, prompts, batch_size):
    texts = generate(hooked, TOKENIZER, prompts, temperature=0.0, top_p=1.0, max_new_tokens=4, batch_size=batch_size)
    assert texts == [one_by_one(hooked, prompt, 4) for prompt in prompts]


def test_the_feature_decides_what_is_generated(hooked):
    prompts = [[1, WORDS[0], BASE + row, WORDS[1]] for row in range(ROWS)]
    texts = generate(hooked, TOKENIZER, prompts, temperature=0.0, top_p=1.0, max_new_tokens=6, batch_size=6)
    assert len(set(texts)) > 1


def gradients(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    labels = ids.where(ids < BASE, -100)
    model(input_ids=ids, labels=labels).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_the_gradient_is_that_of_adding_a_constant(plain, architecture):
    ids = torch.tensor([[1, *WORDS[:2], BASE + 4, *WORDS]])
    replaced = ids.where(ids < BASE, PLACEHOLDER)
    states = plain(input_ids=replaced, output_hidden_states=True).hidden_states
    constant = (by_hand(plain, ids) - states[BLOCK + 1]).detach()

    def add(_module, _inputs, output):
        return (output[0] + constant, *output[1:]) if isinstance(output, tuple) else output + constant

    reference = tiny_model(architecture)
    transformer_blocks(reference)[BLOCK].register_forward_hook(add)
    reference.zero_grad()
    reference(input_ids=replaced, labels=ids.where(ids < BASE, -100)).loss.backward()
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters()}
    directions = DIRECTIONS.clone().requires_grad_()
    put(plain, directions=directions)
    found = gradients(plain, ids)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert directions.grad is None
    embedding = plain.get_input_embeddings().weight
    assert embedding.grad[PLACEHOLDER].abs().sum() > 0 and found[next(iter(found))].abs().sum() > 0


def test_noise_is_added_in_training_alone_and_keeps_the_norm(plain, architecture):
    noisy = tiny_model(architecture)
    put(noisy, noise=0.5)
    ids = torch.tensor([[1, WORDS[0], BASE + 1, WORDS[1]]])
    exact = by_hand(plain, ids)
    torch.testing.assert_close(after_block(noisy, ids), exact, rtol=1e-5, atol=1e-5)
    noisy.train()
    torch.testing.assert_close(after_block(noisy, ids), exact, rtol=1e-5, atol=1e-5)  # a reference: no gradient
    torch.manual_seed(0)
    first, second = after_block(noisy, ids, learning=True), after_block(noisy, ids, learning=True)
    states = plain(input_ids=ids.where(ids < BASE, PLACEHOLDER), output_hidden_states=True).hidden_states
    h = states[BLOCK + 1].detach()
    elsewhere = ids[0] < BASE
    for drawn in (first, second):
        torch.testing.assert_close(drawn[0, elsewhere], exact[0, elsewhere], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close((drawn - h)[0, 2].norm(), SCALE * h[0, 2].norm())
        assert not torch.allclose(drawn[0, 2], exact[0, 2], rtol=1e-2)
    assert not torch.allclose(first[0, 2], second[0, 2], rtol=1e-3)


def test_gradient_checkpointing_changes_no_gradient(plain, architecture):
    """The noise of the second forward pass is that of the first, and the projection is trained by both."""
    ids = torch.tensor([[1, BASE + 2, WORDS[0], BASE, WORDS[1]]])
    found = []
    for checkpointing in (False, True):
        model = tiny_model(architecture).train()
        projection = new_projection(WIDTH + 4, WIDTH, seed=1)
        wider = torch.cat([DIRECTIONS, DIRECTIONS[:, :4]], dim=1)
        put(model, directions=wider, noise=0.3, projection=projection)
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model(input_ids=ids, labels=ids.where(ids < BASE, -100)).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert found[0].keys() == found[1].keys() and found[0]["feature_projection.weight"].abs().sum() > 0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_remove_takes_everything_off(plain, architecture):
    model = tiny_model(architecture)
    put(model).remove()
    ids = torch.tensor([[1, *WORDS]])
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[1, BASE]]))


def test_another_width_or_a_missing_block_is_refused(plain):
    with pytest.raises(ValueError, match=f"width {WIDTH + 1}, the explainer {WIDTH}"):
        put(plain, directions=torch.ones(2, WIDTH + 1))
    for block in (BLOCKS, -1):
        with pytest.raises(
            UserError, match=f"explainer.injection_block: {block}, but the model has blocks 0 to {BLOCKS - 1}"
        ):
            put(plain, block=block)
    with torch.no_grad():  # a refused attempt leaves no hook behind
        assert plain(input_ids=torch.tensor([[1, PLACEHOLDER]])).logits.isfinite().all()
        assert not plain.get_input_embeddings()._forward_pre_hooks


def test_a_features_token_stands_between_the_marks_and_carries_its_row(architecture, plain):
    model = tiny_model(architecture)
    attach(model, TOKENIZER, DIRECTIONS, INJECTION)
    ids = torch.tensor([Prompts(TOKENIZER, BASE, INJECTION).ids(1)])
    marks = TOKENIZER.convert_tokens_to_ids(["<explain>", "<about>"])
    assert ids.tolist() == [[TOKENIZER.bos_token_id, marks[0], BASE + 1, marks[1]]]
    states = plain(input_ids=ids.where(ids < BASE, PLACEHOLDER), output_hidden_states=True).hidden_states
    h = states[BLOCK + 1].detach()[0]
    expected = h.clone()
    v = DIRECTIONS[1]
    expected[2] = h[2] + INJECTION.injection_scale * h[2].norm() * v / v.norm()
    torch.testing.assert_close(after_block(model, ids)[0], expected, rtol=1e-5, atol=1e-5)


def test_an_example_is_the_prompt_then_the_answer_and_its_end():
    """As token ids written out by hand; what the sandbox trains on must never change by itself."""
    prompts = Prompts(TOKENIZER, BASE, INJECTION)
    bos, explain, about, eos = TOKENIZER.convert_tokens_to_ids(["<bos>", "<explain>", "<about>", "<eos>"])
    said = TOKENIZER.convert_tokens_to_ids(["the", "word", "dog"])
    prompt = [bos, explain, BASE + 2, about]
    labels = [-100] * len(prompt) + said + [eos]
    assert prompts.example(2, "the word dog") == {"input_ids": prompt + said + [eos], "labels": labels}


def test_contexts_stand_before_the_answer_and_may_be_left_out():
    injection = replace(INJECTION, prompt=TokensPrompt("tokens", 2, 5, 0, 0))
    prompts = Prompts(TOKENIZER, BASE, injection, ["- the <<dog>> chase\n- a <<cat>>", ""])
    bos, explain, about, text = TOKENIZER.convert_tokens_to_ids(["<bos>", "<explain>", "<about>", "<text>"])
    the, dog, a, cat = TOKENIZER.convert_tokens_to_ids(["the", "dog", "a", "cat"])
    bare = [bos, explain, BASE, about]
    assert prompts.ids(0) == [bos, explain, BASE, text, the, dog, text, a, cat, about]
    assert prompts.ids(0, bare=True) == bare
    assert prompts.ids(1) == [bos, explain, BASE + 1, about] and prompts.ids(7) == [bos, explain, BASE + 7, about]
    assert prompts.example(0, "the dog", bare=True)["input_ids"][: len(bare)] == bare


def test_log_probabilities_are_those_of_one_plain_forward_pass_each(architecture, tmp_path):
    """And the hooks are on: with another direction the same text has another probability."""
    tiny_model(architecture).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    params = settings()
    injection = replace(params.explainer, direction=Direction.decoder, injection_block=1)
    tensors = {"decoder": torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))}
    explainer = Explainer(tmp_path, tensors, injection, replace(params.generate_explanations, batch_size=2))
    explanations = ["the word dog", "", "any animal", "the word dog"]
    found = explainer.log_probabilities([0, 1, 2, 2], explanations)
    assert math.isnan(found[1]) and found[0] != pytest.approx(found[3], abs=1e-3)
    for at, feature in ((0, 0), (2, 2), (3, 2)):
        prompt = explainer.prompts.ids(feature)
        answer = TOKENIZER(explanations[at], add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]
        with torch.no_grad():
            logits = explainer.model(input_ids=torch.tensor([prompt + answer])).logits[0]
        each = [logits[len(prompt) - 1 + k].log_softmax(-1)[token].item() for k, token in enumerate(answer)]
        assert found[at] == pytest.approx(sum(each) / len(each), rel=1e-4)
