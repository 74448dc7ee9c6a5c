"""What testssl.sh, which is not ours, finds at the listeners: no weak protocol or cipher."""

import json
import subprocess
from pathlib import Path

import pytest
from inbound.running import Running

PROTOCOLS = {
    "SSLv2": "not offered",
    "SSLv3": "not offered",
    "TLS1": "not offered",
    "TLS1_1": "not offered",
    "TLS1_2": "offered",
    "TLS1_3": "offered with final",
}
CIPHERS = {
    "cipherlist_NULL": "not offered",
    "cipherlist_aNULL": "not offered",
    "cipherlist_EXPORT": "not offered",
    "cipherlist_LOW": "not offered",
    "cipherlist_3DES_IDEA": "not offered",
    "cipherlist_AVERAGE": "not offered",  # CBC
    "cipherlist_STRONG": "offered",
}


@pytest.mark.needs("testssl")
@pytest.mark.timeout(300)  # it tries very many handshakes, each with a program
@pytest.mark.parametrize(
    ("listener", "options", "expected"),
    [
        ("smtps", ["--protocols", "--std"], PROTOCOLS | CIPHERS),
        ("submission", ["--protocols", "-t", "smtp"], PROTOCOLS),  # the same settings, behind STARTTLS
    ],
)
def test_nothing_weak_is_offered(
    inbound: Running, tmp_path: Path, listener: str, options: list[str], expected: dict[str, str]
) -> None:
    answer = tmp_path / "answer.json"
    command = ["testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--jsonfile", str(answer)]
    done = subprocess.run(
        [*command, *options, f"127.0.0.1:{inbound.port(listener)}"],
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert answer.exists(), done.stdout + done.stderr
    found = {row["id"]: row["finding"] for row in json.loads(answer.read_text())}
    assert {name: found.get(name, "missing").partition(" (")[0] for name in expected} == expected
