"""The playbooks and roles, as Ansible and ansible-lint read them."""

import re
from pathlib import Path

import pytest
from play import PROJECT, Ansible

PLAYBOOKS = sorted(path.name for path in (PROJECT / "playbooks").glob("*.yml"))
INVENTORIES = ("single", "fleet")


def test_ansible_lint_has_nothing_to_say(ansible: Ansible) -> None:
    done = ansible(
        "ansible-lint", "--offline", "--profile", "production", "--strict", "playbooks", "roles", "inventory"
    )
    assert done.returncode == 0, done.stdout


def test_ansible_reads_every_playbook(ansible: Ansible) -> None:
    paths = [f"playbooks/{name}" for name in PLAYBOOKS]
    done = ansible("ansible-playbook", "--inventory", "inventory/fleet", "--syntax-check", *paths)
    assert done.returncode == 0, done.stdout
    assert "site.yml" in PLAYBOOKS
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_example_has_the_layout_of_a_vault_and_no_secret(inventory: str) -> None:
    folder = PROJECT / "inventory" / inventory / "group_vars/all"
    assert sorted(path.name for path in folder.iterdir()) == ["main.yml", "vault.yml.example"]
    example = (folder / "vault.yml.example").read_text(encoding="utf-8")
    values = re.findall(r"^\w+: (.*)$", example, re.MULTILINE)
    assert all("…" in value or value == "|" for value in values)


def test_secrets_are_never_shown() -> None:
    """A task that has a secret in it says no_log."""
    secret = re.compile(
        r"remails_(?:database_password|pepper|encryption_keys|provider_token|bus_\w+_key)\b|postgresql_cluster_secret|_tls_key\b|vars', "
        r"|backups_(?:cipher_pass|independent_(?:password|ssh_key|s3_credentials))\b|__backups_credentials"
    )
    tasks = 0
    for path in [*PROJECT.glob("roles/*/tasks/*.yml"), *PROJECT.glob("playbooks/*.yml")]:
        for task in re.split(r"(?m)^ *- name: ", path.read_text(encoding="utf-8")):
            if secret.search(re.sub(r"is (?:not )?defined|#.*", "", task)):
                tasks += 1
                assert "no_log: true" in task, f"{path.relative_to(PROJECT)}: {task.splitlines()[0]}"
    assert tasks >= 3


def test_no_word_of_a_secret_is_a_command_s_argument() -> None:
    for path in PROJECT.glob("roles/*/tasks/*.yml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"argv:|command:|cmd:", line):
                assert not re.search(r"password|pepper|encryption_keys|token", line), f"{path}: {line}"


def test_service_roles_are_short() -> None:
    for word in ("bus", "outbound", "periodic", "ipagent", "api", "inbound"):
        tasks = Path(PROJECT, "roles", word, "tasks/main.yml").read_text(encoding="utf-8")
        assert "tasks_from: service" in tasks
        assert f"remails_service: {word}\n" in tasks
        assert len(tasks.splitlines()) < 60
