"""Markdown and reStructuredText as plain text: what is said stays, how it is set goes."""

import re

# Blocks of code and of HTML, comments, pictures: dropped.
_BLOCKS = re.compile(
    r"^ *(```|~~~).*?^ *\1[^\n]*$|<!--.*?-->|<(pre|table|svg|script|style|details)\b.*?</\2>", re.M | re.S | re.I
)
_PICTURE = re.compile(r"\[?!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])?(?:\]\([^)]*\))?")
_HEADING = re.compile(r"^ *#{1,6} .*$", re.M)
# What stands for itself within a line: (a character without which there is none, the pattern, what stays of it).
_WITHIN = (
    ("](", re.compile(r"\[([^\]\n]+)\]\([^)\s]*(?: \"[^\"]*\")?\)"), r"\1"),  # [text](address)
    ("][", re.compile(r"\[([^\]\n]+)\]\[[^\]\n]*\]"), r"\1"),  # [text][address]
    (">`", re.compile(r"`([^`<\n]+?) *<[^`>\n]+>`__?"), r"\1"),  # `text <address>`_
    (":`", re.compile(r":(?:[a-z]+:)*[a-z]+:`[~!]?\.?([^`<\n]+?)(?: *<[^`>\n]+>)?`"), r"\1"),  # :role:`name`
    ("<", re.compile(r"</?[a-zA-Z][^<>\n]*>"), " "),  # a tag
    ("*", re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*\n]+?)(?<=\S)\*{1,2}(?![\w*])"), r"\1"),  # *emphasis*
    ("`", re.compile(r"(?<!`)(`{1,2})([\w.\- ]+)\1(?!`)(?:__?)?"), r"\2"),  # `literal`
    ("\\", re.compile(r"\\([*_`#.])"), r"\1"),
    ("]", re.compile(r" *\[\d+\]_?"), ""),  # a footnote
)


def plain(text: str) -> str:
    """The text without its markup; headings, code, pictures and tags are left out."""
    for dropped in (_BLOCKS, _PICTURE, _HEADING):
        text = dropped.sub("", text)
    for sign, pattern, kept in _WITHIN:
        if sign in text:
            text = pattern.sub(kept, text)
    return text
