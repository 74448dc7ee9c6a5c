"""`remails keys`: the secrets of an installation: a fresh set, new ones beside the old, and what is stored under them.

Where Ansible keeps them, in a file for ansible-vault, it stands as `name: "value"`, one in a line. `keys rotate` changes such
a file in place, so it is an editor for `ansible-vault edit`, and no secret is ever on a screen.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import msgspec

from remails import vault
from remails.admin import output
from remails.admin.operator import Act, connected
from remails.bus import keys as bus_keys
from remails.errors import Refused
from remails.store import certificates, domains

_BATCH = 100

_HEAD = """\
# The secrets of this installation. Encrypt this file: ansible-vault encrypt {name}
# Without encryption_keys and pepper a backup of the database is worth little: keep a copy of them elsewhere.
"""


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
            _write(directory / name, text + "\n")
    except OSError as error:
        raise Refused(554, "5.3.0", f"Cannot write {error.filename}: {error.strerror}.", status=409) from None
    click.echo(f'[bus]\nserver_public_key = "{server_public}"\nclient_public_keys = ["{client_public}"]')


@keys.command("vault")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def new_file(file: Path) -> None:
    """Write a fresh set of secrets for Ansible, to be encrypted by ansible-vault.

    The file is for group_vars of an inventory. One that exists is never overwritten.
    """
    fresh: dict[str, object] = {
        "remails_database_password": vault.new_secret(),
        "remails_encryption_keys": vault.new_encryption_key("1"),
        "remails_pepper": vault.new_secret(48),
        "postgresql_cluster_secret": vault.new_secret(48),
        "backups_cipher_pass": vault.new_secret(48),
        "backups_independent_password": vault.new_secret(48),
        **_new_server(),
        **_new_client([]),
    }
    lines = [f"{name}: {_json(value)}\n" for name, value in fresh.items()]
    try:
        _write(file, "---\n" + _HEAD.format(name=file.name) + "".join(lines))
    except OSError as error:
        raise Refused(554, "5.3.0", f"Cannot write {error.filename}: {error.strerror}.", status=409) from None
    click.echo(f"{file} is written. Now: ansible-vault encrypt {file}")


def _new_server() -> dict[str, object]:
    public, secret = bus_keys.generate_keys()
    return {"remails_bus_server_key": secret, "remails_bus_server_public_key": public}


def _new_client(known: list[object]) -> dict[str, object]:
    public, secret = bus_keys.generate_keys()
    return {"remails_bus_client_key": secret, "remails_bus_client_public_keys": [public, *known[:1]]}


def _rotated_encryption(now: Mapping[str, object]) -> dict[str, object]:
    lines = str(now["remails_encryption_keys"]).split()
    numbers = [int(name) for name, _, _ in (line.partition(":") for line in lines) if name.isdecimal()]
    fresh = vault.new_encryption_key(str(max(numbers, default=0) + 1))
    return {"remails_encryption_keys": "\n".join([fresh, *lines])}


def _rotated_password(now: Mapping[str, object]) -> dict[str, object]:
    # Two lines: a service tries the new one and then the old one.
    known = str(now["remails_database_password"]).split()
    return {"remails_database_password": "\n".join([vault.new_secret(), *known[:1]])}


def _rotated_bus(now: Mapping[str, object]) -> dict[str, object]:
    known = now["remails_bus_client_public_keys"]
    return _new_server() | _new_client(known if isinstance(known, list) else [])


def _without_old(now: Mapping[str, object]) -> dict[str, object]:
    known = now["remails_bus_client_public_keys"]
    return {
        "remails_database_password": str(now["remails_database_password"]).split()[0],
        "remails_encryption_keys": str(now["remails_encryption_keys"]).split()[0],
        "remails_bus_client_public_keys": known[:1] if isinstance(known, list) else known,
    }


_ROTATIONS: dict[str, Callable[[Mapping[str, object]], dict[str, object]]] = {
    "bus": _rotated_bus,
    "database": _rotated_password,
    "encryption": _rotated_encryption,
    "forget": _without_old,
}


@keys.command("rotate")
@click.argument("what", type=click.Choice([*_ROTATIONS]))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def rotate(what: str, file: Path) -> None:
    """Put new secrets into a file that `keys vault` wrote; the old ones stay beside them where both are needed.

    bus: the keys of the bus. database: the password. encryption: the key that seals what is stored. forget: takes the
    old ones out again. The file must not be encrypted, so let ansible-vault call this:

    EDITOR="remails keys rotate encryption" ansible-vault edit FILE
    """
    try:
        text = file.read_text(encoding="utf-8")
        changed = _replaced(text, _ROTATIONS[what], file)
        # In place, since ansible-vault looks into the file that it gave us.
        with file.open("r+", encoding="utf-8") as opened:
            opened.write(changed)
            opened.truncate()
    except OSError as error:
        raise Refused(554, "5.3.0", f"Cannot change {error.filename}: {error.strerror}.", status=409) from None


def _replaced(text: str, rotation: Callable[[Mapping[str, object]], dict[str, object]], file: Path) -> str:
    """The text with the values that a rotation gives. Raises Refused when a line is missing or not ours."""
    now: dict[str, object] = {}
    for name, value in re.findall(r"^(remails_\w+): (.*)$", text, re.MULTILINE):
        try:
            now[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            now[name] = None
    try:
        fresh = rotation(now)
        if unknown := [name for name in fresh if now.get(name) is None]:
            raise KeyError(unknown[0])
    except KeyError as error:
        why = f'{file} has no line {error.args[0]}: "...", as `remails keys vault` writes it; nothing was changed.'
        raise Refused(554, "5.3.0", why, status=422) from None
    for name, value in fresh.items():
        line = f"{name}: {_json(value)}"
        text = re.sub(rf"^{name}: .*$", line.replace("\\", r"\\"), text, flags=re.MULTILINE)
    return text


@keys.command("list")
@output.json_option
@connected
def list_(act: Act, as_json: bool) -> None:
    """List the encryption keys of this host, and how much of what is stored each has sealed."""
    names = vault.Vault(act.settings.credential("encryption_keys")).names
    sealed = Counter(domains.sealed_by(act.conn)) + Counter(certificates.sealed_by(act.conn))
    rows = [
        {"name": name, "here": name in names, "seals": name == names[0], "sealed": sealed.get(name, 0)}
        for name in dict.fromkeys([*names, *sealed])
    ]
    output.show(rows, ("name", "here", "seals", "sealed"), as_json=as_json)


@keys.command("reencrypt")
@connected
def reencrypt(act: Act) -> None:
    """Seal all that is stored anew with the first of the encryption keys, so that the others may go.

    Every host must know that key by then; playbooks/rotate.yml sees to it.
    """
    sealer = vault.Vault(act.settings.credential("encryption_keys"))
    total = certificates.reseal(act.conn, sealer)
    while done := domains.reseal(act.conn, sealer, _BATCH):
        total += done
    if total:
        act.log(None, "reencrypted", "encryption_key", sealer.names[0], {"values": total})
    click.echo(f"{total} values are sealed anew, all are by key {sealer.names[0]} now.")


def _json(value: object) -> str:
    """JSON is YAML too."""
    return msgspec.json.encode(value).decode()


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
