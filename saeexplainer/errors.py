"""The one exception that a user's mistake raises; the entry points print it as a single line."""


class UserError(Exception):
    """A mistake that the user can mend: the message names the file or field, the value, and what to change."""


def first_line(error: Exception) -> str:
    """Of a library's message; the error's kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
