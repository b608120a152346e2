"""Where an SAE reads the model: a TransformerLens hook name, found in any transformers model by structure.

An SAE that sae-lens trained on a transformers model itself names a module instead, whose output it reads; what that is
in the residual stream is found in the model, and then it goes by its hook name too.

A residual site is the input or the output of a block. What attention and the MLP write is what the block adds to the
residual stream, after a norm of its own where there is one (Gemma 2 and 3): it is found by arithmetic, as those two
children of the block whose outputs add up to the block's output less its input.
"""

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeexplainer.errors import UserError
from saeexplainer.models.blocks import check_block, read_module, text_name, transformer_blocks

if TYPE_CHECKING:
    from sae_lens import SAE

# Share of what a block adds that its two writers may leave unexplained. On tiny models of ten families rounding leaves
# under 1e-6 in float32 and 0.01 in bfloat16; a block that scales what it adds leaves most of it.
UNEXPLAINED = 0.1


class Place(StrEnum):
    """Names of hook points in a block, as TransformerLens has them."""

    resid_pre = "hook_resid_pre"  # residual stream before the block
    attn_out = "hook_attn_out"  # what attention adds to it
    mlp_out = "hook_mlp_out"  # what the MLP adds to it
    resid_post = "hook_resid_post"  # residual stream after the block


@dataclass(frozen=True)
class Site:
    """One place of which an SAE reads the activations; all have the width of the residual stream."""

    block: int  # counted from 0
    place: Place

    def __str__(self) -> str:
        return f"blocks.{self.block}.{self.place}"

    @property
    def blocks(self) -> int:
        """How many blocks a model needs for it (`load_model`'s `blocks`)."""
        return self.block + 1


def parse_site(hook_name: str) -> Site:
    """The site of a hook name such as `blocks.12.hook_resid_post`. Raises UserError if it is of another kind."""
    found = re.fullmatch(rf"blocks\.(\d+)\.({'|'.join(Place)})", hook_name)
    if found is None:
        why = (
            "the heads before their output matrix, so no decoder row is a direction of the residual stream"
            if "hook_z" in hook_name
            else "not one that is read"
        )
        raise UserError(f"hook_name: {hook_name} is {why}; choose an SAE on blocks.<n>.<{'|'.join(Place)}>")
    return Site(int(found[1]), Place(found[2]))


def one_site(sites: Mapping[str, Site]) -> Site:
    """The site that all SAEs of a run read, by their names. Raises UserError if they differ."""
    (first, site), *others = sites.items()
    for name, other in others:
        if other != site:
            raise UserError(
                f"prepare_sae.saes: {first} reads {site}, {name} {other}; all SAEs of a run must read one site"
            )
    return site


def site_of(sae: "SAE", model: nn.Module) -> Site:
    """The site in the model that an SAE's metadata names, as a hook or as a module.

    Raises UserError if it names none, a single head, or a place that is not read.
    """
    metadata = sae.cfg.metadata
    if not isinstance(metadata.hook_name, str):
        raise UserError(
            f"hook_name: is {metadata.hook_name!r} in the metadata of the SAE's cfg.json; name the place there"
        )
    if metadata.hook_head_index is not None:
        raise UserError(f"hook_head_index: {metadata.hook_head_index}; SAEs on one head are not read, choose another")
    is_hook = metadata.hook_name.rpartition(".")[2].startswith("hook_")
    return parse_site(metadata.hook_name) if is_hook else module_site(model, metadata.hook_name)


def module_site(model: nn.Module, name: str) -> Site:
    """The site that is the output of the module of that name, in the model or in the one whose text part it is.

    Raises UserError if it is neither a block nor what adds to the residual stream in one.
    """
    names = {module: path for path, module in model.named_modules()}
    blocks = transformer_blocks(model)
    wanted = text_name(name)
    for number, block in enumerate(blocks):
        path = names[block]
        if wanted == path:
            return Site(number, Place.resid_post)
        if wanted.startswith(f"{path}."):
            attention, mlp = _writers(model, block)
            places = {names[attention]: Place.attn_out, names[mlp]: Place.mlp_out}
            if wanted in places:
                return Site(number, places[wanted])
            raise UserError(
                f"hook_name: {name} is not what the block adds to the residual stream; choose an SAE on {path}, "
                f"{' or '.join(places)}"
            )
    raise UserError(
        f"hook_name: {name} is no part of a block of {type(model).__name__}; choose an SAE on one of "
        f"{names[blocks[0]]} to {names[blocks[-1]]}"
    )


class SiteReader:
    """Reads one site of one model, where later blocks do not run, or changes what is there."""

    def __init__(self, model: nn.Module, site: Site) -> None:
        """Find the site. Raises UserError if the model has no such block, or one whose parts cannot be told apart."""
        check_block(model, site.block, "hook_name")
        self.model = model
        block = transformer_blocks(model)[site.block]
        self._entering = site.place is Place.resid_pre
        self._module = block
        if site.place in (Place.attn_out, Place.mlp_out):
            attention, mlp = _writers(model, block)
            self._module = attention if site.place is Place.attn_out else mlp

    def __call__(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens d_model"]:
        """Activations there, on the model's device and in its dtype."""
        return read_module(self.model, self._module, input_ids, attention_mask, entering=self._entering)

    @contextmanager
    def changed(self, change: Callable[[Tensor], Tensor]) -> Generator[None, None, None]:
        """While the block runs, the model goes on with `change` of the activations [batch, tokens, d_model] there."""

        def change_output(_module: nn.Module, _inputs: object, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        def change_input(_module: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
            if inputs:
                return (change(inputs[0]), *inputs[1:]), named
            return inputs, named | {"hidden_states": change(named["hidden_states"])}

        handle = (
            self._module.register_forward_pre_hook(change_input, with_kwargs=True)
            if self._entering
            else self._module.register_forward_hook(change_output)
        )
        try:
            yield
        finally:
            handle.remove()


def _writers(model: nn.Module, block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The two children of a block that add to the residual stream, in the order they run: attention, MLP."""
    ids = torch.arange(1, 9).unsqueeze(0)
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _inputs: object, output: Any) -> None:
        outputs.append((module, (output[0] if isinstance(output, tuple) else output).float()))

    handles = [child.register_forward_hook(keep) for child in block.children()]
    try:
        after = read_module(model, block, ids, torch.ones_like(ids)).float()
    finally:
        for handle in handles:
            handle.remove()
    # Where a model lies on several devices, what enters a block may still be on the one before.
    added = after - read_module(model, block, ids, torch.ones_like(ids), entering=True).float().to(after.device)
    same = [(module, output) for module, output in outputs if output.shape == added.shape]
    left = {
        pair: _unexplained(added, same[pair[0]][1] + same[pair[1]][1]) for pair in combinations(range(len(same)), 2)
    }
    best = min(left, key=left.__getitem__, default=None)
    if best is None or left[best] > UNEXPLAINED:
        raise UserError(
            f"hook_name: no two parts of {type(block).__name__} add up to what it adds to the residual stream; "
            f"choose an SAE on {Place.resid_pre} or {Place.resid_post}"
        )
    return same[best[0]][0], same[best[1]][0]


def _unexplained(added: Float[Tensor, "batch tokens d_model"], pair: Float[Tensor, "batch tokens d_model"]) -> float:
    """Median over tokens of |added - pair| / |added|: one token of huge norm, as the first may be, decides nothing."""
    return float(((added - pair).norm(dim=-1) / added.norm(dim=-1).clamp_min(1e-12)).median())
