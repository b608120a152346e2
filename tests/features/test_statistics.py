"""One streaming pass: statistics against brute force, spans, splits, contexts, and no special token anywhere."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from tiny import WIDTH, read_residual, settings, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from saeexplainer.config.parts import Architecture
from saeexplainer.domains.domain import SPECIAL_TOKENS, Annotation, Document
from saeexplainer.domains.sandbox.world import World
from saeexplainer.errors import UserError
from saeexplainer.features.contexts import at_equal_steps
from saeexplainer.features.splits import feature_rows, live_features, split_features
from saeexplainer.features.statistics import DocumentSample, FeatureStatistics
from saeexplainer.features.token_stream import concepts_at, token_batches
from saeexplainer.features.top_contexts import TopContexts
from saeexplainer.models.batches import encode_batch
from saeexplainer.records import ContextRow
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Place, Site
from saeexplainer.saes.text_activations import read_texts, read_tokens

CONFIG = replace(
    settings().extract_activations,
    top_contexts=3, context_tokens=2, valid_features=3, test_features=4, sft_share=0.5, twin_cosine=0.8,
    min_density=0.01, max_density=0.5,
)  # fmt: skip
D_SAE = 5


def corpus_codes(lengths: Sequence[int], seed: int) -> list[torch.Tensor]:
    """Sparse non-negative codes of one document after the other; the last latent never fires."""
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randn(length, D_SAE, generator=generator).clamp_min(0) for length in lengths]
    return [code * (torch.arange(D_SAE) < D_SAE - 1) for code in codes]


def streamed(documents: list[torch.Tensor], batch_size: int) -> FeatureStatistics:
    statistics = FeatureStatistics(D_SAE, top=3)
    for start in range(0, len(documents), batch_size):
        batch = documents[start : start + batch_size]
        numbers = torch.cat([torch.full((len(codes),), at) for at, codes in enumerate(batch)])
        statistics.update(torch.cat(batch), numbers, start)
    return statistics


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@given(lengths=LENGTHS, batch_size=st.integers(1, 5), seed=st.integers(0, 9))
@hypothesis_settings(max_examples=40, deadline=None, derandomize=True)
def test_statistics_are_those_of_the_whole_corpus_in_any_batching(lengths, batch_size, seed):
    documents = corpus_codes(lengths, seed)
    statistics = streamed(documents, batch_size)
    tokens = [token for codes in documents for token in codes.tolist()]
    assert statistics.tokens == len(tokens)
    for latent in range(D_SAE):
        values = [token[latent] for token in tokens]
        assert statistics.maximum[latent] == pytest.approx(max(values))
        assert statistics.fired[latent] == sum(value > 0 for value in values)
        peaks = {number: max(codes[:, latent].tolist()) for number, codes in enumerate(documents)}
        strongest = sorted((number for number in peaks if peaks[number] > 0), key=lambda number: -peaks[number])[:3]
        assert statistics.top_document_numbers(latent) == strongest


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_of_documents_in_which_a_latent_fires_alike_the_earlier_ones_are_kept(batch_size):
    documents = [torch.full((2, D_SAE), value) for value in (1.0, 1.0, 0.5, 1.0, 1.0, 2.0)]
    assert streamed(documents, batch_size).top_document_numbers(0) == [5, 0, 1]


def sampled(documents: list[torch.Tensor], batch_size: int, count: int) -> DocumentSample:
    sample = DocumentSample(D_SAE, count)
    for start in range(0, len(documents), batch_size):
        batch = documents[start : start + batch_size]
        numbers = torch.cat([torch.full((len(codes),), at) for at, codes in enumerate(batch)])
        sample.update(torch.cat(batch), numbers, start)
    return sample


@given(lengths=LENGTHS, batch_size=st.integers(1, 5), seed=st.integers(0, 9))
@hypothesis_settings(max_examples=40, deadline=None, derandomize=True)
def test_a_sample_is_of_the_documents_in_which_a_latent_fires_in_any_batching(lengths, batch_size, seed):
    documents = corpus_codes(lengths, seed)
    some, whole = sampled(documents, batch_size, 3), sampled(documents, len(documents), 3)
    for latent in range(D_SAE):
        fires = {number for number, codes in enumerate(documents) if codes[:, latent].max() > 0}
        found = some.document_numbers(latent)
        assert set(found) <= fires and len(set(found)) == len(found) == min(3, len(fires))
        assert set(found) == set(whole.document_numbers(latent))


def test_a_sample_does_not_prefer_the_strong():
    documents = corpus_codes([4] * 400, 1)
    sample = sampled(documents, 50, 100)
    for latent in range(D_SAE - 1):
        peaks = torch.stack([codes[:, latent].max() for codes in documents])
        median = peaks[peaks > 0].median()
        stronger = sum(float(peaks[number]) > median for number in sample.document_numbers(latent))
        assert 30 < stronger < 70  # of 100, four standard deviations


def test_a_document_without_a_valid_token_shifts_no_number():
    codes = corpus_codes([2, 3], 0)
    statistics = FeatureStatistics(D_SAE, top=3)
    # Documents 0 and 2 have tokens, 1 has none.
    statistics.update(torch.cat(codes), torch.tensor([0, 0, 2, 2, 2]), 0)
    expected = sorted((0, 2), key=lambda number: -codes[number // 2][:, 0].max())
    assert statistics.top_document_numbers(0) == [n for n in expected if codes[n // 2][:, 0].max() > 0]


def test_live_features_lie_within_the_limits():
    statistics = FeatureStatistics(4, top=1)
    codes = torch.zeros(200, 4)
    codes[:1, 0], codes[:50, 1], codes[:150, 2] = 1.0, 1.0, 1.0  # densities 0.005, 0.25, 0.75, 0
    statistics.update(codes, torch.zeros(200, dtype=torch.long), 0)
    assert live_features(statistics, CONFIG) == [1]
    assert live_features(statistics, replace(CONFIG, min_density=0.0, max_density=1.0)) == [0, 1, 2]


def test_concepts_of_wordpieces_by_hand():
    world, tokenizer = World(0), tiny_tokenizer()
    document = Document("the dogs chase", None)
    annotation = world.annotate(document)
    offsets = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert [document.text[start:end] for start, end in offsets] == ["the", "dog", "s", "chase"]
    found = concepts_at(annotation, offsets)
    assert "word:the" in found[0] and "word:dog" in found[1] and "word:dog" not in found[2]
    assert "suffix:plural" in found[2] and "word:chase" in found[3]


def test_concepts_of_byte_level_tokens_by_hand():
    annotation = Annotation([(0, 3), (4, 9), (9, 10)], [("first",), ("second",), ("mark",)])
    # "the files." cut as "the", " fi", "les", "."; a space before a word belongs to its token
    found = concepts_at(annotation, [(0, 3), (3, 6), (6, 9), (9, 10)])
    assert found == [("first",), ("second",), ("second",), ("mark",)]
    # A space of its own, and what lies behind the last span, are nothing's.
    assert concepts_at(annotation, [(3, 4), (4, 9), (10, 11)]) == [(), ("second",), ()]


def byte_level_tokenizer(text: str) -> Tokenizer:
    """A byte-level tokenizer of a few merges, learned from one text, whose offsets keep the leading space."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([text], BpeTrainer(vocab_size=262, initial_alphabet=ByteLevel.alphabet()))
    return tokenizer


def test_concepts_of_real_byte_level_tokens_are_those_of_their_word():
    text = "The file's names, naïve ones too: read them (all of them)!"
    words = list(re.finditer(r"\w+|[^\w\s]", text))
    annotation = Annotation([word.span() for word in words], [(f"word:{word[0]}",) for word in words])
    offsets = byte_level_tokenizer(text).encode(text).offsets
    assert len(offsets) > len(words)  # words are cut into pieces
    assert any(text[start].isspace() and end - start > 1 for start, end in offsets)  # spaces belong to what follows
    for (start, end), concepts in zip(offsets, concepts_at(annotation, offsets)):
        there = [word for word in words if word.start() <= end - 1 < word.end()]
        assert concepts == tuple(f"word:{word[0]}" for word in there) and (there or text[start:end].isspace())


def random_decoders(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"main": torch.randn(20, 64, generator=generator), "lender": torch.randn(20, 64, generator=generator)}


LIVE = {"main": list(range(18)), "lender": list(range(1, 20))}


def test_every_live_feature_has_one_split():
    splits = split_features(LIVE, random_decoders(), CONFIG, seed=0)
    assert set(splits) == {(sae, index) for sae, indices in LIVE.items() for index in indices}
    held = {key: split for key, split in splits.items() if split in ("valid", "test")}
    assert sorted(held.values()) == ["test"] * 4 + ["valid"] * 3 and {sae for sae, _ in held} == {"main"}
    assert {split for key, split in splits.items() if key not in held} == {"sft", "dpo"}
    assert splits == split_features(LIVE, random_decoders(), CONFIG, seed=0)
    assert splits != split_features(LIVE, random_decoders(), CONFIG, seed=1)


def test_twins_of_held_out_features_are_left_out():
    decoders = random_decoders()
    before = split_features(LIVE, decoders, CONFIG, seed=0)
    tested = next(index for (sae, index), split in before.items() if split == "test")
    trained = next(index for (sae, index), split in before.items() if sae == "main" and split in ("sft", "dpo"))
    decoders["lender"][4] = 3.0 * decoders["main"][tested]  # the same direction
    decoders["lender"][5] = -decoders["main"][tested]  # the opposite is another feature
    decoders["main"][trained] = decoders["main"][tested] + 0.01
    after = split_features(LIVE, decoders, CONFIG, seed=0)
    assert {key for key, split in after.items() if split == "twin"} == {("lender", 4), ("main", trained)}
    assert {key: split for key, split in after.items() if split != "twin"} == {
        key: split for key, split in before.items() if after[key] != "twin"
    }


@pytest.mark.parametrize("most", [1, 10, 24])
def test_a_limit_leaves_a_sample_and_draws_nothing_where_it_is_not_reached(most):
    """18 and 19 live features, of which 7 are held out: 30 to train on."""
    every = split_features(LIVE, random_decoders(), CONFIG, seed=0)
    limited = replace(CONFIG, max_features=most)
    found = split_features(LIVE, random_decoders(), limited, seed=0)
    trained = [key for key, split in found.items() if split in ("sft", "dpo")]
    assert len(trained) == most and all(found[key] == every[key] for key in trained)
    assert {split for key, split in found.items() if split != every[key]} == {"spare"} and set(found) == set(every)
    assert found == split_features(LIVE, random_decoders(), limited, seed=0)
    assert every == split_features(LIVE, random_decoders(), replace(CONFIG, max_features=30), seed=0)


@pytest.mark.parametrize("live", [7, 3])
def test_too_few_live_features_say_what_to_lower(live):
    with pytest.raises(UserError, match=f"need 7 features, but the SAE main has {live} live ones") as caught:
        split_features({"main": list(range(live))}, random_decoders(), CONFIG, seed=0)
    assert str(caught.value).startswith("extract_activations.test_features: ")


def tiny_reader(sae: TopKSAE | None = None, context_length: int = 64) -> Reader:
    """Of the residual stream after block 1."""
    site = Site(1, Place.resid_post)
    saes = {} if sae is None else {"main": sae}
    return Reader(tiny_model(Architecture.llama), tiny_tokenizer(), site, context_length, saes)


def test_an_empty_corpus_is_one_line():
    with pytest.raises(UserError, match="the corpus is empty"):
        list(token_batches([], tiny_reader(), 4))


TEXTS = ["the dogs chase .", "the cat", "does the dog chase the cats ?", "the hammer <text> not the dog <eos>"]


def sae_that_loves_bos() -> TopKSAE:
    """Latent 0 reads the residual of BOS, latents 1 to 3 those of words; nothing is cut away."""
    model, tokenizer = tiny_model(Architecture.llama), tiny_tokenizer()
    ids, mask, _ = encode_batch(tokenizer, TEXTS, 64)
    residual = read_residual(model, 1, ids, mask)
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=4, k=4, apply_b_dec_to_input=False))
    with torch.no_grad():
        sae.W_enc.copy_(torch.stack([residual[0, 0], *residual[0, 1:4]], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae.eval()


def brute_force(sae: TopKSAE) -> tuple[torch.Tensor, torch.Tensor]:
    """Each text's maximum over its words, and the activation of latent 0 on BOS, one text at a time."""
    model, tokenizer = tiny_model(Architecture.llama), tiny_tokenizer()
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    rows = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
            codes = sae.encode(states)
        rows.append(codes[[at for at, token in enumerate(ids) if token not in special]].max(dim=0).values)
    return torch.stack(rows), codes[0, 0]


@torch.no_grad()
def test_bos_and_other_special_tokens_never_count():
    sae = sae_that_loves_bos()
    reader, everyone = tiny_reader(sae), {"main": range(4)}
    expected, on_bos = brute_force(sae)
    assert on_bos > expected[:, 0].max()  # it fires hardest on BOS
    documents = [Document(text, None) for text in TEXTS]
    statistics = FeatureStatistics(4, top=3)
    first = 0
    for batch in token_batches(documents, reader, 3):
        statistics.update(sae.encode(batch.residual), batch.document, first)
        first += len(batch.documents)
        kept = [batch.documents[at].text[a:b] for at, (a, b) in zip(batch.document.tolist(), batch.offsets.tolist())]
        assert kept and not set(kept) & set(SPECIAL_TOKENS)
    torch.testing.assert_close(statistics.maximum, expected.max(dim=0).values, rtol=1e-4, atol=1e-5)
    read = read_texts(TEXTS, reader, everyone)
    torch.testing.assert_close(torch.from_numpy(read.of("main", TEXTS, range(4))), expected, rtol=1e-4, atol=1e-5)
    few = read_texts(TEXTS, reader, {"main": [2, 0]})
    assert (few.of("main", TEXTS[1:], [0, 2]) == read.of("main", TEXTS[1:], [0, 2])).all()
    assert few.maxima["main"].shape == (len(TEXTS), 2)
    assert (read_texts([""], reader, everyone).of("main", [""], range(4)) == 0).all()


@torch.no_grad()
def test_tokens_of_a_text_join_to_it_and_their_maximum_is_the_texts():
    sae = sae_that_loves_bos()
    maxima, _ = brute_force(sae)
    asked = [(text, latent) for text in TEXTS for latent in range(4)]
    read = read_tokens(asked, tiny_reader(sae), "main")
    assert ["".join(tokens) for tokens, _ in read] == [text for text, _ in asked]
    assert all(len(tokens) == len(values) > 1 for tokens, values in read)
    found = torch.tensor([max(values) for _, values in read]).reshape(maxima.shape)
    torch.testing.assert_close(found, maxima, rtol=1e-4, atol=1e-5)
    ((cut, _),) = read_tokens([(TEXTS[0], 0)], tiny_reader(sae, 4), "main")  # BOS and EOS are among the four
    assert 0 < len("".join(cut)) < len(TEXTS[0]) and TEXTS[0].startswith("".join(cut))
    assert read_tokens([("", 0)], tiny_reader(sae), "main") == [([], [])]
    assert read_tokens([], tiny_reader(sae), "main") == []


@torch.no_grad()
def test_contexts_are_windows_around_the_strongest_token():
    sae, world = sae_that_loves_bos(), World(0)
    reader = tiny_reader(sae)
    documents = list(world.documents("extract", 8))
    statistics = FeatureStatistics(4, top=3)
    batches = list(token_batches(documents, reader, 8))
    statistics.update(sae.encode(batches[0].residual), batches[0].document, 0)
    rows = feature_rows({"main": statistics}, {("main", index): "sft" for index in range(4)}, "subject")
    wanted = {number for index in range(4) for number in statistics.top_document_numbers(index)}
    numbers = sorted(wanted)
    again = token_batches([documents[number] for number in numbers], reader, 2)
    found = TopContexts(
        rows, {"main": statistics}, {"main": sae}, world.annotate, CONFIG.context_tokens, CONFIG.direction_contexts
    )
    assert found.numbers == numbers
    for batch in again:
        found.update(batch)
    contexts, means = found.gathered()
    for at, row in enumerate(rows):
        own = [context for context in contexts if context.feature_id == row.feature_id]
        top = statistics.top_document_numbers(row.index)
        assert [context.rank for context in own] == list(range(len(top)))
        peaks = []
        for context, number in zip(own, top):
            here = (batches[0].document == number).nonzero().flatten()
            values = sae.encode(batches[0].residual[here])[:, row.index]
            peak = int(values.argmax())
            peaks.append(batches[0].residual[here[peak]])
            text, offsets = documents[number].text, batches[0].offsets[here].tolist()
            begins = [token for token, (start, _) in enumerate(offsets) if start == 0 or text[start - 1].isspace()]
            first = max(
                token for token in begins if token <= max(0, peak - 2)
            )  # two tokens before, or where its word begins
            window = range(first, min(len(here), peak + 3))
            spans = [batches[0].offsets[here[token]].tolist() for token in window]
            assert context.tokens == [documents[number].text[a:b] for a, b in spans]
            assert context.text == documents[number].text[spans[0][0] : spans[-1][1]]
            assert context.activations == pytest.approx([float(values[token]) for token in window], abs=1e-3)
            assert context.activations[context.peak] == max(context.activations)
        assert own[0].activations[own[0].peak] == pytest.approx(row.maximum, abs=1e-3)
        torch.testing.assert_close(means[at], torch.stack(peaks).mean(dim=0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_contexts_of_a_sample_follow_the_top_ones_and_are_none_of_them():
    sae, world = sae_that_loves_bos(), World(0)
    reader = tiny_reader(sae)
    documents = list(world.documents("extract", 16))
    statistics, sample = FeatureStatistics(4, top=3), DocumentSample(4, 6)
    (batch,) = token_batches(documents, reader, 16)
    codes = sae.encode(batch.residual)
    statistics.update(codes, batch.document, 0)
    sample.update(codes, batch.document, 0)
    rows = feature_rows({"main": statistics}, {("main", index): "sft" for index in range(4)}, "subject")
    found = TopContexts(rows, {"main": statistics}, {"main": sae}, world.annotate, 2, 2, {"main": sample})
    found.update(next(token_batches([documents[number] for number in found.numbers], reader, 16)))
    contexts, _ = found.gathered()
    for row in rows:
        own = [context for context in contexts if context.feature_id == row.feature_id]
        top, others = statistics.top_document_numbers(row.index), sample.document_numbers(row.index)
        further = [context for context in own if context.rank >= 3]
        assert len(further) == len(set(others) - set(top)) and all(0 < one.activations[one.peak] for one in further)
        assert [context.rank for context in further] == [3 + at for at in range(len(further))]
    assert len(contexts) > 4 * 3


def test_equal_steps_go_from_the_strongest_to_the_weakest():
    contexts = [ContextRow("f", at, str(at), [str(at)], [float(at)], 0, []) for at in (3, 0, 4, 1, 2)]
    assert [one.rank for one in at_equal_steps(contexts, 3)] == [4, 2, 0]
    assert [one.rank for one in at_equal_steps(contexts, 2)] == [4, 0]
    assert [one.rank for one in at_equal_steps(contexts, 1)] == [4]
    assert [one.rank for one in at_equal_steps(contexts, 9)] == [4, 3, 2, 1, 0]


def test_a_batch_without_a_valid_token_changes_nothing():
    statistics = FeatureStatistics(2, top=1)
    statistics.update(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), 0)
    statistics.update(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 1)
    assert (statistics.tokens, statistics.fired.tolist(), statistics.maximum.tolist()) == (1, [1, 0], [0.5, 0.0])
    assert statistics.top_document_numbers(0) == [0]
