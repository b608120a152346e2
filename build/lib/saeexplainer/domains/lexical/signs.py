"""The surface of English-like text: what a word, a number or a mark is, and the signs that concepts are built on.

What ends in `_FURTHER` belongs to text from outside. Python's documentation needs less of it, and its concepts stay
what they were, because results depend on them.
"""

import re

# A name or word (with its apostrophe), a number, or one punctuation mark (repeated: `...` is one); marks are group 1.
SPAN = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:'[a-z]+\b)?|\d+(?:[.,:]\d+)*\w*|([^\w\s])\1*")
# The same with line breaks, which models read as tokens.
SPAN_FURTHER = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:'[a-z]+\b)?|\d+(?:[.,:]\d+)*\w*|(([^\w\s])\2*|\n+)")
# Typographic characters as the ASCII character that means the same; one for one, so that offsets stay.
PLAIN = str.maketrans("“”„«»‘’‐‑–\xa0", '"""""\'\'--- ')

SHAPES = {
    "shape:number": "a number",
    "shape:capital": "a capitalised word",
    "shape:identifier": "an identifier",
    "shape:punctuation": "a punctuation mark",
    "shape:quoted": "text in quotes",
    "shape:parenthesis": "text in parentheses",
}
SHAPES_FURTHER = {"shape:capitals": "a word in capitals"}
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
MARKS_FURTHER = {
    "?": ("mark:question", "a question mark"),
    "!": ("mark:exclamation", "an exclamation mark"),
    "'": ("mark:apostrophe", "an apostrophe"),
    "/": ("mark:slash", "a slash"),
    "\\": ("mark:backslash", "a backslash"),
    "%": ("mark:percent", "a percent sign"),
    "$": ("mark:dollar", "a dollar sign"),
    "&": ("mark:and", "an ampersand"),
    "#": ("mark:hash", "a hash sign"),
    "*": ("mark:asterisk", "an asterisk"),
    "+": ("mark:plus", "a plus sign"),
    "=": ("mark:equals", "an equals sign"),
    "<": ("mark:less", "a less-than sign"),
    ">": ("mark:greater", "a greater-than sign"),
    "[": ("mark:bracket", "an opening bracket"),
    "]": ("mark:unbracket", "a closing bracket"),
    "{": ("mark:brace", "an opening brace"),
    "}": ("mark:unbrace", "a closing brace"),
    "—": ("mark:dash", "a dash"),
    "--": ("mark:dash", "a dash"),
    "…": ("mark:ellipsis", "an ellipsis"),
    "...": ("mark:ellipsis", "an ellipsis"),
    "\n": ("mark:line", "a line break"),
    "\n\n": ("mark:paragraph", "a paragraph break"),
}

STEM = 3  # letters a word has before its ending: `thing` and `only` do not count
ENDINGS = ("able", "al", "ed", "ence", "er", "ing", "ity", "ive", "ly", "ment", "ness", "or", "ous", "s", "tion")
ENDINGS_FURTHER = (
    "age", "an", "ance", "ant", "ary", "ate", "dom", "en", "ent", "est", "ful", "hood", "ible", "ic", "ies", "ify",
    "ings", "ion", "ions", "ish", "ism", "ist", "ize", "ized", "less", "logy", "man", "ology", "ship", "sion", "th",
    "ure", "ward", "y",
)  # fmt: skip

# Words that say nothing about what a text is about: no concept about a nearby word or a topic is built on them.
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
_FUNCTION_WORDS_FURTHER = (
    "ain't although am among around aren't away back can't couldn't didn't down ever first get gets getting go goes "
    "going got hadn't hasn't haven't he's him himself i'd i'll i'm i've let let's made make makes many mine mr mrs ms "
    "new next old quite really said say says shouldn't someone something that's there's they're they've very wasn't "
    "we'll we're we've weren't well went whom won't wouldn't you'll you're you've yours"
)
FUNCTION_WORDS_FURTHER = FUNCTION_WORDS | frozenset(_FUNCTION_WORDS_FURTHER.split())

# snake_case, dotted.names and camelCase.
IDENTIFIER = re.compile(r"\w*_\w*|[^\W\d]\w*\.[\w.]+|\w*[a-z][A-Z]\w*")
ABBREVIATIONS = frozenset({"e.g", "i.e", "a.k.a"})  # as SPAN cuts them: not dotted names
PLURAL = ("(s)", "(es)", "(ies)")  # `file(s)` is no call
# Quotation marks that belong together; an apostrophe inside a word opens and closes nothing.
QUOTED = re.compile(r"\"[^\"]+\"|``[^`]+``|(?<![\w'])'[^']+'(?![\w'])|(?<!`)`[^`']+[`']")
