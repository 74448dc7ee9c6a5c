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

_MAIN = """\
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
maillog_file = {directory}/log/mail.log
maillog_file_prefixes = {directory}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.{domain}
inet_interfaces = all
inet_protocols = ipv4
mydestination =
local_recipient_maps =
alias_maps =
virtual_mailbox_domains = {domain}
virtual_mailbox_maps = static:box/
virtual_mailbox_base = {directory}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
message_size_limit = 60000000
smtpd_tls_security_level = may
smtpd_tls_chain_files = {key}, {certificate}
smtpd_peername_lookup = no
smtpd_relay_restrictions = reject_unauth_destination
"""
_MASTER = """\
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
virtual unix - n n - - virtual
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
"""


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
    owner = pwd.getpwnam("postfix")
    # Not below pytest's directory: Postfix's processes are not root, and that one is for nobody else.
    directory = Path(tempfile.mkdtemp(prefix="postfix-"))
    directory.chmod(0o755)
    for name in ("etc", "queue", "data", "mail", "log"):
        (directory / name).mkdir(parents=True)
    for name in ("data", "mail"):
        os.chown(directory / name, owner.pw_uid, owner.pw_gid)
    values = {
        "directory": directory,
        "domain": domain,
        "ip": ip,
        "port": port,
        "uid": owner.pw_uid,
        "gid": owner.pw_gid,
        "certificate": certificate,
        "key": key,
    }
    (directory / "etc" / "main.cf").write_text(_MAIN.format(**values))
    (directory / "etc" / "master.cf").write_text(_MASTER.format(**values))
    command = ["/usr/sbin/postfix", "-c", str(directory / "etc")]
    subprocess.run([*command, "start"], check=True, capture_output=True, timeout=30)
    try:
        yield Postfix(directory)
    finally:
        subprocess.run([*command, "stop"], check=True, capture_output=True, timeout=30)
        shutil.rmtree(directory)
