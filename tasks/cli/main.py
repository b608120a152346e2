"""`sae-explainer`: ask, list, exchange, compose, plan, add rounds, count, fill MLflow, repeat the study, check.

Every mistake is one line on stderr and exit status 2. Commands import what they need as they run: `--help` is quick.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from saeexplainer.endpoints import web
from saeexplainer.errors import UserError
from saeexplainer.records import NOT_EXPLAINED
from tasks.cli import tracking
from tasks.cli.attribute import attribute
from tasks.places import REPORT
from tasks.workspace import progress, surroundings
from tasks.workspace.printable import failed, printable

CHAMPION = "champion"

app = typer.Typer(
    name="sae-explainer",
    help="Explain SAE features, list and exchange them, compose and plan settings, add rounds, check this machine; run "
    "where params.yaml lies.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # to a command line of its own
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command(short_help="Say what a feature encodes.")
def explain(
    feature: Annotated[
        list[str],
        typer.Option(metavar="INDEX|ID", help="Index in the explained SAE, or subject/sae/index. May be repeated."),
    ],
    explainer: Annotated[
        str,
        typer.Option(metavar="NAME|FOLDER", help="champion, one of data/explainers such as r1, or a model's folder."),
    ] = CHAMPION,
    min_expected: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, metavar="X", help="Only explanations whose expected generative accuracy is at least this."
        ),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Say what a feature encodes, and the share of texts written from that which is expected to make it fire.

    Example: sae-explainer explain --feature 123 --explainer r2 --min-expected 0.5
    """
    from saeexplainer.records import FeatureRow
    from saeexplainer.runs.storage import read_rows
    from tasks.cli import explain as local
    from tasks.settings import params

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its remarks on settings are no answer
    progress.install("explain")
    rows, settings = read_rows(local.FEATURES, FeatureRow), params.load()
    wanted = [local.find(one, rows, settings) for one in feature]
    if explainer == CHAMPION:
        from tasks.tracking import champion

        answers = champion.explain(wanted, explainer)
    else:
        answers = local.explain(wanted, explainer)
    # What is expected is unknown where a served writer failed: enough only where nothing is asked for.
    trusted = [row for row in answers if not min_expected or (row.expected_accuracy or 0.0) >= min_expected]
    if len(trusted) < len(answers):
        held_back = f"{len(answers) - len(trusted)} of {len(answers)} held back"
        print(f"{held_back}: expected accuracy below {min_expected:g}", file=sys.stderr)
    records = [{name: getattr(row, name) for name in local.Explained.__annotations__} for row in trusted]
    if as_json:
        print(json.dumps(records, indent=2))
        return
    for record in records:
        print(printable(f"{record['feature_id']}: {record['explanation'] or '(nothing)'}"))
        expected = record["expected_accuracy"]
        said = "unknown, because every call for its texts failed" if expected is None else f"{expected:.3f}"
        print(f"    expected accuracy {said}, by {explainer}")


@app.command(short_help="List the live features.")
def features(
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="Only this: sft, dpo, valid or test.")] = None,
    search: Annotated[
        str, typer.Option(metavar="TEXT", help="Only features whose id, tokens or explanations hold this text.")
    ] = "",
    sort: Annotated[str, typer.Option(metavar="KEY", help="index, or density or maximum (largest first).")] = "index",
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="How many at most; 0 is all.")] = 20,
    sae: Annotated[str | None, typer.Option(metavar="NAME", help="The SAE; else the one that is explained.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the live features: what they fire on, and what the labels and each round say of them.

    Example: sae-explainer features --search question --sort density --limit 5
    """
    from dataclasses import asdict

    from tasks.cli import features as cli_features
    from tasks.settings import params

    names = [spec.name for spec in params.load().prepare_sae.saes]
    _choose("--sort", sort, cli_features.SORTS)
    _choose("--sae", sae or names[0], names)
    _choose("--split", split or "test", ("sft", "dpo", "valid", "test", *NOT_EXPLAINED))
    found = cli_features.listed(sae or names[0], split, search, sort)
    shown = found[:limit] if limit else found
    if as_json:
        print(json.dumps([asdict(feature) for feature in shown], indent=2))
        return
    print("\n".join(cli_features.table(shown)))
    print(f"{len(shown)} of {len(found)} features" + (", --limit 0 shows all" if len(shown) < len(found) else ""))


def _choose(option: str, value: str, known: list[str] | tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} {value}: unknown; choose from {', '.join(known)}")


Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier command wrote there.")]


@app.command("import", short_help="Bring explanations from elsewhere.")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER", help="JSON or JSON lines, .gz or not: docs/EXCHANGE.md. May be several."),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the tables; else after the file or its folder.")
    ] = None,
    under: Annotated[
        str | None, typer.Option("--as", metavar="SUBJECT/SAE", help="What the files call otherwise is this SAE here.")
    ] = None,
    force: Force = False,
) -> None:
    """Make a table of explanations from files, to train on or to compare with.

    Example: sae-explainer import neuronpedia.jsonl --as llama/main
    """
    from tasks.cli import exchange

    print("\n".join(exchange.import_files(files, name, under, force)))


@app.command(short_help="Take explanations or pairs away.")
def export(
    what: Annotated[
        str, typer.Option(metavar="WHAT", help="explanations, as JSON lines, or preferences, as a folder.")
    ],
    to: Annotated[Path, typer.Option(metavar="PATH", help="What to write.")],
    evaluation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose explanations, with scores; else the labels.")
    ] = None,
    imported: Annotated[str | None, typer.Option(metavar="NAME", help="The records of an import, instead.")] = None,
    preference_round: Annotated[
        str | None, typer.Option("--round", metavar="NAME", help="Whose preferences; else the last round's.")
    ] = None,
    force: Force = False,
) -> None:
    """Write explanations in the shape that Neuronpedia's users exchange, or a preference set for datasets.load_dataset.

    Example: sae-explainer export --what explanations --evaluation r2 --to r2.jsonl
    """
    from tasks.cli import exchange

    _choose("--what", what, ("explanations", "preferences"))
    given = {"--evaluation": evaluation, "--imported": imported, "--round": preference_round}
    wanted = ("--round",) if what == "preferences" else ("--evaluation", "--imported")
    others = [option for option, value in given.items() if value is not None and option not in wanted]
    if others or (evaluation and imported):
        raise UserError(f"{(others or ['--imported'])[0]}: does not go with the other options; leave it out")
    if what == "preferences":
        print(exchange.export_preferences(preference_round, to, force))
    elif imported is not None:
        print(exchange.export_imported(imported, to, force))
    else:
        print(exchange.export_explanations(evaluation, to, force))


@app.command(short_help="Write params.yaml from conf/.", context_settings={"ignore_unknown_options": True})
def compose(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, such as experiment=pydoc or train_sft.epochs=3.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE")] = Path("params.yaml"),
    keep: Annotated[bool, typer.Option("--keep", help="Change FILE as it is: its experiment and values stay.")] = False,
) -> None:
    """Write params.yaml from conf/, or with --keep change the one that is there; the same as sae-explainer compose.

    Example: sae-explainer compose experiment=nano seed=3
    """
    from tasks.settings import compose as composing

    raise typer.Exit(composing.main([*(overrides or []), "--output", str(output), *["--keep"] * keep]))


@app.command(short_help="Add rounds while they are worth it.")
def rounds(
    at_most: Annotated[
        int, typer.Option("--at-most", min=1, metavar="N", help="Rounds in all, with those that params.yaml has.")
    ],
) -> None:
    """Bring the pipeline up to date and add rounds to params.yaml while the last one was worth it on valid features.

    Example: sae-explainer rounds --at-most 5
    """
    from tasks.cli import rounds as preference_rounds

    surroundings.unwind_on_sigterm()
    print(f"rounds: {preference_rounds.run(at_most)}")


app.command(short_help="Ask what preferences say of sentences alone.")(attribute)


@app.command(short_help="Show the report page.")
def report(
    browser: Annotated[bool, typer.Option(help="Open it in the browser; without a terminal it is only named.")] = True,
) -> None:
    """Show the report page. Builds nothing: dvc repro does."""
    import webbrowser

    if not REPORT.is_file():
        raise UserError(f"{REPORT}: not there yet; run `dvc repro` to make it")
    print(REPORT.resolve())
    if browser and sys.stdout.isatty():
        webbrowser.open(REPORT.resolve().as_uri())


@app.command(short_help="Say what the explanations cost.")
def costs(as_json: AsJson = False) -> None:
    """Say what the result in reports/ cost: each stage, a validated pair of each round, an explanation.

    Money needs a price: sae-explainer compose compare_rounds.prices.machine_hour=USD
    """
    from dataclasses import asdict

    from saeexplainer.costs.bills import table
    from tasks import costs as spent
    from tasks.settings import params
    from tasks.workspace import timings

    bill = spent.bill(params.load(), timings.of_results())
    if as_json:
        print(json.dumps(asdict(bill), indent=2))
        return
    print("\n".join(table(bill)))


@app.command("plan", short_help="Say what an experiment will take.")
def plan_experiment(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, such as experiment=pydoc or prepare_sae.steps=900.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER", help="Of conf/shapes.yaml, or with config.json; else as the settings say."),
    ] = None,
    hardware: Annotated[str, typer.Option(metavar="NAME", help="Of conf/throughput.yaml.")] = "cpu-2-cores",
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of the weights, such as bfloat16; else as the settings say.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of adapters, 0: all weights; else as the settings say.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Training keeps block inputs alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what an experiment will take: memory, calls, tokens, hours and money by stage. Runs nothing, writes nothing.

    Example: sae-explainer plan experiment=default --model llama-3.1-8b --dtype bfloat16 --lora-rank 32
    """
    from saeexplainer.costs.plan import table
    from tasks.cli import plan

    if dtype is not None:
        _choose("--dtype", dtype, list(plan.BYTES))
    found = plan.answer(overrides or [], plan.Choice(model, dtype, lora_rank, checkpointing, hardware))
    if as_json:
        print(plan.as_json(found))
        return
    print(f"{found.parameters:,} parameters, {found.dtype}; GiB at the peak")
    print("\n".join([*table(found.plan), *found.notes]))


@app.command("data-docs", short_help="Open what was checked in preference sets.")
def data_docs(
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open them in the browser, or only say where.")] = True,
) -> None:
    """Write the Data Docs of preference sets that are missing, and open them."""
    from tasks.cli import readme as pages

    raise typer.Exit(pages.main([] if show else ["--no-open"]))


@app.command(short_help="Make a version the champion by hand.")
def promote(
    version: Annotated[int, typer.Option(min=1, metavar="N", help="Its number, as MLflow's Models page shows it.")],
) -> None:
    """Make a registered explainer the champion by hand; it keeps why that was not automatic."""
    from tasks.tracking import registry

    raise typer.Exit(registry.main(["promote", "--version", str(version)]))


@app.command(short_help="Write the measured tables into the README.")
def readme() -> None:
    """Write what was measured into README.md and docs/results/README.md."""
    from tasks.cli import readme as pages

    raise typer.Exit(pages.main())


@app.command(add_help_option=False, context_settings=PASSED_ON, short_help="Repeat the study behind the figures.")
def study(context: typer.Context) -> None:
    """Run the experiments behind a page of docs/, such as STUDY.md, and write the page."""
    from tasks.cli import study as experiments

    raise typer.Exit(experiments.main(context.args))


@app.command(add_help_option=False, context_settings=PASSED_ON, short_help="Search the settings of an SAE.")
def search(context: typer.Context) -> None:
    """Search the settings of an SAE for those whose features are best explained (docs/SEARCH.md)."""
    from tasks.cli import search as searching

    raise typer.Exit(searching.main(context.args))


@app.command(short_help="Check this machine.")
def doctor(as_json: AsJson = False) -> None:
    """Check the machine, the versions of packages, the locks and the settings, and say what to do.

    Each line is ok, warn or fail; the exit status is 1 if one is fail.
    """
    from dataclasses import asdict

    from tasks.workspace.doctor import findings

    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            print(printable(finding.line), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    raise typer.Exit(int(any(finding.level == "fail" for finding in found)))


app.add_typer(tracking.commands, name="tracking", short_help="Fill or correct MLflow's store.")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    surroundings.settle()
    given = sys.argv[1:] if arguments is None else arguments
    progress.quiet_libraries()
    web.keep_loopback_direct()
    try:
        return app(args=given or ["--help"], prog_name="sae-explainer", standalone_mode=False) or 0
    except UserError as error:
        message = str(error)
    except TyperException as error:
        message = f"{error.format_message().rstrip('.')}; see `sae-explainer --help`"
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    return failed(message)


if __name__ == "__main__":
    sys.exit(main())
