"""Train the sparse autoencoders on one residual stream of the subject, through sae-lens and in its format.

    python -m tasks.prepare_sae

The first SAE is the one that is explained; the others only lend training features. Writes data/saes/<name>, and
reports/sae.json: how well each stands in for the residual stream on documents it was not trained on.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from saeexplainer import models, sae
from saeexplainer.config import Params
from saeexplainer.domain import Reader
from saeexplainer.domains import open_domain
from saeexplainer.seeds import seed_torch
from saeexplainer.storage import replacing, write_json
from tasks.prepare_subject import SUBJECT
from tasks.stage import Report, main

SAES = Path("data/saes")
MEASURED_DOCUMENTS = 400  # enough for the third digit of every figure of SaeReport


def run(params: Params) -> Report:
    """Read the residual stream once, train every SAE on it, measure each."""
    config, context = params.prepare_sae, params.prepare_subject.context_length
    model, tokenizer = models.open_model(SUBJECT), models.open_tokenizer(SUBJECT)
    models.check_block(model, config.hook_block, "prepare_sae.hook_block")
    domain = open_domain(
        params.prepare_subject.domain, params.seed, params.prepare_subject.corpus, Reader(tokenizer, context)
    )
    texts = [document.text for document in domain.documents("sae", config.documents)]
    activations = torch.cat(list(sae.residuals(model, tokenizer, texts, config.hook_block, context)))
    held_out = [document.text for document in domain.documents("held_out_sae", MEASURED_DOCUMENTS)]
    with replacing(SAES) as folder:
        folder.mkdir(parents=True)
        for spec in config.saes:
            seed = seed_torch(params.seed + spec.seed, f"prepare_sae/{spec.name}")
            sae.train_and_save(activations, config, spec, seed, folder / spec.name)
        saes = {spec.name: sae.load(folder / spec.name, model.config.hidden_size) for spec in config.saes}
        reports = sae.evaluate(saes, model, tokenizer, held_out, config.hook_block, context)
    write_json(Path("reports/sae.json"), reports)
    main_report = reports[config.saes[0].name]
    lines = [
        f"SAE {name}: variance unexplained {report.fraction_variance_unexplained:.4f}, L0 {report.l0:.1f}, "
        f"dead {report.dead_features}, cross-entropy recovered {report.cross_entropy_recovered:.3f}"
        for name, report in reports.items()
    ]
    return Report(asdict(main_report), lines)


if __name__ == "__main__":
    main(run)
