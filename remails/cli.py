"""The command line: one subcommand per process of the system, and those of its operators.

A subcommand's module is imported when it is asked for, so that a service loads only what it runs. Errors end in one sentence
and an exit status of sysexits.h: 78 for a wrong setting, 75 for an outage that passes, 1 for a refusal.
"""

import importlib
from pathlib import Path
from typing import IO, Any

import click

import remails
from remails import config
from remails.errors import ConfigError, Refused, Unavailable
from remails.service import EX_CONFIG

EX_TEMPFAIL = 75

SERVICES = {
    "api": "REST API, its OpenAPI document and reader, and the web UI.",
    "inbound": "SMTP submission: authenticates, stores, notifies.",
    "outbound": "Claims what is to leave from this host's addresses, signs, delivers.",
    "bus": "ZeroMQ forwarder of notes; best effort, keeps nothing.",
    "periodic": "Repeating tasks: retries, dead hosts, DNS checks, quotas, retention.",
    "ipagent": "Cloud IP agent: leases addresses and brings them to this host.",
}

MODULES = {
    "organization": "remails.admin.tenants",
    "project": "remails.admin.tenants",
    "user": "remails.admin.tenants",
    "member": "remails.admin.tenants",
    "domain": "remails.admin.sending",
    "credential": "remails.admin.sending",
    "key": "remails.admin.sending",
    "message": "remails.admin.sending",
    "suppression": "remails.admin.suppressions",
    "pool": "remails.admin.fleet",
    "address": "remails.admin.addresses",
    "addresses": "remails.admin.addresses",
    "host": "remails.admin.fleet",
    "queue": "remails.admin.queue",
    "bans": "remails.admin.bans",
    "certificate": "remails.admin.certificates",
    "keys": "remails.admin.keys",
    "migrate": "remails.admin.migrate",
    "doctor": "remails.admin.doctor",
    "ready": "remails.admin.ready",
}


class _Refusal(click.ClickException):
    """An error that is told in one sentence."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"remails: {self.message}", file=file, err=True)


class _Misconfigured(_Refusal):
    exit_code = EX_CONFIG


class _Outage(_Refusal):
    exit_code = EX_TEMPFAIL


class _Service(click.Command):
    """A daemon; its long help is the docstring of its module."""

    def __init__(self, word: str) -> None:
        super().__init__(word, callback=self._run, help=SERVICES[word])

    def _module(self) -> Any:
        return importlib.import_module(f"remails.{self.name}.service")

    def _run(self) -> None:
        settings = config.load(click.get_current_context().obj)
        self._module().main(settings)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's
        formatter.write(f"\n{self._module().__doc__}")


class _Commands(click.Group):
    """Finds subcommands without importing their neighbours, and turns errors into sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's
        return [*SERVICES, *MODULES, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in SERVICES:
            return _Service(name)
        if name in MODULES:
            command: click.Command = getattr(importlib.import_module(MODULES[name]), name)
            return command
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in (
            ("Services", [*SERVICES]),
            ("Operation", [*MODULES]),
            ("On a developer's machine", sorted(self.commands)),
        ):
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, found.get_short_help_str(80)) for name, found in commands if found])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise _Misconfigured(str(error)) from None
        except Unavailable as error:
            raise _Outage(str(error)) from None
        except Refused as error:
            raise _Refusal(error.text) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", "path", metavar="PATH", help=f"Settings, {config.DEFAULT_PATH} if not given.")
@click.version_option(remails.__version__, prog_name="remails", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, path: str | None) -> None:
    """Transactional mail relay that sends from your own addresses.

    The settings are read from --config, or the file that $REMAILS_CONFIG names.
    """
    ctx.obj = path


_directory = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=".dev",
    show_default=True,
    help="Where everything is kept between runs.",
)
_port_base = click.option(
    "--port-base", type=click.IntRange(1024, 65000), help="First of the ports that are used on the loopback interface."
)


@main.command
@_directory
@_port_base
def dev(directory: Path, port_base: int | None) -> None:
    """Run every service on this machine, and print the address to open."""
    importlib.import_module("remails.dev.supervisor").main(directory, port_base)


@main.command
@_directory
@_port_base
def demo(directory: Path, port_base: int | None) -> None:
    """Send a hundred mails through everything, follow each to its receiver, and print a table."""
    importlib.import_module("remails.dev.demo").main(directory, port_base)
