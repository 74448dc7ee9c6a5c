"""What is wrong with an inventory, before anything is touched: each mistake is a sentence that says what to change."""

import collections
import difflib
import importlib.util
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from ansible.errors import AnsibleError

PROJECT = Path(__file__).parents[1]
SERVICES = ("bus", "api", "inbound", "outbound", "periodic", "ipagent")
GROUPS = (*SERVICES, "database", "edge", "monitoring", "backups")
SPEAKERS = tuple(service for service in SERVICES if service != "bus")
"""Those who speak to the database."""

OPTIONAL: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "provider_token": lambda host: _provider(host) != "static",
    "acme_eab_key": lambda host: _acme(host).get("external_account"),
    "acme_dns_key": lambda host: _acme(host).get("dns_key_name"),
}
"""Secrets that not everybody needs, and who does."""
OTHERS = {"acme_eab_key": "the certificate authority", "acme_dns_key": "the name server"}
"""Who makes a secret that we do not."""

DEBIAN = ("12", "13")

Groups = Mapping[str, list[str]]
Host = Mapping[str, Any]
Hosts = Mapping[str, Host]


def mistakes(groups: Groups, hostvars: Mapping[str, Host]) -> list[str]:
    """Every mistake in the inventory, each once."""
    hosts = {name: hostvars[name] for name in groups["all"]}
    found: dict[str, None] = {}
    for check in CHECKS:
        try:
            found |= dict.fromkeys(check(groups, hosts))
        except AnsibleError as error:  # a variable that cannot be worked out
            found[f"The inventory cannot be worked out: {error.message}"] = None
    return list(found)


def group_names(groups: Groups, _hosts: Hosts) -> Iterator[str]:
    """Every group is there and has hosts; a name that is nearly one of ours is a slip."""
    for name in groups:
        if name not in GROUPS and (near := difflib.get_close_matches(name, GROUPS, 1, 0.8)):
            yield f"The group {name} means nothing here; did you mean {near[0]}?"
    for name in SERVICES:
        if not groups.get(name):
            yield f"No host is in the group {name}; put one there."
    for one, other in (("outbound", "ipagent"), ("ipagent", "outbound")):
        for name in sorted({*groups.get(one, ())} - {*groups.get(other, ())}):
            yield f"{name} is in the group {one} and not in {other}; a host that sends needs both."


def variables(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """A variable that begins with a role's word is one of that role."""
    known = {name for role in (PROJECT / "roles").iterdir() for name in _options(role)}
    words = "|".join(role.name for role in (PROJECT / "roles").iterdir())
    for name in sorted({name for host in hosts.values() for name in host}):
        if re.match(rf"(?:{words})_", name) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            yield f"The variable {name} is unknown; {f'did you mean {near[0]}?' if near else 'take it out.'}"


def lists(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """What is to be a list is one: of a text each letter would be taken for an entry."""
    options = {name: one for role in (PROJECT / "roles").iterdir() for name, one in _options(role).items()}
    for host in hosts.values():
        for name in sorted({*host} & {name for name, one in options.items() if one["type"] == "list"}):
            if isinstance(host[name], str):
                yield f"{name} is {str(host[name])!r}, which is no list; write it like [{host[name]}]."


def _options(role: Path) -> Mapping[str, Mapping[str, Any]]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    return {name: option for entry in specs.values() for name, option in entry.get("options", {}).items()}


def host_addresses(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Each host has an address of its own for the others."""
    owners = collections.defaultdict(list)
    for name, host in hosts.items():
        address = str(host.get("remails_address") or host.get("ansible_host") or name)
        for one in (address, *host.get("remails_more_addresses", ())):
            owners[one].append(name)
            if not _is(ipaddress.ip_address, one):
                yield f"{name} has the address {one!r}, which is no IP address; set remails_address to one."
            elif len(hosts) > 1 and ipaddress.ip_address(one).is_loopback:
                yield f"{name} has the address {one}, which no other host can reach; set remails_address to another."
    for address, names in owners.items():
        if len(names) > 1:
            yield f"The hosts {_and(names)} have the same address {address}; give each its own remails_address."


def address_versions(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Each host has an address to speak from to every other, of the version by which that one is known."""
    known = {name: str(host.get("remails_address") or host.get("ansible_host") or name) for name, host in hosts.items()}
    first = {_version(ip): name for name, ip in reversed(known.items())}
    without = [
        name
        for name, host in hosts.items()
        if not {*first} <= {_version(ip) for ip in (known[name], *host.get("remails_more_addresses", ()))}
    ]
    if without and {*first} == {4, 6}:
        yield (
            f"{first[4]} has the address {known[first[4]]} and {first[6]} has {known[first[6]]}, and {_and(without)} only one version of "
            "IP; set remails_address to the same version everywhere, or add the other to remails_more_addresses."
        )


def networks(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """The firewall's lists are lists of networks, and somebody may come in by ssh."""
    for name, host in hosts.items():
        if not host.get("firewall_control"):
            yield f"{name} has no firewall_control; list the addresses from which Ansible comes, or nobody could log in."
        for variable in ("firewall_control", "firewall_clients", "firewall_monitoring"):
            for network in host.get(variable) or ():
                if not _is(ipaddress.ip_network, network):
                    yield f"{variable} has {network!r}, which is no network; write it like 192.0.2.0/24 or 2001:db8::/32."


def hostname(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """The relay has a name."""
    for host in hosts.values():
        text = str(host.get("remails_hostname") or "")
        if not re.fullmatch(r"(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z0-9-]{2,63}", text):
            yield f"remails_hostname is {text!r}; set it to the full name of the relay, like relay.example.com."


def secrets(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Each host has what its units load."""
    for service in SERVICES:
        unit = (PROJECT / f"systemd/remails-{service}.service").read_text(encoding="utf-8")
        for name in re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE):
            for host in groups.get(service, ()):
                if name in OPTIONAL and not OPTIONAL[name](hosts[host]):
                    continue
                if not str(hosts[host].get(f"remails_{name}") or "").strip():
                    maker = (
                        _provider(hosts[host]) if name == "provider_token" else OTHERS.get(name, "remails keys vault")
                    )
                    yield f"The secret remails_{name} is missing for {host}; put one of {maker} into its vault.yml."
    for variable in ("remails_bus_server_public_key", "remails_bus_client_public_keys"):
        for host in {name for service in SERVICES for name in groups.get(service, ())}:
            keys = hosts[host].get(variable) or []
            if not keys or any(len(key) != 40 for key in ([keys] if isinstance(keys, str) else keys)):
                yield f"{variable} is missing or not 40 characters long; remails keys vault writes it beside the secrets."


def database(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """There is one database: a host of ours, or one that remails_dsn names."""
    ours = groups.get("database") or []
    modes = {hosts[name].get("postgresql_mode") for name in ours} - {None}
    if len(ours) > 1 and (len(ours) % 2 == 0 or modes - {"cluster"}):
        yield (
            f"The group database has the hosts {_and(ours)}; one is a database, three are a cluster (postgresql_mode: cluster)."
        )
    if len(ours) == 1 and "cluster" in modes:
        yield f"postgresql_mode is cluster, but only {ours[0]} is in the group database; a cluster needs three hosts."
    for name in ours if len(ours) > 1 else ():
        if len(str(hosts[name].get("postgresql_cluster_secret") or "").strip()) < 32:
            yield f"The secret postgresql_cluster_secret is missing for {name}; put one of remails keys vault into its vault.yml."
    for name in {name for service in SPEAKERS for name in groups.get(service, ())}:
        dsn, mode = str(hosts[name].get("remails_dsn") or ""), hosts[name].get("postgresql_mode")
        if mode not in (None, "cluster", "single", "managed"):
            yield f"postgresql_mode is {mode!r}; make it cluster, single or managed."
        if mode == "managed" and ours:
            yield f"postgresql_mode is managed, but {ours[0]} is in the group database; take it out, or make it single."
        if mode in ("cluster", "single") and not ours:
            yield f"postgresql_mode is {mode}, but no host is in the group database; put one there."
        if dsn and ours:
            yield f"Both remails_dsn and the group database ({ours[0]}) say where the database is; take one out."
        elif dsn:
            yield from _dsn(dsn)
        elif not ours:
            yield "There is no database; put a host into the group database, or set remails_dsn."


def backups(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """One host keeps the backups of a database of ours, with what it encrypts by, and an independent place is named."""
    keepers, ours = groups.get("backups") or [], groups.get("database") or []
    if len(keepers) > 1:
        yield f"The group backups has the hosts {_and(keepers)}; leave one in it."
    if keepers and not ours:
        yield "The group backups has a host, but the group database has none; who runs the database keeps its backups."
        return
    for name in sorted({*keepers} & {*ours}) if len(ours) > 1 else ():
        yield f"{name} is in the groups backups and database; the backups of a cluster want a host that is none of its members."
    for name in {*keepers, *ours} if keepers else ():
        said = {key: str(hosts[name].get(f"backups_{key}") or "").strip() for key in PLACE}
        place, password = said["independent_repository"], said["independent_password"]
        if not said["cipher_pass"]:
            yield f"The secret backups_cipher_pass is missing for {name}; put one of remails keys vault into its vault.yml."
        if not place:
            yield "backups_independent_repository is missing; name a place out of reach of this fleet, or none if you have another way."
        elif place != "none" and not password:
            yield f"The secret backups_independent_password is missing for {name}; put one of remails keys vault into its vault.yml."
        if place.startswith("sftp:"):
            for key in ("independent_ssh_key", "independent_host_keys"):
                if not said[key]:
                    yield f"backups_{key} is missing for {name}; the SFTP server of the independent copies needs it."
        if place.startswith("s3:") and not said["independent_s3_credentials"]:
            yield f"The secret backups_independent_s3_credentials is missing for {name}; the independent place needs it."


PLACE = (
    "cipher_pass",
    "independent_repository",
    "independent_password",
    "independent_ssh_key",
    "independent_host_keys",
    "independent_s3_credentials",
)


def _dsn(dsn: str) -> Iterator[str]:
    if "://" not in dsn and not re.fullmatch(r"\s*(?:\w+\s*=\s*(?:'[^']*'|[^\s']+)\s*)+", dsn):
        yield "remails_dsn is no connection string; write it like host=db.example.com dbname=remails user=remails."
        return
    if re.search(r"\bpassword\s*=|://[^/@]*:[^/@]*@", dsn):
        yield "remails_dsn has a password in it; take it out and set remails_database_password in the vault."
    if not re.search(r"\bhost(?:addr)?\s*=\s*[^\s,]|://(?:[^/@]*@)?[^/@]", dsn):
        yield "remails_dsn names no host; add host=."
    several = re.search(r"\bhost(?:addr)?\s*=\s*\S+,|://[^/]*,", dsn)
    if several and not re.search(r"target_session_attrs\s*=\s*(?:read-write|primary)", dsn):
        yield "remails_dsn names several hosts; add target_session_attrs=read-write, so that the one that writes is found."


def edges(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Edges do not stand in their own way, and what is behind them knows that they are there."""
    names = groups.get("edge", ())
    for name in sorted({*names} & {*groups.get("inbound", ())}):
        yield f"{name} is in the groups edge and inbound, which both listen on 465, 587 and 2525; take it out of one."
    for address in _twice(_plain(one) for name in names[:1] for one in hosts[name].get("edge_addresses") or ()):
        yield f"The address {address} is twice in edge_addresses; take one out."
    for name in names if len(names) == 1 else ():
        if hosts[name].get("edge_addresses"):
            yield f"edge_addresses are shared by edges, and {name} is the only one; take them out: clients come to its own address."
    for name in names:
        own, virtual = (
            str(hosts[name].get("remails_address") or hosts[name].get("ansible_host")),
            hosts[name].get("edge_addresses"),
        )
        if virtual and not any((":" in str(one)) == (":" in own) for one in virtual):
            yield f"edge_addresses has none of the IP version of {own}, by which {name} speaks with the other edges; add one."
    owners = {str(host.get("remails_address") or host.get("ansible_host")): name for name, host in hosts.items()}
    for name in names:
        for address in hosts[name].get("edge_addresses") or ():
            if not _is(ipaddress.ip_interface, address):
                yield f"edge_addresses has {address!r}, which is no address; write it like 192.0.2.10 or 192.0.2.10/24."
            elif owner := owners.get(address.partition("/")[0]):
                yield f"edge_addresses has {address}, which is the own address of {owner}; take one that is nobody's."
        for network in hosts[name].get("edge_proxy_trusted") or ():
            if not _is(ipaddress.ip_network, network):
                yield f"edge_proxy_trusted has {network!r}, which is no network; write it like 192.0.2.0/24."
    for name in groups.get("api", ()) if names else ():
        url = _said(hosts[name], "api").get("url") or "nothing"
        if not str(url).startswith("https://"):
            yield f"api.url is {url}, but the edges speak HTTPS; set it in remails_settings to how people come to the pages."
        if re.match(r"127\.|\[::1]|localhost", str(hosts[name].get("api_listen") or "")):
            yield f"api_listen of {name} is {hosts[name]['api_listen']}, where no edge can reach it; take api_listen out."


def pools(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Pools are named once, and one is the default."""
    for host in _declaring(groups, hosts):
        declared = host.get("ipagent_pools") or []
        for name in _twice(pool.get("name") for pool in declared):
            yield f"The pool {name} is declared twice in ipagent_pools; take one out."
        default = [pool.get("name") for pool in declared if pool.get("default")]
        if declared and len(default) != 1:
            yield f"ipagent_pools has {len(default)} default pools; give default: true to one."


def outbound_addresses(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Outbound addresses are addresses, each once, in a pool there is, at a host that can hold them."""
    holders = groups.get("ipagent", ())
    for host in _declaring(groups, hosts):
        declared = host.get("ipagent_addresses") or []
        known = [pool.get("name") for pool in host.get("ipagent_pools") or []]
        for ip in _twice(_plain(one.get("ip")) for one in declared):
            yield f"The address {ip} is twice in ipagent_addresses; take one out."
        for one in declared:
            ip, pool, preferred = one.get("ip"), one.get("pool"), one.get("preferred_host")
            if not _is(ipaddress.ip_address, ip):
                yield f"ipagent_addresses has {ip!r}, which is no IP address; write one like 203.0.113.11."
            elif str(ip) != _plain(ip):
                yield f"ipagent_addresses has {ip}, which the database calls {_plain(ip)}; write it like that."
            if pool not in known:
                yield f"The address {ip} is in the pool {pool}, which is unknown; declare it in ipagent_pools ({_and(known)})."
            if preferred and preferred not in holders:
                yield f"The address {ip} prefers the host {preferred}, which is not in the group ipagent ({_and(holders)})."
            if not one.get("ptr_name"):
                yield f"The address {ip} has no ptr_name; set it to its reverse name."
            provider = one.get("provider", "static")
            if holders and provider not in {_provider(hosts[name]) for name in holders}:
                yield f"The address {ip} is moved by {provider}, but no host of ipagent is; set ipagent.provider in remails_settings."


def monitoring(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """Somebody hears of alerts, by a way that does not lead through what they speak of."""
    for name in groups.get("monitoring") or ():
        host = hosts[name]
        smarthost = str(host.get("monitoring_mail_smarthost") or "")
        server, _, port = smarthost.rpartition(":")
        ours = {*hosts, urlsplit(str(_said(host, "api").get("url") or "")).hostname}
        for one in hosts.values():
            ours |= {str(one.get(key)).lower() for key in ("remails_hostname", "ansible_host", "remails_address")}
            ours |= {str(address).partition("/")[0] for address in one.get("edge_addresses") or ()}
        if not host.get("monitoring_mail_enabled", True):
            if not host.get("monitoring_webhook"):
                yield "monitoring_mail_enabled is false and there is no monitoring_webhook; nobody would hear of alerts, so set one."
        elif not server or not port.isdecimal():
            yield (
                f"monitoring_mail_smarthost is {smarthost!r}; set it to host:port of a mail server of somebody else, "
                "or monitoring_mail_enabled to false."
            )
        elif server.strip("[].").lower() in ours:
            yield f"monitoring_mail_smarthost is {smarthost}, which is this relay; alerts must not depend on it, so name another server."
        elif port == "25" and name not in groups.get("outbound", ()):
            yield f"monitoring_mail_smarthost is {smarthost}, and only hosts that send may speak to port 25; name its port 587 or 465."
        elif not host.get("monitoring_mail_to"):
            yield "monitoring_mail_to is empty; list who is told of alerts."
        elif host.get("monitoring_mail_username") and not host.get("monitoring_mail_password"):
            yield f"The secret monitoring_mail_password is missing for {name}; put that of {server} into its vault.yml."
        listen = str(host.get("monitoring_listen") or "127.")
        if not re.match(r"127\.|\[::1]", listen) and not host.get("monitoring_password_hash"):
            yield f"monitoring_listen is {listen}, which others reach, without a password; set monitoring_password_hash."


def certificates(groups: Groups, hosts: Hosts) -> Iterator[str]:
    """The certificate of the inventory is fit for use; one that is issued can reach the hosts that show it."""
    for name in {name for group in ("inbound", "edge") for name in groups.get(group, ())}:
        host = hosts[name]
        chain, key, acme = host.get("certificates_chain"), host.get("certificates_key"), _acme(host)
        if bool(chain) != bool(key):
            yield "Of certificates_chain and certificates_key only one is given; give both, or neither."
        elif chain and acme.get("directory"):
            yield "Both certificates_chain and certificates.directory say where the certificate comes from; take one out."
        elif chain:
            yield from _given(f"{key}\n{chain}", host)
        elif acme.get("directory") and not _beside("fleet").certificate_sources(
            name, groups.get("api", ()), hosts, groups.get("edge", ())
        ):
            yield f"{name} cannot fetch the certificate: every api listens for itself only; set api_listen to 0.0.0.0:8000."


def _given(pem: str, host: Host) -> Iterator[str]:
    try:
        certificate = importlib.import_module("remails.certificate")
    except ImportError:  # `unseen` says so
        return
    url = str(_said(host, "api").get("url") or "")
    names = [str(host.get("remails_hostname"))]
    if url.startswith("https://"):
        names.append(url.removeprefix("https://").partition("/")[0].partition(":")[0])
    try:
        reason = certificate.trouble(certificate.read(pem.encode()), names)
    except certificate.ConfigError as error:
        reason = str(error)
    if reason:
        yield f"certificates_chain with certificates_key is of no use: {reason}."


def settings(_groups: Groups, hosts: Hosts) -> Iterator[str]:
    """The sections, words and types of remails/config.py, where it is installed on the controller."""
    try:
        config = importlib.import_module("remails.config")
    except ImportError:  # `unseen` says so
        return
    toml = _beside("fleet").toml
    for name, host in hosts.items():
        for variable in ("remails_settings", "remails_host_settings"):
            said = host.get(variable) or {}
            whole = {"host": name, "mail": {"hostname": "x"}, "database": {"dsn": "x"}}
            for section, values in said.items():
                merged = isinstance(values, Mapping) and isinstance(whole.get(section), Mapping)
                whole[section] = {**whole[section], **values} if merged else values
            try:
                config.decode("\n".join(f"{key} = {toml(value)}" for key, value in whole.items()).encode(), variable)
            except config.ConfigError as error:
                yield f"{error}; the words are those of remails/config.py."


def unseen(groups: Groups, hostvars: Mapping[str, Host]) -> list[str]:
    """What cannot be looked at on this controller, as sentences: it has Ansible and no Remails."""
    try:
        importlib.import_module("remails.config")
        importlib.import_module("remails.certificate")
    except ImportError:
        hosts = [hostvars[name] for name in groups["all"]]
        looked = {
            "the words and values in remails_settings": True,
            "the certificate in certificates_chain": any(host.get("certificates_chain") for host in hosts),
        }
        left = " and ".join(what for what, there in looked.items() if there)
        return [f"Nobody has looked at {left}: that needs Remails beside Ansible on the controller (docs/install.md)."]
    return []


def host_mistakes(name: str, facts: Mapping[str, Any], control: Iterable[str]) -> list[str]:
    """What is wrong with a host itself, by its facts."""
    found = []
    distribution, version = facts.get("distribution"), facts.get("distribution_major_version")
    if distribution != "Debian" or version not in DEBIAN:
        found.append(f"{name} has {distribution} {version}; install Debian {' or '.join(DEBIAN)}.")
    if facts.get("architecture", "x86_64") != "x86_64":
        found.append(f"{name} is a machine of {facts['architecture']}; take one of x86_64.")
    came_from = facts.get("env", {}).get("SSH_CONNECTION", "").partition(" ")[0].removeprefix("::ffff:")
    if came_from and not any(_holds(network, came_from) for network in control):
        found.append(f"Ansible comes to {name} from {came_from}, which firewall_control would lock out; add it there.")
    return found


def _holds(network: str, address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]) in ipaddress.ip_network(network, strict=False)


def _beside(name: str) -> Any:
    """Another module of this folder; Ansible loads each by itself."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _declaring(groups: Groups, hosts: Hosts) -> list[Host]:
    """The host on which pools and addresses are declared."""
    return [hosts[name] for name in groups.get("periodic", ())[:1]]


def _said(host: Host, section: str) -> dict[str, Any]:
    """What the inventory says in a section of the settings."""
    said = [(host.get(name) or {}).get(section) or {} for name in ("remails_settings", "remails_host_settings")]
    return {**said[0], **said[1]}


def _provider(host: Host) -> str:
    return str(_said(host, "ipagent").get("provider") or "static")


def _acme(host: Host) -> Mapping[str, Any]:
    """What the inventory says about certificates that are issued by ACME."""
    return _said(host, "certificates")


def _twice(names: Iterable[Any]) -> list[Any]:
    return [name for name, number in collections.Counter(names).items() if number > 1]


def _is(kind: Callable[[str], object], text: Any) -> bool:
    try:
        kind(str(text))
    except ValueError:
        return False
    return True


def _version(address: Any) -> int:
    """4 or 6; 0 for what is no address."""
    return ipaddress.ip_address(str(address)).version if _is(ipaddress.ip_address, address) else 0


def _plain(ip: Any) -> str:
    return str(ipaddress.ip_address(str(ip))) if _is(ipaddress.ip_address, ip) else str(ip)


def _and(names: Iterable[str]) -> str:
    return ", ".join(map(str, names)) or "none"


CHECKS = (
    group_names,
    variables,
    lists,
    host_addresses,
    address_versions,
    networks,
    hostname,
    secrets,
    database,
    backups,
    edges,
    pools,
    outbound_addresses,
    monitoring,
    certificates,
    settings,
)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"mistakes": mistakes, "unseen": unseen, "host_mistakes": host_mistakes}
