"""Progress as plain lines instead of bars where stderr is no terminal: in a log, in CI, in a file.

    texts at temperature 0.4: 35 % (1200 of 3400), 12 s, about 22 s left

Every bar of a stage is tqdm's: this project's, those of TRL's and transformers' trainers, of sae-lens and datasets. So
`install` changes how tqdm shows itself in this process, and no library module knows of it. A bar says something at most
every `EVERY` seconds and once more at its end; one that is done sooner says nothing. In a terminal bars stay bars.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable

EVERY = 10.0  # seconds between two lines of a bar
TWO_MINUTES, TWO_HOURS = 120, 7200  # seconds from which on minutes and hours read better

_label = "progress"  # of bars without a description, as the trainers' are


def install(label: str) -> None:
    """Show the bars of this process as lines if stderr is no terminal; `label` names those that have no name."""
    global _label
    _label = label
    if sys.stderr.isatty():
        return
    from tqdm.std import tqdm

    if tqdm.display is _display:
        return
    tqdm.__init__ = _started(tqdm.__init__)
    tqdm.display, tqdm.close = _display, _close
    tqdm.clear = tqdm.moveto = lambda *_, **__: None  # both only write control characters


def silence() -> None:
    """No bars in this process: one of several that all do the same says where they are."""
    os.environ["TQDM_DISABLE"] = "1"


def quiet_libraries() -> None:
    """Without what libraries say that a user can do nothing about: each time that a connection to the hub is tried
    again (what comes of it is one line), and that TRL calls a setting of transformers by its old name."""
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)


def close_bars() -> None:
    """End every open bar, so that what is printed next stands alone: a failing loop leaves its bar open."""
    if "tqdm.std" not in sys.modules:
        return
    from tqdm.std import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def line(name: str, done: float, total: float | None, initial: float, elapsed: float, detail: str = "") -> str:
    """What a bar says: its share, its counts, seconds gone, and seconds left if this goes on as before."""
    parts = [f"{done:.0f}" if not total else f"{100 * done / total:.0f} % ({done:.0f} of {total:.0f})"]
    parts.append(duration(elapsed))
    if total and initial < done < total:
        parts.append(f"about {duration(elapsed * (total - done) / (done - initial))} left")
    return " ".join(f"{name}: {', '.join([*parts, *([detail] if detail else [])])}".split())


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < TWO_MINUTES:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < TWO_HOURS else f"{seconds / 3600:.1f} h"


def _started(original: Callable[..., None]) -> Callable[..., None]:
    """A bar that asks to be off without a terminal (`disable=None`) is on: it will be lines."""

    def start(bar, *arguments, **settings) -> None:
        if settings.get("disable", False) is None and not os.environ.get("TQDM_DISABLE"):
            settings["disable"] = False
        original(bar, *arguments, **settings)

    return start


def _display(bar, msg=None, pos=None) -> bool:
    """tqdm's own hook for other ways to show a bar; called many times a second."""
    now = bar.format_dict
    if not hasattr(bar, "line_name"):
        # Kept from the start: sae-lens writes its losses over the name later.
        bar.line_name, bar.line_at = now["prefix"] or _label, 0.0
    closing = bar.disable
    complete = now["total"] and now["n"] >= now["total"]  # is said once, when the bar is closed
    if closing or (msg is None and not complete and now["elapsed"] - bar.line_at >= EVERY):
        bar.line_at = now["elapsed"]
        detail = now["postfix"] or ("" if now["prefix"] in ("", bar.line_name) else now["prefix"])
        text = line(bar.line_name, now["n"], now["total"], now["initial"], now["elapsed"], detail)
        print(text, file=sys.stderr, flush=True)
    return True


def _close(bar) -> None:
    """The last line, of a bar that had one before or would be due one."""
    if getattr(bar, "disable", True):
        return
    bar.disable = True
    bar._decr_instances(bar)
    if bar.format_dict["elapsed"] >= EVERY:
        bar.display()
