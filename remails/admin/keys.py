"""`remails keys new`: a fresh set of credentials for an installation."""

import os
from pathlib import Path

import click

from remails import vault
from remails.bus import keys as bus_keys
from remails.errors import Refused


@click.group
def keys() -> None:
    """Keys of the installation."""


@keys.command("new")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def new(directory: Path) -> None:
    """Write a fresh set of credentials, and print what belongs into the settings.

    The files are for `credentials_directory`, readable by their owner only. What exists is never overwritten: without
    the old encryption_keys and pepper, no DKIM key opens and no password or API key works any more.
    """
    server_public, server_secret = bus_keys.generate_keys()
    client_public, client_secret = bus_keys.generate_keys()
    fresh = {
        "encryption_keys": vault.new_encryption_key("1"),
        "pepper": vault.new_secret(48),
        "bus_server_key": server_secret,
        "bus_client_key": client_secret,
    }
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if there := [name for name in fresh if (directory / name).exists()]:
            raise Refused(554, "5.3.0", f"{directory / there[0]} exists already, nothing was written.", status=409)
        for name, text in fresh.items():
            _write(directory / name, text)
    except OSError as error:
        raise Refused(554, "5.3.0", f"Cannot write {error.filename}: {error.strerror}.", status=409) from None
    click.echo(f'[bus]\nserver_public_key = "{server_public}"\nclient_public_keys = ["{client_public}"]')


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
