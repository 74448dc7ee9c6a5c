"""The settings of every example host, as the role writes them, loaded as a service loads them: so the two cannot drift."""

import json
from pathlib import Path

import pytest
from play import PROJECT, Ansible

from remails import config
from remails.config import Settings

PLAYBOOK = f"""
- name: Render
  hosts: bus:api:inbound:outbound:periodic:ipagent
  gather_facts: false
  roles:
    - {{role: remails, tags: [never]}}  # only its variables
  tasks:
    - name: Settings
      ansible.builtin.template:
        src: {PROJECT}/roles/remails/templates/remails.toml.j2
        dest: "{{{{ folder }}}}/{{{{ inventory_hostname }}}}.toml"
        mode: "0600"
      delegate_to: localhost
      vars:
        ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
"""


@pytest.fixture(scope="module")
def playbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playbook that only renders."""
    path = tmp_path_factory.mktemp("render") / "render.yml"
    path.write_text(PLAYBOOK, encoding="utf-8")
    return path


def rendered(
    ansible: Ansible, playbook: Path, secrets: Path, folder: Path, inventory: str, *more: str
) -> dict[str, Settings]:
    """The settings of each host of an inventory."""
    done = ansible(
        *("ansible-playbook", "--inventory", f"inventory/{inventory}", playbook),
        *("--extra-vars", f"@{secrets}", "--extra-vars", f"folder={folder}", *more),
    )
    assert done.returncode == 0, done.stdout
    return {path.stem: config.load(str(path)) for path in folder.glob("*.toml")}


def test_fleet(ansible: Ansible, playbook: Path, secrets: Path, tmp_path: Path) -> None:
    found = rendered(ansible, playbook, secrets, tmp_path, "fleet")
    assert sorted(found) == ["app1", "app2", "out1", "out2", "out3"]
    for name, settings in found.items():
        assert settings.host == name
        assert settings.mail.hostname == "relay.example.com"
        assert settings.database.dsn == (
            "host=10.0.0.31,10.0.0.32,10.0.0.33 dbname=remails user=remails sslmode=require channel_binding=require"
            " target_session_attrs=read-write"
        )
        assert [endpoint.publish for endpoint in settings.bus.endpoints] == [
            "tcp://10.0.0.11:5561",
            "tcp://10.0.0.12:5561",
        ]
        assert [endpoint.subscribe for endpoint in settings.bus.endpoints] == [
            "tcp://10.0.0.11:5562",
            "tcp://10.0.0.12:5562",
        ]
        assert len(settings.bus.server_public_key) == 40
        assert [len(key) for key in settings.bus.client_public_keys] == [40]
        assert (settings.ipagent.provider, settings.ipagent.zone) == ("upcloud", "fi-hel1")
        edges = ("10.0.0.41/32", "10.0.0.42/32")
        assert (settings.inbound.proxy_trusted, settings.api.proxy_trusted, settings.api.trusted_proxies) == (
            edges,
            edges,
            1,
        )
        validates = name.startswith("out")
        assert (settings.dns.nameservers, settings.dns.validating) == (("127.0.0.1",) if validates else (), validates)
    assert found["app2"].bus.listen_publish == "tcp://10.0.0.12:5561"


def test_single(ansible: Ansible, playbook: Path, secrets: Path, tmp_path: Path) -> None:
    found = rendered(ansible, playbook, secrets, tmp_path, "single")
    assert list(found) == ["relay"]
    assert found["relay"].database.dsn.startswith("host=127.0.0.1 ")
    assert found["relay"].bus.listen_subscribe == "tcp://127.0.0.1:5562"
    assert (found["relay"].inbound.proxy_trusted, found["relay"].api.trusted_proxies) == ((), 0)


def test_settings_of_one_host_and_every_kind_of_value(
    ansible: Ansible, playbook: Path, secrets: Path, tmp_path: Path
) -> None:
    """Text that needs quoting, a float, a truth value, a list, a list of tables; one host's words go before those for all."""
    said = """{
        "remails_dsn": "host=a,b dbname=it's target_session_attrs=read-write",
        "remails_settings": {
            "mail": {"hostname": "é\\"\\\\.example", "max_size": 1000},
            "outbound": {"keep_connection": 0.5, "allow_private_destinations": true},
            "dns": {"nameservers": ["192.0.2.53"]},
            "inbound": {"certificates": [{"certificate": "/a", "key": "/b"}]}
        },
        "remails_host_settings": {"mail": {"max_size": 2000}}
    }"""
    settings = rendered(ansible, playbook, secrets, tmp_path, "single", "--extra-vars", said)["relay"]
    assert settings.database.dsn == "host=a,b dbname=it's target_session_attrs=read-write"
    assert settings.mail.hostname == 'é"\\.example'
    assert settings.mail.max_size == 2000
    assert (settings.outbound.keep_connection, settings.outbound.allow_private_destinations) == (0.5, True)
    assert (settings.dns.nameservers, settings.dns.validating) == (("192.0.2.53",), False)
    assert settings.inbound.certificates == (config.Certificate(certificate="/a", key="/b"),)


@pytest.mark.parametrize(
    ("provider", "facts", "reference"),
    [
        ("upcloud", {"product_uuid": "00C1A3E5-0000-4000-8000-000000000001"}, "00c1a3e5-0000-4000-8000-000000000001"),
        ("hetzner", {"product_serial": "4711"}, "4711"),
        ("static", {"product_uuid": "00c1a3e5"}, ""),
    ],
)
def test_hardware_says_which_server_it_is(
    ansible: Ansible,
    playbook: Path,
    secrets: Path,
    tmp_path: Path,
    provider: str,
    facts: dict[str, str],
    reference: str,
) -> None:
    said = json.dumps({"ansible_facts": facts, "remails_settings": {"ipagent": {"provider": provider}}})
    settings = rendered(ansible, playbook, secrets, tmp_path, "single", "--extra-vars", said)["relay"]
    assert settings.ipagent.server_ref == reference
