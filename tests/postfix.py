"""A Postfix of a test's own: one listener, one domain whose mail goes into a Maildir. Needs root."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_EVERY_MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
maillog_file = {directory}/log/mail.log
maillog_file_prefixes = {directory}
mail_owner = postfix
setgid_group = postdrop
inet_protocols = ipv4
mydestination =
local_recipient_maps =
alias_maps =
message_size_limit = 60000000
smtpd_peername_lookup = no
smtpd_tls_chain_files = {key}, {certificate}
"""
_EVERY_MASTER = """\
{ip}:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
"""

_MAIN = """\
myhostname = mx.{domain}
inet_interfaces = all
virtual_mailbox_domains = {domain}
virtual_mailbox_maps = static:box/
virtual_mailbox_base = {directory}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
smtpd_tls_security_level = may
smtpd_relay_restrictions = reject_unauth_destination
"""
_MASTER = "virtual unix - n n - - virtual\n"


def lay_out(directory: Path, main: str, master: str, **values: object) -> "pwd.struct_passwd":
    """The folders and settings of a Postfix: what every one has, and `main` and `master` of its own. Who owns its data.

    Filled in are `values`, among them `ip`, `port`, `certificate` and `key`, and `directory`, `uid` and `gid`.
    """
    owner = pwd.getpwnam("postfix")
    for name in ("etc", "queue", "data", "mail", "log"):
        (directory / name).mkdir(parents=True)
    for name in ("data", "mail"):
        os.chown(directory / name, owner.pw_uid, owner.pw_gid)
    values |= {"directory": directory, "uid": owner.pw_uid, "gid": owner.pw_gid}
    (directory / "etc" / "main.cf").write_text((_EVERY_MAIN + main).format(**values))
    (directory / "etc" / "master.cf").write_text((_EVERY_MASTER + master).format(**values))
    return owner


@contextlib.contextmanager
def started(directory: Path) -> Iterator[None]:
    """The Postfix of a directory that was laid out, until the block ends."""
    command = ["/usr/sbin/postfix", "-c", str(directory / "etc")]
    subprocess.run([*command, "start"], check=True, capture_output=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run([*command, "stop"], check=True, capture_output=True, timeout=30)


class Postfix:
    """A running Postfix."""

    def __init__(self, directory: Path) -> None:
        self._mail = directory / "mail" / "box" / "new"
        self._log = directory / "log" / "mail.log"

    def received(self, text: bytes, timeout: float = 20) -> bytes:
        """The mail that contains `text`, once it has come, with CRLF as it was on the wire."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for path in self._mail.glob("*") if self._mail.exists() else ():
                raw = path.read_bytes().replace(b"\n", b"\r\n")
                if text in raw:
                    return raw
            time.sleep(0.05)
        raise TimeoutError(self.log())

    def log(self) -> str:
        """What it logged."""
        return self._log.read_text() if self._log.exists() else ""


@contextlib.contextmanager
def running(domain: str, ip: str, port: int, certificate: Path, key: Path) -> Iterator[Postfix]:
    """Postfix as the mail server of `domain` at this address."""
    # Not below pytest's directory: Postfix's processes are not root, and that one is for nobody else.
    directory = Path(tempfile.mkdtemp(prefix="postfix-"))
    directory.chmod(0o755)
    lay_out(directory, _MAIN, _MASTER, domain=domain, ip=ip, port=port, certificate=certificate, key=key)
    try:
        with started(directory):
            yield Postfix(directory)
    finally:
        shutil.rmtree(directory)
