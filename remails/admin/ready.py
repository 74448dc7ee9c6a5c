"""`remails ready`: whether the services of this host can do their work, in their own words.

A service says it in the status text of its unit, see `remails.service`. This is what a deployment asks before it goes on
to the next host. `remails doctor` looks from outside, and deeper.
"""

import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import click

from remails.admin import output
from remails.admin.doctor import CREDENTIALS, installed
from remails.errors import Refused, Unavailable

_PROPERTIES = "Id,ActiveState,SubState,StatusText"
_STATUS = re.compile(r"(ready|not ready) \(([^)]*)\): (.*)")
_LOOK_AGAIN = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """What one service says of itself; `release` is the one its process runs from."""

    service: str
    ready: bool
    release: str | None
    text: str


@click.command
@click.argument("services", metavar="[SERVICE]...", nargs=-1, type=click.Choice([*CREDENTIALS]))
@click.option("--release", help="Only a process of this release counts.")
@click.option("--wait", type=click.FloatRange(0), default=0, help="Seconds to wait until all are ready.")
@output.json_option
def ready(services: tuple[str, ...], release: str | None, wait: float, as_json: bool) -> None:
    """Say whether services of this host can do their work; all of them if none is named.

    Exits with status 1 if one cannot.
    """
    names = services or tuple(sorted(installed()))
    if not names:
        raise Refused(554, "5.3.0", "No service is enabled on this host, see: systemctl enable", status=404)
    end = time.monotonic() + wait
    while True:
        answers = [answer(unit, release) for unit in _units(names)]
        if all(one.ready for one in answers) or time.monotonic() >= end:
            break
        time.sleep(_LOOK_AGAIN)
    output.show(map(asdict, answers), ("service", "ready", "release", "text"), as_json=as_json)
    if not all(one.ready for one in answers):
        click.get_current_context().exit(1)


def answer(unit: Mapping[str, str], release: str | None = None) -> Answer:
    """What a unit's properties say; with `release`, a process of another one is not ready."""
    service = unit["Id"].removeprefix("remails-").removesuffix(".service")
    said = _STATUS.fullmatch(unit["StatusText"])
    runs, text = (said[2], said[3]) if said else (None, unit["StatusText"] or "has not said yet how it is")
    if unit["ActiveState"] != "active":
        return Answer(service, False, runs, f"the unit is {unit['ActiveState']} ({unit['SubState']}): {text}")
    if release is not None and runs != release:
        return Answer(service, False, runs, f"is not of release {release}: {text}")
    return Answer(service, said is not None and said[1] == "ready", runs, text)


def _units(services: Iterable[str]) -> list[dict[str, str]]:
    """Properties of the services' units. Raises Unavailable."""
    names = [f"remails-{service}.service" for service in services]
    command = ["systemctl", "show", f"--property={_PROPERTIES}", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # words of ours
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"systemctl: {getattr(error, 'stderr', None) or error}".strip()) from None
    blocks = done.stdout.strip().split("\n\n")
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
