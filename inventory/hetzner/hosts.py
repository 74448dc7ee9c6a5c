#!/usr/bin/env python3
"""The servers of a Hetzner Cloud project as an inventory: those that have labels `remails-GROUP`, in these groups.

    HCLOUD_TOKEN=... ansible-inventory -i inventory/hetzner --graph

Ansible comes to a server's primary address, the others reach it in its private network where it has one. `ipagent` is told which
server it is on. Put variables and the vault into group_vars beside this file, as in inventory/fleet.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import requests

API = os.environ.get("HCLOUD_ENDPOINT", "https://api.hetzner.cloud/v1")
LABEL = "remails-"
TIMEOUT = 10  # seconds


def servers() -> Iterator[dict[str, Any]]:
    """All servers, page by page. Raises requests.RequestException."""
    token, page = os.environ["HCLOUD_TOKEN"], 1
    while page:
        answer = requests.get(
            f"{API}/servers",
            params={"per_page": 50, "page": page},
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT,
        )
        answer.raise_for_status()
        found = answer.json()
        yield from found["servers"]
        page = found.get("meta", {}).get("pagination", {}).get("next_page")


def host(server: dict[str, Any]) -> dict[str, Any]:
    """The variables of a server."""
    inside = [network["ip"] for network in server.get("private_net", ())]
    public = (server["public_net"].get("ipv4") or {}).get("ip")
    place = server.get("location") or server["datacenter"]["location"]
    return {
        "ansible_host": public or inside[0],
        "remails_address": (inside or [public])[0],
        "remails_host_settings": {
            "ipagent": {"provider": "hetzner", "server_ref": str(server["id"]), "zone": place["network_zone"]}
        },
    }


def inventory() -> dict[str, Any]:
    """The whole inventory, as Ansible wants it of a program."""
    groups: dict[str, Any] = {}
    variables = {}
    for server in servers():
        words = [label.removeprefix(LABEL) for label in server["labels"] if label.startswith(LABEL)]
        if words:
            variables[server["name"]] = host(server)
        for word in words:
            groups.setdefault(word, {"hosts": []})["hosts"].append(server["name"])
    return {"_meta": {"hostvars": variables}, **groups}


if __name__ == "__main__":
    if not os.environ.get("HCLOUD_TOKEN"):
        sys.exit("HCLOUD_TOKEN is not set; make a token that may read, and put it into the environment.")
    json.dump(inventory(), sys.stdout, indent=1)
