"""The one exception that a user's mistake raises; the entry points print it as a single line."""


class UserError(Exception):
    """A mistake that the user can mend: the message names the file or field, the value, and what to change."""
