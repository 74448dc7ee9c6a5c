"""What the hosts boot: a bare Debian, and the packages that the roles may ask apt for.

`root` makes a release's root file system by mmdebstrap: what a provider's image has, and our key for root. `repository` holds
whatever the roles install on top of that and what it needs, for the hosts have no way out to a mirror. Both are kept in a
cache outside the checkout under the digest of their recipe, and come by rename, so that half of one is never used.

The mirror is the one that this machine's own apt is set up with; its name stays out of image and project.
"""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("REMAILS_FLEET_CACHE", "/var/cache/remails-fleet"))
RELEASES = {"bookworm": 12, "trixie": 13}

BARE = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "libnss-systemd",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)
ON_TOP = (
    "acl",
    "certbot",
    "chrony",
    "dns-root-data",
    "etcd-client",
    "etcd-server",
    "haproxy",
    "keepalived",
    "nftables",
    "patroni",
    "pgbackrest",
    "postgresql",
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-blackbox-exporter",
    "prometheus-node-exporter",
    "prometheus-postgres-exporter",
    "python3-apt",
    "python3-certbot-dns-rfc2136",
    "python3-etcd",
    "python3-psycopg2",
    "python3-venv",
    "restic",
    "unattended-upgrades",
    "unbound",
)

# What has no meaning on a shared kernel, and what would ask a mirror every day.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "systemd-modprobe@.service",
    "systemd-networkd-wait-online.service",
)
SSH_KEYS = "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n"


def key() -> Path:
    """The private key that every image lets in as root."""
    path = CACHE / "id_ed25519"
    if not path.exists():
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet tests", "-f", path)
    return path


def root(release: str, mirror_url: str) -> Path:
    """The root file system of a Debian release, whose apt asks only `mirror_url`; made if absent."""
    public = key().with_suffix(".pub").read_text(encoding="utf-8")
    path = CACHE / f"{release}-{_digest(BARE, MASKED, SSH_KEYS, public, mirror_url, inspect.getsource(_bootstrap))}"
    if not path.exists():
        with _new(path) as new:
            _bootstrap(release, new, public, mirror_url)
    return path


def _bootstrap(release: str, root: Path, public_key: str, mirror_url: str) -> None:
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(BARE)}", release, root),
        f"deb {_mirror()} {release} main",
    )
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] {mirror_url}/{release} ./\n", encoding="utf-8")
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_text(public_key, encoding="utf-8")
    for made_once in (root / "etc/ssh").glob("ssh_host_*"):  # each host makes its own when it first starts
        made_once.unlink()
    (root / "etc/systemd/system/ssh.service.d").mkdir()
    (root / "etc/systemd/system/ssh.service.d/keys.conf").write_text(SSH_KEYS, encoding="utf-8")
    (root / "etc/machine-id").write_text("", encoding="utf-8")  # not "uninitialized": that would preset all units
    for unit in MASKED:
        (root / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")


def repository(release: str, root: Path, packages: Sequence[str] = ON_TOP) -> Path:
    """A flat apt repository of these packages and what they need beside what `root` has; made if absent."""
    path = CACHE / f"packages-{_digest(root.name, packages, inspect.getsource(_download))}"
    if not path.exists():
        with _new(path) as new:
            _download(release, root, packages, new)
    return path


def _download(release: str, root: Path, packages: Sequence[str], repository: Path) -> None:
    """Let this machine's apt work out and fetch what is missing in `root`."""
    with tempfile.TemporaryDirectory() as scratch:
        state, sources = Path(scratch), Path(scratch, "sources.list")
        (state / "lists/partial").mkdir(parents=True)
        (repository / "partial").mkdir()
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        sources.write_text(f"deb [signed-by={keyring}] {_mirror()} {release} main\n", encoding="utf-8")
        options = {
            "APT::Architecture": "amd64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "true",
            "Dir::Cache::archives": repository,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": state,
            "Dir::State::status": root / "var/lib/dpkg/status",
        }
        apt = ["apt-get", "--quiet", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
        run(*apt, "update")
        run(*apt, "install", "--yes", "--download-only", *packages)
    shutil.rmtree(repository / "partial")
    (repository / "lock").unlink(missing_ok=True)
    (repository / "Packages").write_text(run("apt-ftparchive", "packages", ".", cwd=repository), encoding="utf-8")


def _mirror() -> str:
    """The first Debian mirror in this machine's sources."""
    uris = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"
    )
    return uris.splitlines()[0]


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A directory that becomes `path` when the block ends well."""
    print(f"making {path}", file=sys.__stderr__, flush=True)  # a minute's work
    scratch = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
    new = scratch / "new"
    new.mkdir()
    try:
        yield new
        new.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digest(*recipe: object) -> str:
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def run(*command: object, cwd: Path | None = None, stdin: str | None = None) -> str:
    """What a command prints. Raises RuntimeError with its complaint."""
    words: Sequence[str] = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)[:200]}: exit {done.returncode}\n{done.stderr[-2000:] or done.stdout[-2000:]}"
        )
    return done.stdout
