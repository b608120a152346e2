"""`sae-explainer tracking`: fill or correct MLflow's store. Commands import what they need as they run."""

import typer

commands = typer.Typer(help="Fill or correct MLflow's store.", rich_markup_mode=None)


@commands.command(short_help="Log what lies in reports/.")
def rebuild() -> None:
    """Log what lies in reports/ unless it is logged, and register its explainers where data/ has them."""
    from tasks.tracking import rebuild as tracking_rebuild

    raise typer.Exit(tracking_rebuild.main(["rebuild"]))


@commands.command(short_help="After the workspace was moved.")
def relocate() -> None:
    """Name the artifacts of a moved or copied workspace where they are."""
    from tasks.tracking import rebuild as tracking_rebuild

    raise typer.Exit(tracking_rebuild.main(["relocate"]))


@commands.command(short_help="Register the explainers.")
def register() -> None:
    """Register the explainers of the result that lies in reports/ and data/."""
    from tasks.tracking import registry

    raise typer.Exit(registry.main(["register"]))
