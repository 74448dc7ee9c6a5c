"""`remails migrate`: bring the database to this version, or say whether it is there."""

import click

from remails import config
from remails.admin import operator
from remails.store import migrate as migrations


@click.command
@click.option("--check", is_flag=True, help="Change nothing; exit with status 1 if something is missing.")
def migrate(check: bool) -> None:
    """Bring the database to this version."""
    settings = operator.settings()
    if check:
        _check(settings)
        return
    applied = migrations.apply(settings.database, settings.database_password())
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do")


def _check(settings: config.Settings) -> None:
    with operator.database(settings) as database:
        missing = database.run(migrations.missing)
    for name in missing:
        click.echo(f"missing {name}")
    if missing:
        click.get_current_context().exit(1)
    click.echo("nothing to do")
