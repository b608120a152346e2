"""Text from a model or a file as it may be shown in a terminal: what would move the cursor is written out instead.

A token may be a line break, and a file of others may hold any control code. Here these become Python's escapes (`\\n`,
`\\x1b`), so that a line stays a line and a terminal stays as it was. Letters that a terminal cannot encode are another
matter, which the streams' own error handler settles.
"""

import sys


def printable(text: str) -> str:
    """The text with every character written out that has no shape of its own: control codes, line breaks and marks that
    turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def one_line(message: object) -> str:
    """What an error says, as one line that a terminal can show."""
    return printable(" ".join(str(message).split()))


def failed(error: object) -> int:
    """Say on stderr, in one line, what a person has to change; the exit status that goes with it."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2
