"""The one exception that a user's mistake raises; the entry points print it as a single line."""


class UserError(Exception):
    """A mistake that the user can mend: the message names the file or field, the value, and what to change."""


SHOWN = 300  # characters of what a library says that a message repeats


def first_line(error: Exception) -> str:
    """Of a library's message, with the next where it only leads up to that; the error's kind where there is none. A
    message that repeats a whole file is cut."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return (f"{first} {others[0].strip()}" if others and first.endswith(":") else first)[:SHOWN]
