"""The words of the sandbox: what kinds there are, which categories, and how a surface form such as `dogs` is read.

Every word belongs to one category only, and every noun and verb takes a plain `s`, so that a text can be read back
without doubt (see `analysis`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

NOUNS: Mapping[str, tuple[str, ...]] = {
    category: tuple(words.split())
    for category, words in {
        "animal": "dog cat horse cow pig goat rabbit tiger lion bear zebra camel elephant giraffe squirrel beaver "
        "badger otter hedgehog panda",
        "bird": "hen duck eagle falcon hawk owl parrot pigeon robin raven crow swan sparrow penguin pelican heron "
        "magpie seagull vulture woodpecker",
        "insect": "ant bee beetle spider moth wasp cricket locust termite hornet caterpillar centipede grasshopper "
        "bumblebee earwig flea gnat tick scorpion cicada",
        "tool": "hammer saw chisel screwdriver drill shovel spade rake axe ladder crowbar mallet trowel anvil sickle "
        "clamp pickaxe hoe lever spanner",
        "food": "apple pear banana carrot onion cookie burger pizza pancake muffin biscuit pie cake egg sausage waffle "
        "dumpling noodle pretzel omelette",
        "drink": "tea coffee juice cocktail lemonade soda cola beer wine cider cocoa latte milkshake smoothie tonic "
        "liqueur champagne lager nectar martini",
        "vehicle": "car truck van bicycle tram train boat ship canoe tractor scooter plane helicopter rocket submarine "
        "motorcycle wagon sled kayak yacht",
        "clothing": "shirt coat hat sock shoe boot glove skirt jacket sweater belt cap sandal apron mitten blouse gown "
        "vest robe cardigan",
        "furniture": "table chair sofa bed desk stool cupboard wardrobe lamp mirror cabinet bookcase dresser armchair "
        "cradle hammock cushion pillow carpet curtain",
        "instrument": "piano violin guitar flute drum trumpet harp cello clarinet trombone tuba accordion oboe "
        "saxophone lute viola tambourine harmonica mandolin bassoon",
        "building": "house tower castle cottage cabin hotel palace temple cathedral skyscraper mansion hut lighthouse "
        "warehouse pagoda chapel villa bungalow pavilion windmill",
        "plant": "rose tulip oak pine fern orchid maple willow cedar clover sunflower thistle daffodil elm shrub reed "
        "dandelion hyacinth marigold geranium",
        "profession": "doctor teacher farmer baker sailor pilot nurse lawyer singer dancer painter soldier plumber "
        "carpenter tailor barber butcher priest judge engineer",
        "body": "arm leg hand head nose ear eye knee elbow finger thumb toe shoulder chin neck ankle wrist lip heart "
        "tongue",
        "container": "bag basket bottle bucket barrel jar cup mug pot crate suitcase trunk vase jug kettle backpack "
        "purse bowl wallet tub",
        "toy": "doll kite puppet marble balloon puzzle ball robot rattle trampoline skateboard domino frisbee "
        "boomerang slingshot hoop spinner figurine dart jigsaw",
        "jewel": "diamond emerald sapphire pearl opal ring bracelet necklace earring crown pendant amulet tiara medal "
        "coin bangle locket garnet amethyst trinket",
        "document": "book letter novel poem map magazine newspaper ticket notebook poster postcard calendar passport "
        "contract recipe scroll leaflet receipt manuscript textbook",
    }.items()
}

VERBS: Mapping[str, tuple[str, ...]] = {
    category: tuple(words.split())
    for category, words in {
        "motion": "chase follow pull drag lift drop throw kick roll shove hurl bounce steer tow hoist lower haul "
        "deliver",
        "perception": "see hear notice observe smell taste feel detect inspect examine spot glimpse recognize discover "
        "perceive overhear view behold",
        "creation": "build make paint draw bake cook knit weave carve design create repair assemble forge shape "
        "prepare produce decorate",
        "harm": "break bite hit tear burn cut stab wreck attack poke injure spoil ruin crack bend shatter puncture "
        "dent",
        "emotion": "love hate fear admire adore trust want need prefer despise resent dislike forgive respect praise "
        "desire loathe appreciate",
        "commerce": "sell steal borrow lend rent trade order receive offer purchase collect return share import export "
        "donate demand win",
    }.items()
}

ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    category: tuple(words.split())
    for category, words in {
        "color": "red blue green white black brown purple pink gray orange golden scarlet crimson",
        "size": "big small huge tiny large tall short wide narrow enormous long little thick",
        "mood": "happy sad angry calm proud jealous cheerful nervous gentle brave shy lonely grumpy",
        "material": "wooden metal plastic leather silver glass paper stone cotton velvet bronze ceramic iron",
        "condition": "old new young ancient modern broken clean dirty rusty dusty fresh rotten wet",
        "texture": "soft hard smooth rough sharp heavy light warm cold hot sticky slippery fragile",
    }.items()
}

ADVERBS = tuple(
    "quickly slowly quietly loudly carefully happily sadly angrily often rarely always sometimes gently secretly "
    "eagerly lazily bravely suddenly calmly politely rudely today again daily clumsily proudly patiently openly".split()
)
PLACES = tuple(
    "barn garden kitchen park forest market school hospital harbor theater museum station airport tunnel desert canyon "
    "cellar attic stadium workshop village meadow office cave restaurant street island courtyard".split()
)
NAMES = tuple(
    "anna ben clara david emma felix greta henry ida jacob karen leo maria nina oscar paula quentin rosa simon tina "
    "ulrich vera walter yuri zoe alice bruno diana".split()
)
NUMBERS = tuple("two three four five six seven eight nine ten eleven twelve".split())

DETERMINERS = ("the", "this", "every", "many", "some", "these")
FUNCTION_WORDS = (*DETERMINERS, "is", "are", "does", "do", "not", "in", "says")
STOP, QUESTION_MARK, QUOTE_MARK = ".", "?", '"'
MARKS: Mapping[str, str] = {STOP: "stop", QUESTION_MARK: "question", QUOTE_MARK: "quote"}

# Two noun categories by nature; a world adds a third by its seed, and chooses the words.
TOPICS: Mapping[str, tuple[str, str]] = {
    "farming": ("animal", "tool"),
    "cooking": ("food", "container"),
    "music": ("instrument", "furniture"),
    "travel": ("vehicle", "document"),
    "medicine": ("body", "profession"),
    "construction": ("building", "tool"),
    "fashion": ("clothing", "jewel"),
    "gardening": ("plant", "insect"),
    "hunting": ("bird", "animal"),
    "education": ("document", "toy"),
    "celebration": ("drink", "food"),
    "crime": ("jewel", "profession"),
    "housekeeping": ("furniture", "container"),
    "sport": ("toy", "body"),
}

# Kinds of word, as the grammar sees them.
NOUN, VERB, ADJECTIVE, ADVERB, PLACE, NAME, NUMBER = "noun", "verb", "adjective", "adverb", "place", "name", "number"
DETERMINER, AUXILIARY, MARK = "determiner", "auxiliary", "mark"


@dataclass(frozen=True)
class Entry:
    """How one surface form is read."""

    base: str  # the word without its suffix
    kind: str  # NOUN, VERB, ...
    category: str | None  # `animal`, `motion`, ...; None for function words and marks
    suffixed: bool = False  # whether the surface is base + "s"


def _grouped(groups: Mapping[str, tuple[str, ...]], kind: str) -> list[Entry]:
    return [Entry(word, kind, category) for category, words in groups.items() for word in words]


def _content_entries() -> list[Entry]:
    alone = ((ADVERBS, ADVERB), (PLACES, PLACE), (NAMES, NAME), (NUMBERS, NUMBER))
    return [
        *_grouped(NOUNS, NOUN),
        *_grouped(VERBS, VERB),
        *_grouped(ADJECTIVES, ADJECTIVE),
        *(Entry(word, kind, kind) for words, kind in alone for word in words),
    ]


def _function_entries() -> list[Entry]:
    return [
        *(Entry(word, DETERMINER if word in DETERMINERS else AUXILIARY, None) for word in FUNCTION_WORDS),
        *(Entry(mark, MARK, None) for mark in MARKS),
    ]


def _surfaces() -> dict[str, Entry]:
    entries = [*_content_entries(), *_function_entries()]
    bare = {entry.base: entry for entry in entries}
    inflected = {
        entry.base + "s": Entry(entry.base, entry.kind, entry.category, suffixed=True)
        for entry in entries
        if entry.kind in (NOUN, VERB)
    }
    return {**inflected, **bare}


CONTENT_ENTRIES = tuple(_content_entries())
CONTENT_WORDS = tuple(entry.base for entry in CONTENT_ENTRIES)
CATEGORIES = tuple(dict.fromkeys(entry.category for entry in CONTENT_ENTRIES if entry.category))
SURFACES: Mapping[str, Entry] = _surfaces()
