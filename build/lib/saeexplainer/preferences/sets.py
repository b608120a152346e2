"""What a preference set looks like as a set, and how far it has moved from the set of an earlier round: pure.

`figures` keeps what a later round is compared with; `drift` compares. A word is what stands between spaces and is more
than punctuation; two texts are the same if `normal` makes them equal.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from saeexplainer.config import ReasonShares
from saeexplainer.errors import UserError
from saeexplainer.records import DroppedFeature, DropReason, PreferencePair
from saeexplainer.runs.storage import read_json

REASONS = {DropReason[field.name]: field.name for field in fields(ReasonShares)}  # each with the name of its limit


@dataclass(frozen=True)
class Figures:
    """What is kept of a set, over the features of its dpo split, each counted once."""

    features: int  # with a pair
    lengths: dict[str, int]  # words of the chosen explanation -> features
    mean_score: float  # reward of the chosen explanation
    dropped_share: float  # features without a pair, of both splits
    vocabulary: dict[str, int]  # word of the chosen explanations -> times


@dataclass(frozen=True)
class Drift:
    """How far a set is from an earlier one."""

    words: float  # Wasserstein distance between the lengths of the chosen explanations: words an explanation
    score: float  # |difference of the mean chosen scores| / the earlier one
    dropped: float  # |difference of the shares of dropped features|
    vocabulary: float  # Jensen-Shannon distance between the words' frequencies: 0 the same, 1 no word in common


def normal(text: str | None) -> str:
    """A text without what makes no difference: case, spaces, forms of one character, punctuation at a word's edge.

    A mark that stands alone stays: `the word .` and `the word ?` say different things.
    """
    return " ".join(map(_bare, unicodedata.normalize("NFKC", text or "").casefold().split()))


@lru_cache(maxsize=65_536)  # the words of explanations repeat
def _bare(word: str) -> str:
    kept = [at for at, character in enumerate(word) if not _is_punctuation(character)]
    return word[kept[0] : kept[-1] + 1] if kept else word


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PCZ"  # punctuation, control and format characters, separators


def words(text: str | None) -> list[str]:
    """The words of a text; emoji and mathematical signs count, lone punctuation does not."""
    return [word for word in normal(text).split() if not all(map(_is_punctuation, word))]


def dropped_share(
    left: Sequence[PreferencePair], pairs: Sequence[PreferencePair], dropped: Sequence[DroppedFeature]
) -> float:
    """Features without a pair, those that quarantine emptied included, over all features; 1 if there are none."""
    features = {row.feature_id for row in (*pairs, *dropped) if row.feature_id}
    return 1 - len({pair.feature_id for pair in left}) / len(features) if features else 1.0


def length_bias(left: Sequence[PreferencePair]) -> float:
    """Words by which chosen explanations are longer than rejected ones (below 0: shorter) on average."""
    longer = [len(words(pair.chosen_explanation)) - len(words(pair.rejected_explanation)) for pair in left]
    return sum(longer) / len(longer) if longer else 0.0


def top_share(texts: Sequence[str]) -> float:
    """Share of the most frequent text; 0 without texts."""
    counts = Counter(map(normal, texts))
    return max(counts.values()) / len(texts) if counts else 0.0


def distinct_share(texts: Sequence[str]) -> float:
    """Different texts over texts; 1 without texts."""
    return len(set(map(normal, texts))) / len(texts) if texts else 1.0


def reason_shares(pairs: Sequence[PreferencePair], dropped: Sequence[DroppedFeature]) -> dict[str, float]:
    """Reason for a feature to be dropped -> share of all features; every reason with a limit of its own is there, and
    whatever else was said."""
    features = {row.feature_id for row in (*pairs, *dropped) if row.feature_id}
    counts = Counter(row.reason or "" for row in dropped)
    return {reason: counts[reason] / max(1, len(features)) for reason in (*REASONS, *sorted({*counts} - {*REASONS}))}


def figures(
    left: Sequence[PreferencePair], pairs: Sequence[PreferencePair], dropped: Sequence[DroppedFeature]
) -> Figures:
    """The figures of `left`, which is what quarantine left of `pairs`; `dropped` are the features without a pair."""
    best = {pair.feature_id: pair for pair in left if pair.split == "dpo"}
    spoken = [words(pair.chosen_explanation) for pair in best.values()]
    return Figures(
        features=len(best),
        lengths=_counted([str(len(text)) for text in spoken]),
        mean_score=sum(pair.chosen_score for pair in best.values()) / max(1, len(best)),
        dropped_share=dropped_share(left, pairs, dropped),
        vocabulary=_counted([word for text in spoken for word in text]),
    )


def _counted(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def read_figures(path: Path) -> Figures:
    """The figures that train_dpo left with an explainer. Raises UserError if they are not there or broken."""
    stored = read_json(path)
    try:
        found = Figures(**stored)
        usable = found.features > 0 and found.mean_score > 0 and sum(map(int, found.lengths.values())) > 0
    except (TypeError, ValueError, AttributeError):
        usable = False
    if not usable:
        raise UserError(
            f"{path}: holds no figures of a preference set; train the explainer again (`dvc repro --force`)"
        )
    return found


def drift(now: Figures, before: Figures) -> Drift:
    """How far `now` is from `before`; both must have features."""
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    def lengths(of: Figures) -> tuple[list[int], list[int]]:
        return [int(length) for length in of.lengths], list(of.lengths.values())

    (lengths_now, weights_now), (lengths_before, weights_before) = lengths(now), lengths(before)
    known = sorted({*now.vocabulary, *before.vocabulary})
    frequencies = [[of.vocabulary.get(word, 0) for word in known] for of in (now, before)]
    return Drift(
        words=float(wasserstein_distance(lengths_now, lengths_before, weights_now, weights_before)),
        score=abs(now.mean_score - before.mean_score) / before.mean_score,
        dropped=abs(now.dropped_share - before.dropped_share),
        vocabulary=float(jensenshannon(*frequencies, base=2)) if all(map(any, frequencies)) else 1.0,
    )
