"""How the public doors are tried."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import render


@pytest.mark.parametrize(
    ("facts", "family"),
    [
        ({"default_ipv4": {"address": "192.0.2.51"}, "default_ipv6": {}}, "ip4"),
        ({"default_ipv4": {}, "default_ipv6": {"address": "2001:db8::51"}}, "ip6"),
        ({}, "ip6"),
    ],
)
def test_a_host_without_ipv6_tries_names_with_both_by_ipv4(tmp_path: Path, facts: dict[str, Any], family: str) -> None:
    """The exporter would take the address of IPv6 and never come back to the other."""
    path = render(tmp_path, "blackbox.yml", ansible_facts=facts)
    modules = yaml.safe_load(path.read_text(encoding="utf-8"))["modules"]
    assert set(modules) == {"smtps", "submission", "https"}
    assert {module[module["prober"]]["preferred_ip_protocol"] for module in modules.values()} == {family}
