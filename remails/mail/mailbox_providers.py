"""Which large mailbox provider an MX host belongs to, so that a provider's trouble with us is seen without a metric for each domain."""

from typing import Final

OTHER: Final = "other"

_OWNS: Final = {
    "apple": ("icloud.com", "me.com"),
    "free": ("free.fr",),
    "fastmail": ("messagingengine.com",),
    "gmx": ("gmx.net", "web.de", "kundenserver.de", "perfora.net", "1and1.com"),
    "google": ("google.com", "googlemail.com", "psmtp.com"),
    "ionos": ("ionos.com", "ionos.de", "ionos.eu"),
    "mailru": ("mail.ru",),
    "microsoft": ("outlook.com", "hotmail.com", "office365.us", "mx.microsoft"),
    "mimecast": ("mimecast.com", "mimecast.co.za"),
    "orange": ("orange.fr", "wanadoo.fr"),
    "ovh": ("ovh.net", "ovh.ca"),
    "proofpoint": ("pphosted.com", "ppe-hosted.com"),
    "proton": ("protonmail.ch", "proton.ch"),
    "strato": ("rzone.de", "strato.de"),
    "telekom": ("t-online.de",),
    "yahoo": ("yahoodns.net", "yahoo.com", "aol.com"),
    "zoho": ("zoho.com", "zoho.eu", "zohomail.com"),
}
_BY_DOMAIN: Final = {domain: name for name, domains in _OWNS.items() for domain in domains}

NAMES: Final = frozenset((*_OWNS, OTHER))
"""All there are, so that there are never more."""


def of(mx_host: str) -> str:
    """The provider's name, or `OTHER`, by the domain that the host's name ends in."""
    labels = mx_host.lower().rstrip(".").split(".")
    return next((found for at in range(len(labels)) if (found := _BY_DOMAIN.get(".".join(labels[at:])))), OTHER)
