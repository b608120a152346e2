"""Great Expectations itself: one context in memory runs suites and renders Data Docs; `make docs` opens them.

    sae-explainer data-docs [--no-open]

Every round has a site of its own, reports/data_docs/<round>, written whole by its validate_preferences;
reports/data_docs/index.html leads to them. They are no DVC outputs, because they carry the time they were written:
this command writes those that are missing, or of other pairs than are there now, from the artifacts. Then it opens the
index where there is a display, or prints its path.
"""

import hashlib
import shutil
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer.runs.storage import read_json, replacing
from tasks.places import DATA_DOCS, ROUNDS
from tasks.validation import docs_view

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation


VERDICT = "verdict.json"  # beside a round's index.html: what the index over rounds says of it
LEVELS = {"pair": "single pairs", "measured": "measured rewards", "set": "the set"}  # of a suite, and what it is about
ROW = "row"  # position of a pair in pairs.parquet: the column by which suites about pairs name what fails


@dataclass(frozen=True)
class Outcome:
    """The verdict of one expectation."""

    name: str  # of the rule; what quarantine.parquet gives as the reason
    column: str  # of the table that GX saw, derived columns included
    expectation: str  # GX's type
    level: str  # pair, measured or set
    success: bool
    unexpected_count: int  # pairs that fail; for a set 0 or 1
    observed: float | None  # share of pairs that fail, or the value of the set; None if there is nothing to look at
    rows: tuple[int, ...]  # the pairs that fail


class Validator:
    """One GX context in memory, whose Data Docs go to a folder."""

    def __init__(self, docs: Path) -> None:
        """`docs` receives the HTML once `write_docs` is called."""
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        view = {"module_name": docs_view.__name__, "class_name": docs_view.SiteView.__name__}
        site = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "view": view},
            "site_section_builders": {section: {"view": view} for section in ("expectations", "validations")},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        }
        config = DataContextConfig(
            data_docs_sites={"preferences": site},
            # Its own site would leave a temporary folder behind with every run.
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
        )
        self._docs = docs
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._source = self._context.data_sources.add_pandas("preferences")

    def check(
        self, level: str, frame: "pd.DataFrame", expectations: "Sequence[Expectation]", notes: str = ""
    ) -> list[Outcome]:
        """Run one suite on one table; outcomes in the order of the expectations. `notes` say what was not checked.

        Raises RuntimeError if GX fails to evaluate an expectation, which is not the data's fault.
        """
        import great_expectations as gx

        rows = [ROW] if level != "set" else []
        suite = gx.ExpectationSuite(name=f"{level}s", expectations=list(expectations), notes=notes or None)
        batch = self._source.add_dataframe_asset(f"{level}s").add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(name=f"{level}s", data=batch, suite=self._context.suites.add(suite))
        validation = self._context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": rows},
        )
        found = {result.expectation_config.meta["rule"]: result for result in validation.results}
        return [_outcome(level, len(frame), found[expectation.meta["rule"]]) for expectation in expectations]

    def write_docs(self) -> None:
        """Render everything that was checked; the slower half of the work."""
        self._context.build_data_docs(site_names=["preferences"])
        shutil.rmtree(self._docs / "static", ignore_errors=True)  # fonts and animations of GX's own views: 3 MB a site


def _outcome(level: str, lines: int, result: Any) -> Outcome:
    config, details = result.expectation_config, result.result
    rows = tuple(sorted({int(entry[ROW]) for entry in details.get("unexpected_index_list") or []}))
    observed = details.get("observed_value") if level == "set" else (len(rows) / lines if lines else None)
    if not result.success and (observed is None if level == "set" else not rows):
        raise RuntimeError(f"Great Expectations could not evaluate {config.meta['rule']}: {result.exception_info}")
    return Outcome(
        name=config.meta["rule"],
        column=config.kwargs.get("column") or config.kwargs["column_A"],
        expectation=config.type,
        level=level,
        success=bool(result.success),
        unexpected_count=int(not result.success) if level == "set" else len(rows),
        observed=None if observed is None else float(observed),
        rows=rows,
    )


def fingerprint(pairs: Path) -> str:
    """Of a table of pairs: by it the pages of a set are told from those of another that was there before."""
    return hashlib.sha256(pairs.read_bytes()).hexdigest()


def is_up_to_date(name: str) -> bool:
    """Whether a round has pages, and they are of the pairs that are there now."""
    pairs, verdict = ROUNDS / name / "pairs.parquet", DATA_DOCS / name / VERDICT
    return pairs.is_file() and verdict.is_file() and read_json(verdict)["pairs"] == fingerprint(pairs)


def write_index(rounds: Sequence[str]) -> Path:
    """The page over the rounds' sites, for those that have one, in this order."""
    lines = [
        read_json(DATA_DOCS / name / VERDICT)
        | {"name": name, "address": f"{name}/index.html", "pages": _results_of(name)}
        for name in rounds
        if (DATA_DOCS / name / VERDICT).is_file()
    ]
    with replacing(DATA_DOCS / "index.html") as temporary:
        temporary.write_text(docs_view.page("Preference sets", [], rounds=lines), encoding="utf-8")
    return DATA_DOCS / "index.html"


def _results_of(name: str) -> list[tuple[str, str]]:
    """Address, from the index over rounds, and text of each suite's results; GX names their files by the time."""
    found = [
        (path.relative_to(DATA_DOCS).as_posix(), about)
        for level, about in LEVELS.items()
        for path in sorted((DATA_DOCS / name / "validations" / f"{level}s").rglob("*.html"))
    ]
    return [(urllib.parse.quote(address), about) for address, about in found]
