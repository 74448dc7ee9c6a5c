"""Whether the reverse name of an address, which is also what it says in EHLO, is as receivers want it.

They look up the PTR record of the address, and whether that name leads back to it (forward-confirmed reverse DNS).
"""

import dns.resolver
import dns.reversename

from remails import resolver


def trouble(ask: dns.resolver.Resolver, ip: str, name: str) -> str:
    """What is wrong with the names of an address, in words; empty when nothing is."""
    pointer = resolver.ask(ask, dns.reversename.from_address(ip).to_text(), "PTR")
    forward = resolver.ask(ask, name, "AAAA" if ":" in ip else "A")
    names = sorted(str(record).rstrip(".").lower() for record in pointer.records)
    back = sorted(map(str, forward.records))
    if name not in names:
        return f"is {', '.join(names) or pointer.reason}, but has to be {name}"
    if ip not in back:
        return f"{name} leads to {', '.join(back) or forward.reason}, not back"
    return ""
