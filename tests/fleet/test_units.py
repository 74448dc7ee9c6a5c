"""The unit files, as systemd itself reads them: `systemd-analyze` in a throw-away root, nothing booted.

`verify` exits 0 on an unknown key, so a word on stderr is a failure too; it wants every program to exist, so the root has
an empty one. What the units do when they run is the matter of the fleet tests.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
COMMON = "remails-.service.d/10-common.conf"
NETWORK = "remails-ipagent.service.d/20-network.conf"
SERVICES = ("api", "inbound", "outbound", "bus", "periodic", "ipagent")
SOCKETS = {
    "remails-api.socket": ("http", "127.0.0.1:8000"),
    "remails-inbound-smtps.socket": ("smtps", "465"),
    "remails-inbound-submission.socket": ("submission", "587"),
    "remails-inbound-alternate.socket": ("alternate", "2525"),
}
CREDENTIALS = {
    "api": {"database_password", "encryption_keys", "pepper", "bus_client_key"},
    "inbound": {"database_password", "pepper", "bus_client_key"},
    "outbound": {"database_password", "encryption_keys", "bus_client_key"},
    "bus": {"bus_server_key"},
    "periodic": {"database_password", "bus_client_key", "encryption_keys", "acme_eab_key", "acme_dns_key"},
    "ipagent": {"database_password", "bus_client_key", "provider_token"},
}
DRAIN = {"outbound": 120, "inbound": 30}  # the default drain_timeout of their settings

pytestmark = pytest.mark.needs("systemd-analyze")


def settings(name: str) -> list[tuple[str, str]]:
    """The keys and values of one unit file, in order; a key may come more than once."""
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if re.match(r"\w+=", line)]
    return [(key, value) for key, _, value in pairs]


def values(name: str, key: str) -> list[str]:
    """Every value that one unit file gives to one key."""
    return [value for k, value in settings(name) if k == key]


def analyze(root: Path, *arguments: str) -> str:
    """What `systemd-analyze` prints; any complaint fails the test."""
    command = ["systemd-analyze", "--no-pager", f"--root={root}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with systemd's own units, ours, and an empty program for each that they start."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    shutil.copytree(UNITS, root / "etc/systemd/system")
    for name in SERVICES:
        for key, value in settings(f"remails-{name}.service"):
            if key.startswith("Exec"):
                program = root / value.split()[0].lstrip("/")
                program.parent.mkdir(parents=True, exist_ok=True)
                program.write_text("#!/bin/sh\n", encoding="utf-8")
                program.chmod(0o755)
    return root


def test_each_service_word_has_a_unit_and_each_unit_a_service_word() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == {f"remails-{word}.service" for word in SERVICES}


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.iterdir() if path.is_file()))
def test_systemd_reads_the_unit_without_a_complaint(root: Path, unit: str) -> None:
    analyze(root, "verify", "--man=no", unit)


def test_verify_would_see_an_unknown_key(root: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "root"
    shutil.copytree(root, spoiled, symlinks=True)
    unit = spoiled / "etc/systemd/system/remails-bus.service"
    unit.write_text(unit.read_text(encoding="utf-8").replace("WatchdogSec", "WatchdogSecs"), encoding="utf-8")
    with pytest.raises(AssertionError, match="WatchdogSecs"):
        analyze(spoiled, "verify", "--man=no", "remails-bus.service")


@pytest.mark.parametrize("word", SERVICES)
def test_exposure_is_two_or_better(root: Path, word: str) -> None:
    report = analyze(root, "security", "--offline=true", f"remails-{word}.service")
    exposure = re.search(r"Overall exposure level for \S+: (\d+\.\d)", report)
    assert exposure and float(exposure[1]) <= 2.0, report


@pytest.mark.parametrize("word", SERVICES)
def test_unit_sets_no_key_of_the_common_file(word: str) -> None:
    common = {key for key, _ in settings(COMMON)}
    assert not common & {key for key, _ in settings(f"remails-{word}.service")}


def test_exceptions_from_the_common_file_are_few_and_known() -> None:
    drop_ins = {str(path.relative_to(UNITS)) for path in UNITS.glob("*.d/*.conf")}
    assert drop_ins == {COMMON, "remails-bus.service.d/20-netlink.conf", NETWORK}
    assert settings("remails-bus.service.d/20-netlink.conf") == [("RestrictAddressFamilies", "AF_NETLINK")]


def test_only_ipagent_has_capabilities() -> None:
    assert values(COMMON, "CapabilityBoundingSet") == [""]
    capabilities = ["CAP_NET_ADMIN CAP_NET_RAW"]
    assert values(NETWORK, "CapabilityBoundingSet") == values(NETWORK, "AmbientCapabilities") == capabilities


@pytest.mark.parametrize("word", SERVICES)
def test_unit_starts_its_own_subcommand(word: str) -> None:
    unit = f"remails-{word}.service"
    assert values(unit, "ExecStart") == [f"/opt/remails/current/bin/remails {word}"]
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "WantedBy") == ["remails.target"]


@pytest.mark.parametrize("word", SERVICES)
def test_unit_gets_only_the_credentials_it_needs(word: str) -> None:
    given = values(f"remails-{word}.service", "LoadCredential")
    assert sorted(given) == sorted(f"{name}:/etc/remails/credentials/{name}" for name in CREDENTIALS[word])


@pytest.mark.parametrize("word", SERVICES)
def test_unit_is_restarted_for_ever_but_not_with_wrong_settings(word: str) -> None:
    unit = f"remails-{word}.service"
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "RestartPreventExitStatus") == ["78"]
    assert values(COMMON, "StartLimitIntervalSec") == ["0"]


@pytest.mark.parametrize("word", SERVICES)
def test_watchdog_guards_every_service_that_feeds_it(word: str) -> None:
    assert bool(values(f"remails-{word}.service", "WatchdogSec")) == (word != "api"), "gunicorn never sends WATCHDOG=1"


@pytest.mark.parametrize(("word", "drain"), DRAIN.items())
def test_stop_leaves_time_to_drain(word: str, drain: int) -> None:
    (limit,) = values(f"remails-{word}.service", "TimeoutStopSec")
    assert int(limit) >= drain + 30


def test_sockets_have_the_names_the_services_ask_for() -> None:
    names = sorted(path.name for path in UNITS.glob("*.socket"))
    assert {name: (*values(name, "FileDescriptorName"), *values(name, "ListenStream")) for name in names} == SOCKETS


@pytest.mark.parametrize("word", ["api", "inbound"])
def test_service_names_its_sockets(word: str) -> None:
    (named,) = values(f"remails-{word}.service", "Sockets")
    assert set(named.split()) == {name for name in SOCKETS if name.startswith(f"remails-{word}")}
    for name in named.split():
        assert values(name, "Service") in ([], [f"remails-{word}.service"])
