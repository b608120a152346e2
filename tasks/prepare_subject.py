"""The subject: trained on its domain, an ordinary transformers folder, or a pretrained one that the folder points to.

    python -m tasks.prepare_subject

Writes data/subject, and reports/subject.json: its loss on held-out documents beside the entropy floor, where known. A
pretrained model (prepare_subject.pretrained) stays where it is: what is missing, gated or too short fails here.
"""

from dataclasses import asdict

from saeexplainer.config import Params
from saeexplainer.config.parts import Pretrained
from saeexplainer.domains.domain import Domain, ReadingLimit
from saeexplainer.domains.opening import open_domain
from saeexplainer.models import blocks, loading, pointer, stream, tokenizers
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import replacing, write_json
from saeexplainer.training import subject
from saeexplainer.training.subject import SubjectReport
from tasks.places import REPORTS, SUBJECT
from tasks.stage import Report, main


def run(params: Params) -> Report:
    """Train or find, measure, save."""
    config = params.prepare_subject
    seed = seed_torch(params.seed, "prepare_subject")
    if config.pretrained is None:
        report = trained(params, open_domain(config.domain, params.seed, config.corpus), seed)
    else:
        report = pointed(params, config.pretrained)
    write_json(REPORTS / "subject.json", report)
    beside = f", entropy floor {report.entropy_floor:.3f}" if report.entropy_floor is not None else ""
    return Report(
        {name: value for name, value in asdict(report).items() if value is not None},
        [f"subject: {report.parameters:,} parameters, held-out loss {report.loss:.3f} nats a token{beside}"],
    )


def trained(params: Params, domain: Domain, seed: int) -> SubjectReport:
    """Train, measure and store the subject."""
    config = params.prepare_subject
    tokenizer = domain.tokenizer()
    sequences = subject.training_sequences(domain, config, tokenizer)
    model = subject.build_model(config, tokenizer)
    seen = subject.train(model, sequences, config, tokenizer.pad_token_id, seed)
    model.eval()
    loss, floor = subject.held_out_loss(model, tokenizer, domain, config)
    with replacing(SUBJECT) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return SubjectReport(loss, floor, model.num_parameters(), seen)


def pointed(params: Params, pretrained: Pretrained) -> SubjectReport:
    """Load, measure and point to a pretrained model. Raises UserError if it cannot be had, or reads too few tokens."""
    config = params.prepare_subject
    tokenizer = tokenizers.load_tokenizer(pretrained.source, pretrained.revision, prepend_bos=config.prepend_bos)
    model = loading.load_pretrained(pretrained)
    blocks.check_context(model, config.context_length, "prepare_subject.context_length")
    stream.check(model, tokenizer, "prepare_subject.pretrained.source")
    limit = ReadingLimit(tokenizer, config.context_length)  # a packed corpus is cut for it
    loss = subject.loss_on(model, tokenizer, open_domain(config.domain, params.seed, config.corpus, limit), config)
    with replacing(SUBJECT) as folder:
        pointer.write_pointer(folder, pretrained, config.prepend_bos)
    return SubjectReport(loss, None, model.num_parameters(), tokens_seen=0)


if __name__ == "__main__":
    main(run)
