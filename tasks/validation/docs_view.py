"""How Data Docs look: what Great Expectations says of a preference set, on pages without network or scripts.

GX's own views take tables, icons and styles from other hosts, so that an index is blank without a network, and put the
values that failed into the markup as they are, so that an explanation may be a script. `SiteView` is named as the
`view` in a site's configuration (tasks/validation/data_docs.py): GX still decides what is said, data_docs.html lays it
out. Jinja escapes everything, and a policy in each page forbids scripts and other hosts besides.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

# A parameter in a text of GX's, $name or ${name}; what has two dollars in front is text.
PARAMETER = re.compile(r"(?<!\$)\$(?:([_a-zA-Z][_a-zA-Z0-9]*)|\{([_a-zA-Z][_a-zA-Z0-9]*)\})")
ICONS = {"text-success": "✓ passed", "text-danger": "✗ failed", "text-warning": "! could not be evaluated"}
ICON_MARKUP = (
    "html_success_icon"  # a parameter that is GX's own markup for an icon; the status in words stands beside it
)
TAGS = ("code", "strong", "em")  # of GX's text that say something without a style
DEPTH = {"ExpectationSuitePageRenderer": 1, "ValidationResultsPageRenderer": 4}  # folders of a page below its site
UNKNOWN = "–"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what no page may hold; a value may, and shows it as \x00


class SiteView:
    """The view of every page of a site, its index included; GX makes one by the name of the class."""

    def render(self, document: Any, template: str | None = None, **options: Any) -> str:
        """A page of what GX's renderers made. It gives `options` about tutorials and its own service: not needed."""
        content = document if isinstance(document, dict) else document.to_json_dict()
        kind = str(content.get("renderer_type"))
        home = "../" * DEPTH.get(kind, 0)
        trail = [(f"{home}../index.html", "Preference sets")]
        if kind in DEPTH:
            trail.append((f"{home}index.html", "this round"))
        return page(content.get("page_title") or "Data Docs of a round", trail, sections=content["sections"])


def page(title: str, trail: list[tuple[str, str]], **content: Any) -> str:
    """A whole page: `trail` are links to the pages above it, address and text; `content` is `sections` or `rounds`."""
    environment = _environment()
    style = environment.get_template("data_docs.css").render()
    found = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    shown = {"sections": (), "rounds": None} | content
    text = environment.get_template("data_docs.html").render(
        title=title, trail=trail, style=Markup(style), style_hash=f"sha256-{found}", **shown
    )
    return CONTROL.sub(lambda hit: f"\\x{ord(hit[0]):02x}", text)


@cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files("tasks.validation") / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["sentence"] = sentence
    return found


def sentence(found: Mapping[str, Any]) -> Markup:
    """A text of GX's with its parameters, which carry the values; a parameter that it does not have stays as it is."""
    styling, params = found.get("styling") or {}, found.get("params") or {}

    def filled(hit: re.Match[str]) -> str:
        name = hit[1] or hit[2]
        return str(_parameter(name, params[name], styling)) if name in params else hit[0]

    text = Markup(PARAMETER.sub(filled, str(escape(found.get("template") or ""))))
    return _tagged(found.get("tag"), styling, text)


def _parameter(name: str, value: Any, styling: Mapping[str, Any]) -> Markup:
    if name == ICON_MARKUP:
        return Markup("")
    own = (styling.get("params") or {}).get(name)
    icons = [ICONS[each] for each in (own or {}).get("classes", ()) if each in ICONS]
    if icons and not value:
        return Markup('<b class="{}">{}</b>').format("good" if icons[0].startswith("✓") else "bad", icons[0])
    text = escape(UNKNOWN if value is None else value)
    if own:
        return _tagged(own.get("tag"), own, text)
    return Markup("<code>{}</code>").format(text) if "default" in styling else text


def _tagged(tag: str | None, styling: Mapping[str, Any], text: Markup) -> Markup:
    """The text as a link to another page of the site or under one of TAGS; as it is where GX asks for another."""
    address = str((styling.get("attributes") or {}).get("href", ""))
    if tag == "a" and re.match(r"[\w./%-]+$|#", address):  # no scheme, so no other host and no script
        return Markup('<a href="{}">{}</a>').format(address, text)
    return Markup("<{0}>{1}</{0}>").format(Markup(tag), text) if tag in TAGS else text
