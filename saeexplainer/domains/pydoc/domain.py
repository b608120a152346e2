"""Python's own documentation as a domain: real English that is always at hand, without a known truth.

The concepts are hypotheses about surface form (this word, after that word, in parentheses, from this module's
documentation), never claims about meaning. `saeexplainer.domains.pydoc.text` finds and cuts the text; here are the
concepts, the language of descriptions, the order of the streams and the tokenizer. Everything is a function of the seed
and of the installed Python: another Python version gives another corpus.
"""

import hashlib
import json
import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count as count_from, islice
from typing import TYPE_CHECKING, ClassVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from saeexplainer.domains.domain import BOS, EOS, PAD, SPECIAL_TOKENS, UNKNOWN, Annotation, Document, Lesson
from saeexplainer.domains.pydoc import text as pydoc_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = "held_out"  # streams whose name starts so give the held-out documents, no other stream does
HELD_OUT_ONE_IN = 10  # documents

WORD_OCCURRENCES, WORDS = 30, 1500  # a word concept has at least so many occurrences; at most so many concepts
AFTER_WORDS = 200  # the most frequent words, for `after:`
NEAR_DISTANCE = 6  # words to either side, for `near:`
MODULE_DOCUMENTS = 20  # a module concept has at least so many documents

ENDINGS = ("able", "al", "ed", "ence", "er", "ing", "ity", "ive", "ly", "ment", "ness", "or", "ous", "s", "tion")
STEM = 3  # letters a word has before its ending: `thing` and `only` do not count
SHAPES = {
    "shape:number": "a number",
    "shape:capital": "a capitalised word",
    "shape:identifier": "an identifier",
    "shape:punctuation": "a punctuation mark",
    "shape:quoted": "text in quotes",
    "shape:parenthesis": "text in parentheses",
}
POSITIONS = {"position:first": "the first word", "position:last": "the last word"}
# Single marks, because small models' features often fire on exactly one.
MARKS = {
    ",": ("mark:comma", "a comma"),
    ".": ("mark:period", "a period"),
    ":": ("mark:colon", "a colon"),
    ";": ("mark:semicolon", "a semicolon"),
    "-": ("mark:hyphen", "a hyphen"),
    '"': ("mark:quote", "a quotation mark"),
    "(": ("mark:opening", "an opening parenthesis"),
    ")": ("mark:closing", "a closing parenthesis"),
}
MODIFYING = {
    "shape:quoted": "in quotes",
    "shape:parenthesis": "in parentheses",
    "position:first": "as the first word",
    "position:last": "as the last word",
}
# Words that say nothing about what a text is about: no `near:` concept is built on them.
_FUNCTION_WORDS = (
    "a about above after again all also always an and another any are as at be because been before being below "
    "between both but by can cannot could did do does doesn't don't done during each either else even every "
    "except few for from further had has have having he her here his how however i if in instead into is isn't it "
    "it's its itself just like may me might more most much must my neither never no nor not now of off on once "
    "one only or other others otherwise our out over own per rather same see shall she should since so some still "
    "such than that the their them then there these they this those three through thus to too two under unless "
    "until up upon us use used uses using was way we were what when where whether which while who whose why will "
    "with within without would yet you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

LESSON_WORDS = 30  # the longest text of a lesson
LESSON_SHORT = 8  # words; a shorter sentence takes the next one with it
LEADS = {"word": 55, "after": 15, "ending": 10, "shape": 8, "module": 5, "mark": 4, "position": 3}  # weights, of 100
MODIFIED = 0.45  # share of lessons whose description has a modifier
MODIFIERS = {"near": 5, "after": 2, "module": 2, "shape": 2, "position": 1}  # weights among the kinds that are true

# A name or word (with its apostrophe), a number, or one punctuation mark (repeated: `...` is one).
_SPAN = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:'[a-z]+\b)?|\d+(?:[.,:]\d+)*\w*|([^\w\s])\1*")
# Quotation marks that belong together; an apostrophe inside a word opens and closes nothing.
_QUOTED = re.compile(r"\"[^\"]+\"|``[^`]+``|(?<![\w'])'[^']+'(?![\w'])|(?<!`)`[^`']+[`']")
# snake_case, dotted.names and camelCase.
_IDENTIFIER = re.compile(r"\w*_\w*|[^\W\d]\w*\.[\w.]+|\w*[a-z][A-Z]\w*")
_ABBREVIATIONS = frozenset({"e.g", "i.e", "a.k.a"})  # as _SPAN cuts them: not dotted names
_PLURAL = ("(s)", "(es)", "(ies)")  # `file(s)` is no call


@dataclass(frozen=True)
class Lexicon:
    """The words and modules that are frequent enough to be concepts; keys are lower case, values concept keys."""

    words: dict[str, str]  # most frequent first
    rarity: dict[str, float]  # of the same words: occurrences ** -0.5, the weight of a word among a lesson's candidates
    after: dict[str, str]  # of the most frequent words
    near: dict[str, str]  # of the content words
    modules: dict[str, str]  # of the topics with enough documents, by name
    # What a token's surface alone says; filled while annotating, because most tokens come again.
    forms: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Phrases:
    """The language of descriptions, both ways."""

    leads: dict[str, str]  # concept to phrase
    modifiers: dict[str, str]  # concept to phrase
    lead_of: dict[str, str]  # phrase to concept
    modifier_of: dict[str, str]  # phrase to concept


@dataclass(frozen=True)
class PydocDomain:
    """A finite corpus; a stream gives every document once in its own order, then starts over in a new order."""

    seed: int  # of the orders and the lessons; the corpus and its held-out part do not depend on it
    vocabulary: int = 4096  # tokens of the tokenizer, the special ones among them

    truth_known: ClassVar[bool] = False

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """A byte-level BPE of the documents that are not held out; any text survives encoding and decoding."""
        from transformers import PreTrainedTokenizerFast  # slow to import, and only needed here

        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self._tokenizer_json),
            bos_token=BOS,
            eos_token=EOS,
            pad_token=PAD,
            unk_token=UNKNOWN,
            additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (BOS, EOS, PAD, UNKNOWN)],
            clean_up_tokenization_spaces=False,
        )

    def documents(self, stream: str, count: int) -> Iterator[Document]:
        """`count` documents; past the corpus' end the stream goes through it again, in a new order."""
        return islice(self._endless(stream), count)

    def lessons(self, stream: str, count: int) -> Iterator[Lesson]:
        """`count` lessons on the documents that a stream of this name may give, in the stream's order."""
        choice = _random(self.seed, "lessons", stream)
        for document in islice(self._endless(stream), count):
            chunk = Document(_chunk(document.text, choice), None, document.structure)
            yield Lesson(self.describe(self._true_there(self.annotate(chunk), choice)), chunk.text, None)

    def annotate(self, document: Document) -> Annotation:
        """What the surface of a text says at each word, number and punctuation mark; `structure` is its topic."""
        text, lexicon = document.text, self._lexicon
        matches = list(_SPAN.finditer(text))
        spans = [match.span() for match in matches]
        names = [match[1] is None for match in matches]
        words = [match[0].lower() for match, name in zip(matches, names, strict=True) if name]
        nearby = [lexicon.near.get(word) for word in words]
        enclosed = _enclosed(text, spans)
        module = lexicon.modules.get(document.structure)
        concepts, before = [], 0  # `before` counts the words so far
        for index, (start, end) in enumerate(spans):
            found = list(self._form(text[start:end], text[end : end + 5]))
            found += enclosed[index]
            if names[index] and before == 0:
                found.append("position:first")
            if names[index] and before == len(words) - 1:
                found.append("position:last")
            if before and words[before - 1] in lexicon.after:
                found.append(lexicon.after[words[before - 1]])
            window = nearby[max(before - NEAR_DISTANCE, 0) : before + NEAR_DISTANCE + names[index]]
            own = nearby[before] if names[index] else None
            found += [near for near in dict.fromkeys(window) if near is not None and near != own]
            if module is not None:
                found.append(module)
            concepts.append(tuple(found))
            before += names[index]
        return Annotation(spans, concepts)

    def concepts(self) -> list[str]:
        """Every concept key, kind after kind, words by falling frequency."""
        words, after, near = (
            list(part.values()) for part in (self._lexicon.words, self._lexicon.after, self._lexicon.near)
        )
        marks = [concept for concept, _ in MARKS.values()]
        endings = [f"ending:{ending}" for ending in ENDINGS]
        return [*words, *SHAPES, *marks, *endings, *POSITIONS, *after, *near, *self._lexicon.modules.values()]

    def can_lead(self, concept: str) -> bool:
        """True of all kinds but `near:`."""
        return concept in self._phrases.leads

    def can_modify(self, concept: str) -> bool:
        """True of `near:`, `after:`, `module:`, positions, quotes and parentheses."""
        return concept in self._phrases.modifiers

    def describe(self, concepts: Sequence[str]) -> str:
        """A short lower-case phrase such as "words ending in ing after the word is"."""
        lead, *modifier = concepts or [""]
        unsayable = len(modifier) > 1 or lead in modifier or lead not in self._phrases.leads
        if unsayable or any(concept not in self._phrases.modifiers for concept in modifier):
            raise ValueError(
                f"no description of {list(concepts)}: give one leading concept and at most one other modifier"
            )
        return " ".join([self._phrases.leads[lead], *(self._phrases.modifiers[concept] for concept in modifier)])

    def parse(self, description: str) -> tuple[str, ...]:
        """The inverse of `describe`; empty for every other text, including other spacing or capitals."""
        phrases = self._phrases
        if description in phrases.lead_of:
            return (phrases.lead_of[description],)
        for space in re.finditer(" ", description):
            lead = phrases.lead_of.get(description[: space.start()])
            modifier = phrases.modifier_of.get(description[space.end() :])
            if lead is not None and modifier is not None and lead != modifier:
                return (lead, modifier)
        return ()

    def _endless(self, stream: str) -> Iterator[Document]:
        documents = self._held_out if stream.startswith(HELD_OUT) else self._open
        for turn in count_from():
            order = list(range(len(documents)))
            _random(self.seed, "order", stream, turn).shuffle(order)
            yield from (documents[index] for index in order)

    def _true_there(self, annotation: Annotation, choice: random.Random) -> list[str]:
        """A leading concept that is true somewhere in a text and, at times, a modifier true at the same word."""
        places: dict[str, list[int]] = {}
        for place, concepts in enumerate(annotation.concepts):
            for concept in concepts:
                if concept in self._phrases.leads:
                    places.setdefault(concept, []).append(place)
        lead = self._pick(list(places), LEADS, choice)
        if choice.random() >= MODIFIED:
            return [lead]
        there = annotation.concepts[choice.choice(places[lead])]
        modifiers = [
            concept for concept in there if concept in self._phrases.modifiers and _kind(concept) != _kind(lead)
        ]
        return [lead, self._pick(modifiers, MODIFIERS, choice)] if modifiers else [lead]

    def _pick(self, concepts: list[str], weights: dict[str, int], choice: random.Random) -> str:
        """A kind by its weight among those present, then a concept of it; rare words first, they say more."""
        kinds = list(dict.fromkeys(map(_kind, concepts)))
        kind = choice.choices(kinds, [weights[kind] for kind in kinds])[0]
        present = [concept for concept in concepts if _kind(concept) == kind]
        rarity = [self._lexicon.rarity.get(concept.partition(":")[2], 1.0) for concept in present]
        return choice.choices(present, rarity)[0]

    def _form(self, token: str, following: str) -> tuple[str, ...]:
        """What a token says by itself; a name is a call if a parenthesis follows at once."""
        call = (
            following.startswith("(") and not following.startswith(_PLURAL) and (token[0].isalpha() or token[0] == "_")
        )
        key = token + "(" if call else token
        if key not in self._lexicon.forms:
            if len(self._lexicon.forms) > 100_000:  # texts of a writer may hold any number of new words
                self._lexicon.forms.clear()
            self._lexicon.forms[key] = tuple(_surface(token, call, self._lexicon.words))
        return self._lexicon.forms[key]

    @cached_property
    def _parts(self) -> tuple[list[Document], list[Document]]:
        parts: tuple[list[Document], list[Document]] = ([], [])
        for document in pydoc_text.read_corpus(pydoc_text.standard_library()).documents:
            digest = hashlib.sha256(document.text.encode()).digest()
            parts[int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0].append(document)
        return parts

    @property
    def _open(self) -> list[Document]:
        return self._parts[False]

    @property
    def _held_out(self) -> list[Document]:
        return self._parts[True]

    @cached_property
    def _lexicon(self) -> Lexicon:
        """Counted without the held-out documents: nothing of them may shape what is learned."""
        counts = Counter(
            match[0].lower() for document in self._open for match in _SPAN.finditer(document.text) if match[1] is None
        )
        frequent = {
            word: n for word, n in counts.items() if n >= WORD_OCCURRENCES and re.fullmatch(r"[a-z_][\w']*", word)
        }
        ranked = sorted(frequent, key=lambda word: (-frequent[word], word))[:WORDS]
        content = [word for word in ranked if word not in FUNCTION_WORDS and len(word) > 1]
        topics = Counter(document.structure for document in self._open)
        return Lexicon(
            words={word: f"word:{word}" for word in ranked},
            rarity={word: frequent[word] ** -0.5 for word in ranked},
            after={word: f"after:{word}" for word in ranked[:AFTER_WORDS]},
            near={word: f"near:{word}" for word in content},
            modules={topic: f"module:{topic}" for topic in sorted(topics) if topics[topic] >= MODULE_DOCUMENTS},
        )

    @cached_property
    def _phrases(self) -> Phrases:
        lexicon = self._lexicon
        leads = {concept: f"the word {word}" for word, concept in lexicon.words.items()}
        leads |= SHAPES | dict(MARKS.values()) | POSITIONS
        leads |= {f"ending:{ending}": f"words ending in {ending}" for ending in ENDINGS}
        leads |= {concept: f"the word after {word}" for word, concept in lexicon.after.items()}
        leads |= {concept: f"text about {_the_module(topic)}" for topic, concept in lexicon.modules.items()}
        modifiers = {concept: f"with the word {word}" for word, concept in lexicon.near.items()} | MODIFYING
        modifiers |= {concept: f"after the word {word}" for word, concept in lexicon.after.items()}
        modifiers |= {concept: f"in text about {_the_module(topic)}" for topic, concept in lexicon.modules.items()}
        lead_of = {phrase: concept for concept, phrase in leads.items()}
        return Phrases(leads, modifiers, lead_of, {phrase: concept for concept, phrase in modifiers.items()})

    @cached_property
    def _tokenizer_json(self) -> str:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((document.text for document in self._open), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
        return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)


def _random(*names: object) -> random.Random:
    """A generator of its own for each name; the same in every process, unlike Python's `hash`."""
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _kind(concept: str) -> str:
    return concept.partition(":")[0]


def _the_module(topic: str) -> str:
    return "the language" if topic == pydoc_text.LANGUAGE else topic


def _surface(token: str, call: bool, words: dict[str, str]) -> Iterator[str]:
    lower = token.lower()
    if lower in words:
        yield words[lower]
    if token[0].isdigit():
        yield "shape:number"
        return
    if not (token[0].isalpha() or token[0] == "_"):
        yield "shape:punctuation"
        if token in MARKS:
            yield MARKS[token][0]
        return
    if token[0].isupper():
        yield "shape:capital"
    if call or (_IDENTIFIER.fullmatch(token) and lower not in _ABBREVIATIONS):
        yield "shape:identifier"
    elif lower.isalpha():
        yield from (f"ending:{end}" for end in ENDINGS if lower.endswith(end) and len(lower) >= len(end) + STEM)


def _enclosed(text: str, spans: list[tuple[int, int]]) -> list[list[str]]:
    """For each span, whether it lies inside quotes and inside parentheses; the marks themselves lie outside.

    A parenthesis that never closes counts up to the end: texts may be cut.
    """
    quotes = [match.span() for match in _QUOTED.finditer(text)]
    opened = [start for start, _ in quotes]
    depth, enclosed = 0, []
    for start, end in spans:
        found = []
        quote = bisect_right(opened, start - 1) - 1  # the last one that opened before this span
        if quote >= 0 and end < quotes[quote][1]:
            found.append("shape:quoted")
        if text[start] == ")":
            depth = max(depth - (end - start), 0)
        if depth:
            found.append("shape:parenthesis")
        if text[start] == "(":
            depth += end - start
        enclosed.append(found)
    return enclosed


def _chunk(text: str, choice: random.Random) -> str:
    """One sentence of a text, with the next if it is short, cut after a clause if it is long."""
    sentences = list(pydoc_text.split_sentences(text))
    first = choice.randrange(len(sentences))
    words = sentences[first].split()
    if len(words) < LESSON_SHORT and first + 1 < len(sentences):
        words += sentences[first + 1].split()
    if len(words) <= LESSON_WORDS:
        return " ".join(words)
    clauses = [place for place in range(LESSON_WORDS // 3, LESSON_WORDS + 1) if words[place - 1][-1] in ",;:."]
    return " ".join(words[: clauses[-1] if clauses else LESSON_WORDS]).rstrip(",;:")
