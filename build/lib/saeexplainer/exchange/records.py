"""Feature records as Neuronpedia and the paper's authors exchange them: JSON to our columns and back. Pure.

A file has one feature a line, or it is one JSON array of features, as an API answers. Two shapes of a feature are read:
the paper's (docs/EXCHANGE.md, Fields: `feature_id`, `explanation`, ...), which is also the one that is written, as
lines, and Neuronpedia's own (`modelId`, `layer`, `index`, with `description` as in its exports or with `explanations`
and `activations` as its API answers). Fields that are not known here stay with their record. What is no record is named
by file and line (in an array by its place), and then nothing at all is read from that file. docs/EXCHANGE.md has the
fields.
"""

import json
import math
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NoReturn

from saeexplainer.errors import UserError
from saeexplainer.records import (
    FEATURE_ID,
    ContextRow,
    EvaluationRow,
    ExplanationRow,
    FeatureId,
    FeatureRecord,
    FeatureRow,
    PreferencePair,
)

OWN_FIELDS = {"feature_id", "explanation", "top_activating_texts", "top_activating_contexts", "metadata"}
CONTEXT_FIELDS = {"text", "max_activation", "max_activation_token", "max_activation_token_index"}
NEURONPEDIA_FIELDS = {"modelId", "layer", "index", "description", "activations", "maxActApprox", "frac_nonzero"}
LARGEST = 2**63  # whole numbers of a table are below it
SHOWN = 40  # characters of a wrong value that a message repeats
SCORES = [field.name for field in fields(EvaluationRow) if field.type is float]  # that a record carries along


def read(lines: Iterable[bytes], file: str) -> list[FeatureRecord]:
    """The records of a file, in order; empty lines do not count.

    Raises UserError, which begins with `file` and the number of the line or of the record in an array, on the first one
    that is no record.
    """
    found = []
    for place, text in _texts(iter(lines), file):
        try:
            found.append(from_dict(_parsed(text) if isinstance(text, bytes) else text))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not found:
        raise UserError(f"{file}: holds no record; give a file with one JSON object a line, or an array of them")
    return found


def _texts(lines: Iterator[bytes], file: str) -> Iterator[tuple[str, Any]]:
    """Each record with its place: the bytes of a line, or a value of an array."""
    first = True
    for number, line in enumerate(lines, start=1):
        bare = line.removeprefix(BOM_UTF8).strip()
        if bare and first and (bare.startswith(b"[") or bare == b"{"):  # a value over several lines
            # Empty lines before it count, where its own are counted.
            yield from _values(b"\n" * (number - 1) + b"".join([line.removeprefix(BOM_UTF8), *lines]), file)
        elif bare:
            yield f"{file}:line {number}", bare
        first = first and not bare


def _values(whole: bytes, file: str) -> Iterator[tuple[str, Any]]:
    """The records of a text that is one JSON value: an array of them, or a single one."""
    try:
        value = _parsed(whole, "correct the file")
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    values = value if isinstance(value, list) else [value]
    yield from ((f"{file}:record {number}", one) for number, one in enumerate(values, start=1))


def _parsed(text: bytes, cure: str = "correct or remove the line") -> Any:
    """The value of a JSON text, once it can be stored and written again."""
    try:
        value = json.loads(text.decode("utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # refuses NaN and half characters
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON in UTF-8 ({_reason(error)[:100]}); {cure}") from None
    return value


def _reason(error: Exception) -> str:
    """What is wrong with a JSON text; where, if it is known: the line too, in a text that has several."""
    if not isinstance(error, json.JSONDecodeError):
        return " ".join(str(error).split())
    line = f"line {error.lineno}, " if "\n" in error.doc else ""
    return f"{line}character {error.colno}: {error.msg}"


def from_dict(given: Any) -> FeatureRecord:
    """One record of either shape. Raises UserError, which names the field and its value."""
    record = _mapping("the record", given)
    if "feature_id" not in record and "modelId" in record:
        record = _from_neuronpedia(record)
    feature_id = record.get("feature_id")
    if not isinstance(feature_id, str) or not re.fullmatch(FEATURE_ID, feature_id):
        _refuse("feature_id", feature_id, "text like llama3.1-8b/15-llamascope-res-32k/123: subject/sae/index")
    metadata = _mapping("metadata", _given(record, "metadata", {}))
    index = FeatureId.parse(feature_id).index
    if str(_whole(_given(metadata, "feature_index", index))) != str(index):
        _refuse("metadata.feature_index", metadata["feature_index"], f"the index of the feature_id {feature_id}")
    contexts = [
        _context(f"top_activating_contexts[{at}]", context)
        for at, context in enumerate(_list("top_activating_contexts", _given(record, "top_activating_contexts", [])))
    ]
    texts = _list("top_activating_texts", _given(record, "top_activating_texts", []))
    return FeatureRecord(
        feature_id=feature_id,
        explanation=_text("explanation", _given(record, "explanation", "")),
        texts=[_text(f"top_activating_texts[{at}]", text) for at, text in enumerate(texts)],
        context_texts=[context["text"] for context in contexts],
        context_maxima=[context["max_activation"] for context in contexts],
        context_tokens=[context["max_activation_token"] for context in contexts],
        context_token_indices=[context["max_activation_token_index"] for context in contexts],
        context_extras=[_json(_without(context, CONTEXT_FIELDS)) for context in contexts],
        metadata=_json(metadata),
        extra=_json(_without(record, OWN_FIELDS)),
    )


def _context(name: str, given: Any) -> dict[str, Any]:
    context = _mapping(name, given)
    index = _whole(context.get("max_activation_token_index"))
    if not _is_count(index):
        _refuse(f"{name}.max_activation_token_index", index, "a whole number from 0 on")
    return context | {
        "text": _text(f"{name}.text", context.get("text")),
        "max_activation": _number(f"{name}.max_activation", context.get("max_activation")),
        "max_activation_token": _text(f"{name}.max_activation_token", context.get("max_activation_token")),
        "max_activation_token_index": index,
    }


def _from_neuronpedia(payload: dict[str, Any]) -> dict[str, Any]:
    """Neuronpedia's shape in the paper's. Its explanations come best first, so the first one is taken; the list of
    them stays among the further fields. Of the activations, which come token by token, texts and maxima are taken."""
    model, source = (_text(name, payload.get(name)) for name in ("modelId", "layer"))
    index = _whole(payload.get("index"))
    metadata = {
        "target_model": model,
        "sae_id": source,
        "feature_index": index,
        "activation_density": payload.get("frac_nonzero"),
        "max_activation_approx": payload.get("maxActApprox"),
    }
    said = [payload, *_list("explanations", _given(payload, "explanations", []))]
    named = [_mapping("explanations", one).get("description") for one in said]
    activations = _list("activations", _given(payload, "activations", []))
    contexts = [_from_activation(f"activations[{at}]", one) for at, one in enumerate(activations)]
    contexts.sort(key=lambda context: -context["max_activation"])
    return _without(payload, NEURONPEDIA_FIELDS) | {
        "feature_id": f"{model}/{source}/{index}",  # not checked yet
        "explanation": next((text for text in named if text), ""),
        "top_activating_texts": [context["text"] for context in contexts],
        "top_activating_contexts": contexts,
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }


def _from_activation(name: str, given: Any) -> dict[str, Any]:
    activation = _mapping(name, given)
    tokens = _list(f"{name}.tokens", activation.get("tokens"))
    pieces = [_text(f"{name}.tokens", token).replace("▁", " ") for token in tokens]  # SentencePiece's space
    peak = _whole(activation.get("maxValueTokenIndex"))
    if not _is_count(peak) or peak >= len(pieces):
        _refuse(f"{name}.maxValueTokenIndex", peak, f"an index of its {len(pieces)} tokens")
    return {
        "text": "".join(pieces),
        "max_activation": _number(f"{name}.maxValue", activation.get("maxValue")),
        "max_activation_token": pieces[peak],
        "max_activation_token_index": peak,
    }


def to_dict(record: FeatureRecord) -> dict[str, Any]:
    """A record in the paper's shape; `from_dict` makes the same record of it."""
    contexts = zip(
        record.context_texts, record.context_maxima, record.context_tokens, record.context_token_indices,
        record.context_extras, strict=True,
    )  # fmt: skip
    return {
        "feature_id": record.feature_id,
        "explanation": record.explanation,
        "top_activating_texts": record.texts,
        "top_activating_contexts": [
            {
                "text": text,
                "max_activation": maximum,
                "max_activation_token": token,
                "max_activation_token_index": index,
                **json.loads(extra),
            }
            for text, maximum, token, index, extra in contexts
        ],
        "metadata": json.loads(record.metadata),
        **json.loads(record.extra),
    }


def to_lines(records: Iterable[FeatureRecord]) -> Iterator[str]:
    """Each record as one line of JSON, with its end."""
    return (_json(to_dict(record)) + "\n" for record in records)


def explanations(records: Sequence[FeatureRecord], under: str | None = None) -> list[ExplanationRow]:
    """One row a feature, with its first explanation that is not empty; `under` replaces subject/sae of the ids.

    Raises UserError if `under` would give features of several SAEs the same ids.
    """
    ids = [FeatureId.parse(record.feature_id) for record in records]
    sources = sorted({one.owner for one in ids})
    if under is not None and len(sources) > 1:
        raise UserError(f"--as {under}: the file has features of several SAEs, {sources[0]} and {sources[1]}; split it")
    found: dict[str, ExplanationRow] = {}
    for record, own in zip(records, ids, strict=True):
        name = f"{under or own.owner}/{own.index}"
        split = json.loads(record.metadata).get("split")
        if name not in found or not found[name].explanation:
            found[name] = ExplanationRow(name, split if isinstance(split, str) else "", record.explanation.strip())
    return list(found.values())


def from_rows(
    feature: FeatureRow,
    explanation: str,
    contexts: Sequence[ContextRow],
    metadata: Mapping[str, Any],
    scores: EvaluationRow | None = None,
) -> FeatureRecord:
    """One of our features as a record; contexts strongest first. Scores that are not known (NaN) are null."""
    measured = {name: getattr(scores, name) for name in SCORES} if scores else {}
    known = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    return FeatureRecord(
        feature_id=feature.feature_id,
        explanation=explanation,
        texts=[context.text for context in contexts],
        context_texts=[context.text for context in contexts],
        context_maxima=[context.activations[context.peak] for context in contexts],
        context_tokens=[context.tokens[context.peak] for context in contexts],
        context_token_indices=[context.peak for context in contexts],
        context_extras=["{}" for _ in contexts],
        metadata=_json(dict(metadata)),
        extra=_json({"scores": known} if scores else {}),
    )


def metadata(
    feature_id: str, hook_name: str, d_in: int, d_sae: int, release: str | None = None, sae_id: str | None = None
) -> dict[str, Any]:
    """What a record says of the subject and the SAE of a feature; `release` and `sae_id` are sae-lens', None for an SAE
    of no release. `hook_name` is TransformerLens': blocks.<n>.<place>."""
    named = FeatureId.parse(feature_id)
    block = int(hook_name.split(".")[1])
    return {
        "target_model": named.subject,
        "sae_id": named.sae,
        "feature_index": named.index,
        "layer": block,
        "hook_name": hook_name,
        "hook_layer": block,
        "d_in": d_in,
        "d_sae": d_sae,
        "saelens_release": release,
        "saelens_sae_id": sae_id,
    }


def preference(pair: PreferencePair, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A pair in the paper's shape: the split goes into the metadata."""
    row = asdict(pair)
    return _without(row, {"split"}) | {"metadata": {**metadata, "split": row["split"]}}


def _given(record: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field that may be absent or null."""
    value = record.get(name)
    return default if value is None else value


def _without(record: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _refuse(name: str, value: Any, wanted: str) -> NoReturn:
    shown = "missing" if value is None else f"is {json.dumps(value, ensure_ascii=False)[:SHOWN]}"
    raise UserError(f"{name}: {shown}; must be {wanted}")


def _mapping(name: str, value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(name, value, "a JSON object")


def _list(name: str, value: Any) -> list[Any]:
    return value if isinstance(value, list) else _refuse(name, value, "a list")


def _text(name: str, value: Any) -> str:
    return value if isinstance(value, str) else _refuse(name, value, "text")


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else _refuse(name, value, "a finite number")


def _whole(value: Any) -> Any:
    """3 for 3.0, which a column of whole numbers becomes in a table with gaps; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST
