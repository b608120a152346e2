"""What a dictionary is worth on a sample: planted directions score best, a random one at chance."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from tiny import WIDTH, tiny_model, tiny_tokenizer

from saeexplainer.config.parts import Architecture
from saeexplainer.domains.sandbox.world import World
from saeexplainer.features import dictionary
from saeexplainer.features.dictionary import Sample
from saeexplainer.features.token_stream import concepts_at
from saeexplainer.models.sentences import by_tokens
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Place, Site

TOKENS, CONCEPTS = 3000, 12
D_MODEL = 64


@dataclass(frozen=True)
class Linear:
    """Codes are what rows of unit length see of an activation above a threshold."""

    W_dec: torch.Tensor
    threshold: float = 0.5

    @property
    def b_dec(self) -> torch.Tensor:
        return torch.zeros(self.W_dec.shape[1])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        seen = x @ torch.nn.functional.normalize(self.W_dec, dim=1).T
        return torch.where(seen > self.threshold, seen, 0.0)


@pytest.fixture(scope="module")
def planted() -> tuple[Sample, torch.Tensor]:
    """Tokens at which one or two of some concepts hold, each with a direction of its own; and these directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D_MODEL, CONCEPTS, generator=generator)).Q.T.contiguous()
    holds = (torch.rand(TOKENS, CONCEPTS, generator=generator) < 0.1).float()
    residual = holds @ directions + 0.02 * torch.randn(TOKENS, D_MODEL, generator=generator)
    names = [f"concept{at}" for at in range(CONCEPTS)]
    unit = torch.nn.functional.normalize(holds.double(), dim=1)  # a document of one token is its concepts
    alike = (unit @ unit.T).numpy()
    return Sample(residual, names, csc_matrix(holds.double().numpy()), np.arange(TOKENS), alike), directions


def random_rows(seed: int) -> torch.Tensor:
    return torch.randn(CONCEPTS, D_MODEL, generator=torch.Generator().manual_seed(seed))


def test_planted_directions_score_best_and_random_ones_at_chance(planted):
    sample, directions = planted
    best = dictionary.report(Linear(directions), Linear(directions.flip(0)), sample)
    assert best.coverage == pytest.approx(1.0, abs=0.01) and best.reconstruction == pytest.approx(1.0, abs=0.01)
    assert best.cone_rows == 1.0 and best.c_dec == pytest.approx(0.0, abs=1e-6)
    assert best.phi == pytest.approx(0.0, abs=0.03)
    assert best.stability == pytest.approx(1.0) and best.orderedness == pytest.approx(-1.0)

    random = dictionary.report(Linear(random_rows(1), 0.05), Linear(random_rows(2)), sample)
    # A latent that fires at random on a tenth of the tokens has an F1 of 0.1 with a concept of a tenth.
    assert random.coverage < 0.5 < best.coverage and random.reconstruction < 0.2
    assert random.cone_rows is None, "a dozen random rows rebuild none of them"
    assert random.stability < 0.6 and random.c_dec > 0.05
    assert random.phi > best.phi
    # Two documents with a concept in common, and perhaps one more each, share at least half of their vectors.
    assert best.monosemanticity > 0.5 > 2 * random.monosemanticity
    elsewhere = replace(sample, document=np.random.default_rng(0).permutation(TOKENS))
    assert dictionary.report(Linear(directions), None, elsewhere).monosemanticity == pytest.approx(0, abs=0.02)


def test_blended_rows_are_told_from_pure_ones(planted):
    sample, directions = planted
    mixed = directions + directions.roll(1, dims=0)
    pure, blended = (dictionary.report(Linear(rows), None, sample) for rows in (directions, mixed))
    assert blended.phi > pure.phi and blended.c_dec > pure.c_dec and blended.coverage < pure.coverage
    assert pure.stability is None and pure.orderedness is None


def test_without_concepts_only_what_needs_none_is_known(planted):
    sample, directions = planted
    nothing = replace(sample, holds=csc_matrix((TOKENS, CONCEPTS)))
    found = dictionary.report(Linear(directions), None, nothing)
    assert found.coverage is None and found.reconstruction is None and found.cone_rows is None
    assert found.c_dec == pytest.approx(0.0, abs=1e-6)


def test_a_sample_is_the_valid_tokens_with_the_concepts_that_hold_at_each():
    world, tokenizer = World(0), tiny_tokenizer()
    reader = Reader(tiny_model(Architecture.llama), tokenizer, Site(1, Place.resid_post), 64)
    documents = list(world.documents("held_out_sae", 40))
    sample = dictionary.read(reader, documents, world, by_tokens(reader.model, tokenizer, 64))
    encoded = [tokenizer(one.text, return_offsets_mapping=True, add_special_tokens=False) for one in documents]
    expected = [
        keys for one, ids in zip(documents, encoded) for keys in concepts_at(world.annotate(one), ids["offset_mapping"])
    ]
    assert sample.residual.shape == (len(expected), WIDTH) and sample.concepts == world.concepts()
    assert np.bincount(sample.document).tolist() == [len(one["input_ids"]) for one in encoded]
    assert sample.alike.shape == (40, 40) and np.diagonal(sample.alike) == pytest.approx(1)
    for token in (0, 7, len(expected) - 1):
        named = {sample.concepts[at] for at in np.flatnonzero(sample.holds[[token], :].toarray())}
        assert named == set(expected[token])


def test_the_next_sae_of_the_same_shape_is_matched(planted):
    sample, directions = planted
    reader = Reader(tiny_model(Architecture.llama), tiny_tokenizer(), Site(1, Place.resid_post), 64)
    rows = torch.nn.functional.normalize(torch.randn(6, WIDTH), dim=1)
    reader.saes = {"main": Linear(rows), "wide": Linear(torch.randn(9, WIDTH)), "lender": Linear(rows.flip(0))}
    found = dictionary.measure(reader, list(World(0).documents("held_out_sae", 20)), World(0))
    assert found["main"].stability == pytest.approx(1.0) and found["main"].orderedness == pytest.approx(-1.0)
    assert found["wide"].stability is None and found["lender"].stability == pytest.approx(1.0)
