#!/usr/bin/env python3
"""The servers of an UpCloud account as an inventory: those that have labels `remails-GROUP`, in these groups.

    UPCLOUD_TOKEN=ucat_... ansible-inventory -i inventory/upcloud --graph

A server's own address is the one that does not float: an address of ours must never be how Ansible comes to a host. Where a server
has a utility or private network, the others reach it there. `ipagent` is told which server it is on. Put variables and the vault
into group_vars beside this file, as in inventory/fleet.
"""

import json
import os
import sys
from typing import Any

import requests

API = os.environ.get("UPCLOUD_API_ROOT", "https://api.upcloud.com/1.3")
LABEL = "remails-"
TIMEOUT = 10  # seconds


def get(path: str) -> Any:
    """What the API answers to one request. Raises requests.RequestException."""
    token = os.environ["UPCLOUD_TOKEN"]
    answer = requests.get(f"{API}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    answer.raise_for_status()
    return answer.json()


def host(server: dict[str, Any]) -> dict[str, Any]:
    """The variables of a server."""
    interfaces = server["networking"]["interfaces"]["interface"]
    own = [
        (interface["type"], address["address"])
        for interface in interfaces
        for address in interface["ip_addresses"]["ip_address"]
        if address["family"] == "IPv4" and address.get("floating") != "yes"
    ]
    public = [ip for kind, ip in own if kind == "public"]
    inside = [ip for wanted in ("private", "utility") for kind, ip in own if kind == wanted] or public
    return {
        "ansible_host": (public or inside)[0],
        "remails_address": inside[0],
        "remails_host_settings": {
            "ipagent": {"provider": "upcloud", "server_ref": server["uuid"], "zone": server["zone"]}
        },
    }


def inventory() -> dict[str, Any]:
    """The whole inventory, as Ansible wants it of a program."""
    groups: dict[str, Any] = {}
    variables = {}
    for server in get("/server")["servers"]["server"]:
        labels = [label["key"] for label in server["labels"]["label"]]
        words = [label.removeprefix(LABEL) for label in labels if label.startswith(LABEL)]
        if words:
            variables[server["hostname"]] = host(get(f"/server/{server['uuid']}")["server"])
        for word in words:
            groups.setdefault(word, {"hosts": []})["hosts"].append(server["hostname"])
    return {"_meta": {"hostvars": variables}, **groups}


if __name__ == "__main__":
    if not os.environ.get("UPCLOUD_TOKEN"):
        sys.exit("UPCLOUD_TOKEN is not set; make a token that may read servers, and put it into the environment.")
    json.dump(inventory(), sys.stdout, indent=1)
