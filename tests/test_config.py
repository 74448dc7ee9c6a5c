"""Settings: what is wrong names itself."""

from pathlib import Path

import pytest

from remails import config
from remails.errors import ConfigError

GOOD = """
host = "h1"
[mail]
hostname = "relay.example"
[database]
dsn = "host=db dbname=remails"
"""


def test_the_least_that_is_needed() -> None:
    settings = config.decode(GOOD.encode())
    assert settings.outbound.port == 25
    assert not settings.outbound.allow_private_destinations
    assert settings.mail.max_size == 40 * 1024 * 1024
    assert settings.spf_include == "relay.example"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('host = "h1"\n[mail]\nhostname = "x"\n', "settings: database: missing"),
        (GOOD + "[outbound]\nconcurency = 3\n", "settings: outbound.concurency: unknown key"),
        (GOOD + '[outbound]\nconcurrency = "3"\n', "settings: outbound.concurrency: expected `int`, got `str`"),
        (GOOD + "[outbound]\nconcurrency = 0\n", "settings: outbound.concurrency: expected `int` >= 1"),
        (GOOD + "[inbound]\nsmtps_port = 70000\n", "settings: inbound.smtps_port: expected `int` <= 65535"),
        (GOOD + '[dns]\nnameservers = ["ns1.example"]\n', "settings: dns.nameservers: expected an address and port"),
        (GOOD + '[[bus.endpoints]]\npublish = "tcp://x:1"\n', "settings: bus.endpoints[0].subscribe: missing"),
        (GOOD + '[logs]\nlevel = "loud"\n', "settings: logs.level: expected DEBUG, INFO, WARNING or ERROR"),
        ("host = ", "settings: not valid TOML"),
    ],
)
def test_a_wrong_key_or_type_names_itself(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.decode(text.encode())
    assert str(caught.value).startswith(error)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read settings .*nope.toml: No such file"):
        config.load(str(tmp_path / "nope.toml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_endpoints(text: str, expected: tuple[str, int]) -> None:
    assert config.endpoint(text, 53) == expected


def test_a_password_that_may_not_be_read_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.decode((f'credentials_directory = "{tmp_path}"\n' + GOOD).encode())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)

    def refuse(*_args: object, **_kwargs: object) -> None:  # root, who may run this, may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", refuse)
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(ConfigError, match=r"cannot read .*database_password \(Permission denied\)"):
        settings.database_password()


def test_credentials_come_from_systemd_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.decode((f'credentials_directory = "{tmp_path}"\n' + GOOD).encode())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert settings.database_password() is None
    with pytest.raises(ConfigError, match=r"credential pepper: cannot read .*pepper \(No such file"):
        settings.credential("pepper")
    (tmp_path / "pepper").write_text("here\n")
    assert settings.credential("pepper") == "here"
    systemd = tmp_path / "systemd"
    systemd.mkdir()
    (systemd / "pepper").write_text("there")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(systemd))
    assert settings.credential("pepper") == "there"


def test_network_of_proxies_is_checked() -> None:
    text = (
        'host = "a"\n[mail]\nhostname = "a.example"\n[database]\ndsn = ""\n[inbound]\nproxy_trusted = ["10.0.0.1/8"]\n'
    )
    with pytest.raises(ConfigError, match=r"inbound\.proxy_trusted: expected a network such as 10\.0\.0\.0/24"):
        config.decode(text.encode())
