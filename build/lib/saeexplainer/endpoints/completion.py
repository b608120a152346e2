"""What a server's answer to a chat completion says."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from saeexplainer.errors import UserError, first_line
from saeexplainer.models import replies
from saeexplainer.records import Usage

if TYPE_CHECKING:
    import httpx


TEXT_PARTS = ("text", "output_text")  # types of the parts of a content that are said to the user
CUT = ("length", "content_filter")  # finish_reason of a reply that ends before its end


@dataclass(frozen=True)
class Reply:
    """What the server said once."""

    text: str  # "" where it refused to speak
    finish: str | None  # why it ended, as the server says: stop, length, ...
    usage: Usage

    @property
    def answer(self) -> str:
        """What may be read of it; "" where it was cut before the JSON that was asked for is whole."""
        found = replies.answer(self.text)
        return "" if self.finish in CUT and not replies.ends_whole(found) else found


def first_text(choices: list[Any]) -> tuple[str, str | None]:
    """What the first choice says, and why it ended; "" where there is none, or no text in it. Of a content in parts the
    text counts; what a server puts into fields of its own for thoughts, or into calls of tools, is no answer."""
    try:
        content, finish = choices[0]["message"].get("content"), choices[0].get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        return "", None
    if isinstance(content, list):
        content = "".join(
            part["text"] for part in content
            if isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)
        )  # fmt: skip
    return content if isinstance(content, str) else "", finish if isinstance(finish, str) else None


def is_error(found: dict[str, Any]) -> bool:
    """Whether a reply with status 200 tells of an error, by itself or in its only choice, and of nothing else."""
    choices = found["choices"]
    inner = choices[0] if choices and isinstance(choices[0], dict) else {}
    return bool(found.get("error")) and not choices or bool(inner.get("error")) or inner.get("finish_reason") == "error"


def no_completion(response: "httpx.Response") -> str:
    """What is said of an answer that is no chat completion."""
    if response.text.lstrip().startswith("<"):
        return "a page instead of a chat completion (does base_url lack its /v1? does a login stand before it?)"
    return "a reply that is no chat completion"


def why_cut(finish: str | None) -> str:
    """What to do about an answer that was cut."""
    if finish == "length":
        return ", cut at its limit of tokens (raise max_tokens in request, or let the model think less)"
    return f", cut ({finish})" if finish in CUT else ""


def completions(base_url: str, where: str) -> str:
    """The address that is asked. Raises UserError, which does not repeat it: it may hold a key."""
    import httpx

    try:
        parts = urlsplit(base_url)
        return str(httpx.URL(parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()))
    except (ValueError, httpx.InvalidURL) as error:
        raise UserError(
            f"{where}.endpoint.base_url: is no address ({first_line(error)}); give one like https://host/v1"
        ) from None


def whole(value: Any) -> Any:
    """A number without a fraction as an integer, which some servers insist on."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
