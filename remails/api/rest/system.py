"""What the installation is, whether it works, and the document of this API."""

from msgspec import Struct

from remails import __version__
from remails.api import auth, problems
from remails.api.operations import Noun, add_header, answer_with
from remails.api.state import state
from remails.errors import Unavailable
from remails.store import server

noun = Noun("System", "What the installation is, and whether it works.")


class Config(Struct, kw_only=True):
    """What a client has to know of the installation."""

    version: str
    environment: str
    api_server_name: str
    smtp_domain_name: str
    smtp_ports: list[int]
    spf_include: str
    dkim_selector: str


class Health(Struct, kw_only=True):
    """Whether this process can work; `status` says what is wrong."""

    healthy: bool
    status: str


@noun.operation("GET", "/config", auth.public)
def get_config() -> Config:
    """Show what a client has to know of the installation."""
    settings = state().settings
    inbound = settings.inbound
    return Config(
        version=__version__,
        environment=settings.api.environment,
        api_server_name=settings.api.url.partition("://")[2].rstrip("/"),
        smtp_domain_name=settings.mail.hostname,
        smtp_ports=[port for port in (inbound.smtps_port, inbound.submission_port, inbound.alternate_port) if port],
        spf_include=f"include:{settings.spf_include}",
        dkim_selector=settings.mail.dkim_selector,
    )


@noun.operation("GET", "/healthy", auth.public, errors=[503])
def get_health() -> Health:
    """Say whether this process can work: 200, or 503 and which check failed. Without the bus it can."""
    trouble = _trouble()
    if trouble is not None:
        answer_with(503)
        add_header("Retry-After", problems.RETRY_AFTER)
    return Health(healthy=trouble is None, status=trouble or "OK")


def _trouble() -> str | None:
    try:
        state().db.run(server.check)
    except Unavailable as error:
        return str(error)
    return None
