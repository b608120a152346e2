"""Train the subject on its domain: an ordinary transformers folder with an ordinary tokenizer.

    python -m tasks.prepare_subject

Writes data/subject, and reports/subject.json: its loss on held-out documents beside the entropy floor, where known.
"""

from dataclasses import asdict
from pathlib import Path

from saeexplainer import subject
from saeexplainer.config import Params
from saeexplainer.domains import open_domain
from saeexplainer.seeds import seed_torch
from saeexplainer.storage import replacing, write_json
from tasks.stage import Report, main

SUBJECT = Path("data/subject")


def run(params: Params) -> Report:
    """Train, measure, save."""
    config = params.prepare_subject
    seed = seed_torch(params.seed, "prepare_subject")
    domain = open_domain(config.domain, params.seed, config.corpus)
    tokenizer = domain.tokenizer()
    sequences = subject.training_sequences(domain, config, tokenizer)
    model = subject.build_model(config, tokenizer)
    seen = subject.train(model, sequences, config, tokenizer.pad_token_id, seed)
    model.eval()
    loss, floor = subject.held_out_loss(model, tokenizer, domain, config)
    report = subject.SubjectReport(loss, floor, model.num_parameters(), seen)
    with replacing(SUBJECT) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_json(Path("reports/subject.json"), report)
    beside = f", entropy floor {floor:.3f}" if floor is not None else ""
    return Report(
        {name: value for name, value in asdict(report).items() if value is not None},
        [f"subject: {report.parameters:,} parameters, held-out loss {loss:.3f} nats a token{beside}"],
    )


if __name__ == "__main__":
    main(run)
