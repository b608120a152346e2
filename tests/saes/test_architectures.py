"""SAEs of every architecture, saved by sae-lens and loaded by us, on a real residual: against their formulas."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import sae_lens as lens
import torch
from families import CONTEXT, FAMILIES, TEXTS, WIDTH, save_family
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file
from torch import Tensor

from saeexplainer.errors import UserError
from saeexplainer.models.batches import encode_batch
from saeexplainer.models.loading import load_model
from saeexplainer.models.tokenizers import load_tokenizer
from saeexplainer.saes import loading
from saeexplainer.saes.sites import Place, Site, SiteReader, parse_site, site_of
from saeexplainer.saes.subset import take_columns

D_SAE, K = 48, 5
HOOK = "blocks.1.hook_resid_post"
THRESHOLD = 0.7


def metadata(**more: object) -> SAEMetadata:
    return SAEMetadata(model_name="tiny", hook_name=HOOK, **more)


# The inference form of each, untrained, of settings that a test may vary.
MADE: dict[str, Callable[..., lens.SAE]] = {
    "standard": lambda **more: lens.StandardSAE(lens.StandardSAEConfig(WIDTH, D_SAE, **more)),
    "topk": lambda **more: lens.TopKSAE(lens.TopKSAEConfig(WIDTH, D_SAE, k=K, **more)),
    "topk_unit_rows": lambda **more: lens.TopKSAE(
        lens.TopKSAEConfig(WIDTH, D_SAE, k=K, rescale_acts_by_decoder_norm=True, **more)
    ),
    "jumprelu": lambda **more: lens.JumpReLUSAE(lens.JumpReLUSAEConfig(WIDTH, D_SAE, **more)),
    "gated": lambda **more: lens.GatedSAE(lens.GatedSAEConfig(WIDTH, D_SAE, **more)),
}
TRAINED = {
    "batchtopk": lambda: lens.BatchTopKTrainingSAE(
        lens.BatchTopKTrainingSAEConfig(WIDTH, D_SAE, k=K, metadata=metadata())
    ),
    "matryoshka": lambda: lens.MatryoshkaBatchTopKTrainingSAE(
        lens.MatryoshkaBatchTopKTrainingSAEConfig(
            WIDTH, D_SAE, k=K, matryoshka_widths=[16, D_SAE], rescale_acts_by_decoder_norm=False, metadata=metadata()
        )
    ),
}  # fmt: skip


def spread(made: lens.SAE) -> lens.SAE:
    """Every parameter far from where it starts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if name == "threshold":
                parameter.abs_()
    return made


def saved(name: str, folder: Path, **more: object) -> Path:
    """A folder of one SAE; BatchTopK and Matryoshka in the inference form that their training saves."""
    if name in TRAINED:
        made = spread(TRAINED[name]())
        made.topk_threshold = torch.tensor(THRESHOLD, dtype=torch.double)
        made.save_inference_model(folder)
    else:
        spread(MADE[name](**{"metadata": metadata(), **more})).save_model(folder)
    return folder


def by_hand(name: str, folder: Path, x: Tensor) -> Tensor:
    """The activations [tokens, d_sae] from the stored weights, by the formula of the architecture, in double."""
    w = {key: tensor.double() for key, tensor in load_file(folder / "sae_weights.safetensors").items()}
    inside = (x.double() - w["b_dec"]) @ w["W_enc"]
    if name == "gated":
        return torch.where(inside + w["b_gate"] > 0, (inside * w["r_mag"].exp() + w["b_mag"]).clamp_min(0), 0.0)
    before = inside + w["b_enc"]
    if name == "topk_unit_rows":
        before = before * w["W_dec"].norm(dim=1)
    if name.startswith("topk"):
        places = before.argsort(dim=1, descending=True).argsort(dim=1)
        return torch.where(places < K, before.clamp_min(0), 0.0)
    if name == "standard":
        return before.clamp_min(0)
    threshold = w["threshold"] if name == "jumprelu" else THRESHOLD
    return torch.where(before > threshold, before.clamp_min(0), 0.0)


@pytest.fixture(scope="module")
def x(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """A real residual [tokens, d_model], read at the site that the SAEs name."""
    folder = tmp_path_factory.mktemp("subject") / "model"
    save_family("gemma2", folder)
    ids, mask, valid = encode_batch(load_tokenizer(folder, prepend_bos=True), TEXTS, CONTEXT)
    model = load_model(folder, blocks=2)
    site = site_of(MADE["standard"](metadata=metadata()), model)
    assert site == Site(1, Place.resid_post)
    return SiteReader(model, site)(ids, mask)[valid]


@torch.no_grad()
def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*MADE, *TRAINED])
def test_activations_are_those_of_the_formula(tmp_path, x, name):
    folder = saved(name, tmp_path / name)
    loaded = loading.load(folder, WIDTH)
    expected = by_hand(name, folder, x)
    assert_same(loaded.encode(x), expected)
    assert 0 < (expected > 0).double().mean() < 1 and not loaded.training
    assert parse_site(loaded.cfg.metadata.hook_name) == Site(1, Place.resid_post)


@pytest.mark.parametrize("name", [*MADE, *TRAINED])
def test_a_few_columns_read_as_the_whole_sae(tmp_path, x, name):
    whole = loading.load(saved(name, tmp_path / name), WIDTH)
    wanted = [7, 0, 47, 12]
    state = torch.get_rng_state()
    columns = take_columns(whole, wanted)
    assert torch.equal(torch.get_rng_state(), state)  # texts are drawn after it
    assert columns.features == (7, 0, 47, 12)
    assert_same(columns.encode(x), whole.encode(x)[:, wanted])
    assert (columns.encode(x) > 0).any()
    assert columns.encoded == (D_SAE if name.startswith("topk") else len(wanted))
    assert sum(one.numel() for one in columns.few.parameters()) < sum(one.numel() for one in whole.parameters()) / 5


@torch.no_grad()
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("name", MADE)
def test_a_unit_of_a_feature_adds_its_direction(tmp_path, x, name, norm):
    whole = loading.load(saved(name, tmp_path / name, normalize_activations=norm), WIDTH)
    columns, more = take_columns(whole, [7, 0, 47]), torch.zeros(D_SAE)
    more[47] = 2.0
    before = whole.decode(whole.encode(x))
    after = whole.decode(whole.encode(x) + more)
    scale = columns.token_scale(x)
    assert (scale is None) == (norm == "none")
    assert_same(after - before, (2.0 if scale is None else 2.0 * scale) * columns.directions[2].expand_as(x))


def test_matching_pursuit_takes_the_best_row_again_and_again(tmp_path, x):
    made = lens.MatchingPursuitSAE(lens.MatchingPursuitSAEConfig(WIDTH, D_SAE, max_iterations=3, metadata=metadata()))
    spread(made).save_model(tmp_path)
    loaded = loading.load(tmp_path, WIDTH)
    w = load_file(tmp_path / "sae_weights.safetensors")
    for token, found in zip(x, loaded.encode(x).detach()):
        left, expected = token - w["b_dec"], torch.zeros(D_SAE)
        for _ in range(3):
            best = int((w["W_dec"] @ left).argmax())
            value = (w["W_dec"][best] @ left).clamp_min(0)
            expected[best] += value
            left = left - value * w["W_dec"][best]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert_same(take_columns(loaded, [5, 0]).encode(x), loaded.encode(x)[:, [5, 0]])
    loaded.cfg.metadata.model_from_pretrained_kwargs = CENTRED["model_from_pretrained_kwargs"]
    loaded.save_model(tmp_path / "centred")
    assert "center_writing_weights with matching_pursuit is not read" in refused(tmp_path / "centred")


def test_a_column_that_is_not_there_is_one_line(tmp_path):
    whole = loading.load(saved("standard", tmp_path), WIDTH)
    for feature in (-1, D_SAE):
        with pytest.raises(UserError, match=f"^feature: {feature}, but the SAE has features 0 to {D_SAE - 1}"):
            take_columns(whole, [0, feature])


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated"])
def test_the_scale_of_training_is_folded_in(tmp_path, x, name):
    folder = saved(name, tmp_path / name, normalize_activations="expected_average_only_in")
    loaded = loading.load(folder, WIDTH, norm_scaling_factor=0.25)
    assert_same(loaded.encode(x), by_hand(name, folder, 0.25 * x))
    with torch.no_grad():  # and the reconstruction is in the model's units
        raw = spread(MADE[name]())
        assert_same(loaded.decode(loaded.encode(x)), raw.decode(raw.encode(0.25 * x)) / 0.25)
    with pytest.raises(UserError, match="give norm_scaling_factor") as caught:
        loading.load(folder, WIDTH)
    assert "\n" not in str(caught.value)


def test_a_norm_of_every_token_is_the_saes_own(tmp_path, x):
    folder = saved("standard", tmp_path, normalize_activations="constant_norm_rescale")
    unit = x / x.norm(dim=1, keepdim=True) * WIDTH**0.5
    assert_same(loading.load(folder, WIDTH).encode(x), by_hand("standard", folder, unit))


CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


@pytest.mark.parametrize("from_input", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_centring_is_folded_in_once(tmp_path, x, name, from_input):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sae-lens', that the SAE needs centring
        folder = saved(name, tmp_path / name, metadata=metadata(**CENTRED), apply_b_dec_to_input=from_input)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = loading.load(folder, WIDTH)
    weights = load_file(folder / "sae_weights.safetensors")
    centred = x - x.mean(dim=1, keepdim=True)
    expected = by_hand(name, folder, centred if from_input else centred + weights["b_dec"])
    assert_same(loaded.encode(x), expected)
    assert not torch.allclose(by_hand(name, folder, x).float(), expected.float(), atol=1e-2)
    loaded.save_model(tmp_path / "again")
    assert_same(loading.load(tmp_path / "again", WIDTH).encode(x), expected)


def test_centred_writing_weights_are_a_centred_residual(tmp_path):
    save_family("gpt2", tmp_path)
    ids, mask, _ = encode_batch(load_tokenizer(tmp_path), TEXTS, CONTEXT)
    plain, centred = load_model(tmp_path), load_model(tmp_path)
    written = [centred.transformer.wte.weight.data, centred.transformer.wpe.weight.data]
    for block in centred.transformer.h:
        written += [block.attn.c_proj.weight.data, block.mlp.c_proj.weight.data]
        written += [block.attn.c_proj.bias.data, block.mlp.c_proj.bias.data]
    for weight in written:  # the last dimension is that of the residual stream
        weight -= weight.mean(dim=-1, keepdim=True)
    for place in Place:
        found, expected = (SiteReader(model, Site(2, place))(ids, mask) for model in (centred, plain))
        assert_same(found, expected - expected.mean(dim=-1, keepdim=True))


def refused(folder: Path, **more: object) -> str:
    """The one line that loading ends with."""
    with pytest.raises(UserError) as caught:
        loading.load(folder, **{"d_model": WIDTH, **more})
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(folder))
    return str(caught.value)


def test_what_cannot_be_read_is_one_line(tmp_path):
    assert f"d_in is {WIDTH}, the subject's width 99" in refused(saved("jumprelu", tmp_path / "width"), d_model=99)
    heads = metadata()
    heads.hook_name = "blocks.1.attn.hook_z"
    folder = saved("standard", tmp_path / "heads", metadata=heads, reshape_activations="hook_z")
    assert "the heads before their output matrix" in refused(folder)
    assert "whitening" in refused(saved("standard", tmp_path / "w", normalize_activations="covariance_whitening"))
    shape = lens.TranscoderConfig(WIDTH, D_SAE, d_out=WIDTH, apply_b_dec_to_input=False, metadata=metadata())
    transcoder = lens.Transcoder(shape)
    transcoder.save_model(tmp_path / "transcoder")
    assert "transcoder SAEs are not read" in refused(tmp_path / "transcoder")
    TRAINED["batchtopk"]().save_model(tmp_path / "training")
    assert "save its inference form" in refused(tmp_path / "training")
    folder = saved("standard", tmp_path / "settings")
    whole = (folder / "cfg.json").read_text(encoding="utf-8")
    for content in (
        "",
        "[]",
        "null",
        "{}",
        "7",
        whole[:40],
        whole.replace(f'"d_in": {WIDTH}', '"d_in": NaN'),
        whole.replace(f'"d_in": {WIDTH}', '"d_in": "wide"'),
        whole.replace('"metadata": {', '"metadata": [{'),
    ):
        (folder / "cfg.json").write_text(content, encoding="utf-8")
        refused(folder)
        with pytest.raises(UserError):
            loading.stored_site(folder if not content.startswith('{"') else tmp_path)
    folder = saved("standard", tmp_path / "cut")
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "that sae-lens reads" in refused(folder)


def test_a_site_that_is_not_named_is_one_line():
    model = FAMILIES["llama"].build(300)
    for found, said in (
        (SAEMetadata(), "^hook_name: is None in the metadata"),
        (metadata(hook_head_index=3), "^hook_head_index: 3"),
        (SAEMetadata(hook_name="blocks.1.attn.hook_z"), "the heads"),
    ):
        with pytest.raises(UserError, match=said):
            site_of(MADE["standard"](metadata=found), model)


def test_an_sae_of_a_release_is_that_of_its_folder(tmp_path, x, monkeypatch):
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    folder = saved("jumprelu", tmp_path / "one")
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, hub / "models--owner--saes" / "snapshots" / commit / "layer_1")
    (hub / "models--owner--saes" / "refs").mkdir()
    (hub / "models--owner--saes" / "refs" / "main").write_text(commit)
    assert_same(loading.load("owner/saes", WIDTH, sae_id="layer_1").encode(x), by_hand("jumprelu", folder, x))
    assert "no SAE layer_2 that sae-lens reads" in refused("owner/saes", sae_id="layer_2")
    assert "Release nonesuch not found" in refused("nonesuch", sae_id="layer_1")
    assert "ID nonesuch not found in release gpt2-small-res-jb" in refused("gpt2-small-res-jb", sae_id="nonesuch")
