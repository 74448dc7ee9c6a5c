"""Providers by name: who attaches outbound addresses to this host. A new one is a module here and a line in `_KNOWN`."""

from collections.abc import Callable

from remails.config import Settings
from remails.errors import ConfigError
from remails.ipagent.providers.hetzner import Hetzner
from remails.ipagent.providers.openstack import OpenStack
from remails.ipagent.providers.protocol import Provider, ProviderError, Seen
from remails.ipagent.providers.static import Static
from remails.ipagent.providers.upcloud import UpCloud

__all__ = ["Provider", "ProviderError", "Seen", "make"]

_KNOWN: dict[str, Callable[[Settings], Provider]] = {
    Hetzner.name: Hetzner,
    OpenStack.name: OpenStack,
    Static.name: Static,
    UpCloud.name: UpCloud,
}


def make(settings: Settings) -> Provider:
    """The provider of this host.

    Raises:
        ConfigError: `ipagent.provider` is none we know, or a setting or credential of it is wrong.
    """
    if settings.ipagent.provider not in _KNOWN:
        known = ", ".join(sorted(_KNOWN))
        raise ConfigError(f"ipagent.provider: unknown provider {settings.ipagent.provider!r}, known are: {known}")
    return _KNOWN[settings.ipagent.provider](settings)
