"""The sparse autoencoders on one site of the subject: trained here through sae-lens, or taken from others.

    python -m tasks.prepare_sae

The first SAE is the one that is explained; the others only lend training features. Writes data/saes/<name>, in
sae-lens' format, data/site.json, the place that they all read, and reports/sae.json: how well each stands in for what
it reads, and what its dictionary is worth, on documents it was not trained on.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saeexplainer.config import Params
from saeexplainer.config.saes import TakenSae, TrainedSae
from saeexplainer.domains.domain import Document, ReadingLimit
from saeexplainer.domains.opening import open_domain
from saeexplainer.errors import UserError
from saeexplainer.features import dictionary
from saeexplainer.models import blocks, pointer, tokenizers
from saeexplainer.models.sentences import open_encoder
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import replacing, write_json
from saeexplainer.saes import loading, quality, training
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import one_site, site_of
from tasks.places import REPORTS, SAES, SITE, SUBJECT
from tasks.stage import Report, main

if TYPE_CHECKING:
    from sae_lens import SAE

MEASURED_DOCUMENTS = 400  # enough for the third digit of every figure of SaeReport
MEASURED_TOKENS = 2**15  # at most; and enough for it


def run(params: Params) -> Report:
    """Take the pretrained ones; read the site once, train the rest on it; measure each."""
    config, context = params.prepare_sae, params.prepare_subject.context_length
    embed = open_encoder(config.text_encoder) if config.text_encoder else None
    model, tokenizer = pointer.open_model(SUBJECT), pointer.open_tokenizer(SUBJECT)
    domain = open_domain(
        params.prepare_subject.domain, config.seed, params.prepare_subject.corpus, ReadingLimit(tokenizer, context)
    )
    with replacing(SAES) as folder:
        folder.mkdir(parents=True)
        sites = {}
        for at, spec in enumerate(config.saes):
            if isinstance(spec, TrainedSae):
                blocks.check_block(model, config.hook_block, "prepare_sae.hook_block")
                sites[spec.name] = training.trained_site(config)
            else:
                taken = take(params, at, spec, model.config.hidden_size, tokenizers.starts_with_bos(tokenizer))
                sites[spec.name] = site_of(taken, model)
                training.save(taken, sites[spec.name], folder / spec.name)
        site = one_site(sites)
        reader = Reader(model, tokenizer, site, context)
        train(params, reader, domain.documents("sae", config.documents), folder)
        reader.saes = {
            spec.name: loading.load(folder / spec.name, reader.width, device=str(reader.device)) for spec in config.saes
        }
        measured = min(MEASURED_DOCUMENTS, max(1, MEASURED_TOKENS // context))
        held_out = list(domain.documents("held_out_sae", measured))
        reports = quality.evaluate(reader, [document.text for document in held_out])
        check_fit(params, reports)
        worth = dictionary.measure(reader, held_out, domain, embed)
    loading.write_site(SITE, site)
    write_json(REPORTS / "sae.json", {name: asdict(reports[name]) | asdict(worth[name]) for name in reports})
    main_report = reports[config.saes[0].name]
    lines = [
        f"SAE {name}: variance unexplained {report.fraction_variance_unexplained:.4f}, L0 {report.l0:.1f}, "
        f"dead {report.dead_features}, cross-entropy recovered {report.cross_entropy_recovered:.3f}"
        for name, report in reports.items()
    ]
    known = asdict(worth[config.saes[0].name])
    return Report(asdict(main_report) | {name: value for name, value in known.items() if value is not None}, lines)


def take(params: Params, at: int, spec: TakenSae, width: int, begins_with_bos: bool) -> "SAE":
    """The pretrained SAE that stands at this place of the list. Raises UserError if it does not fit the settings."""
    wanted, key = spec.pretrained, f"prepare_sae.saes[{at}]"
    found = loading.load(wanted.source, width, sae_id=wanted.sae_id, norm_scaling_factor=wanted.norm_scaling_factor)
    if found.cfg.d_sae != spec.d_sae:
        raise UserError(f"{key}.d_sae: is {spec.d_sae}, but {wanted.source} has {found.cfg.d_sae} latents; give that")
    trained_with = found.cfg.metadata.prepend_bos
    if trained_with is not None and bool(trained_with) != begins_with_bos:
        given = {None: "null", True: "true", False: "false"}[params.prepare_subject.prepend_bos]
        raise UserError(
            f"prepare_subject.prepend_bos: is {given} and texts begin {'with' if begins_with_bos else 'without'} BOS, "
            f"but the SAE {spec.name} was trained {'with' if trained_with else 'without'}; "
            f"set it to {'true' if trained_with else 'false'}"
        )
    return found


def train(params: Params, reader: Reader, documents: Iterable[Document], folder: Path) -> None:
    """Train the SAEs that are not pretrained, all on the same activations."""
    config = params.prepare_sae
    wanted = [spec for spec in config.saes if isinstance(spec, TrainedSae)]
    if not wanted:
        return
    activations = torch.cat(list(reader.activations([document.text for document in documents])))
    for spec in wanted:
        seed = seed_torch(config.seed + spec.seed, f"prepare_sae/{spec.name}")
        training.train_and_save(activations, config, spec, seed, folder / spec.name)


def check_fit(params: Params, reports: dict[str, quality.SaeReport]) -> None:
    """Raise UserError if a pretrained SAE says less about the subject's activations than their mean."""
    for at, spec in enumerate(params.prepare_sae.saes):
        unexplained = reports[spec.name].fraction_variance_unexplained
        if isinstance(spec, TakenSae) and unexplained >= 1:
            raise UserError(
                f"prepare_sae.saes[{at}].pretrained: {spec.pretrained.source} leaves {unexplained:.2f} of the variance "
                "unexplained, more than their mean does; choose an SAE that was trained on this model and site"
            )


if __name__ == "__main__":
    main(run)
