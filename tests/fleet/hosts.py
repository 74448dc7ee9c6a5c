"""Several Debian hosts with real systemd on one machine, and the network between them. Needs root.

    host ──cable── switch ──cable── world        the Internet: router, DNS, the recipients' mail server, clients
    host ──cable──   │
                     └──────cable── control      Ansible's ssh, the packages' HTTP server

A host is `systemd-nspawn --boot` on an overlay over a shared image. Every namespace of the network is its own, and none has a
link to the machine's, so nothing that is sent in here gets out.

The switch is the provider's: a host speaks only from its own address and from those that `own` says it has, and only these reach
it. So an address that moves is a matter of three: the provider (`own`), the host's interface, and the neighbours' ARP caches.

All state is in the kernel and a directory, under the fleet's name: processes in a cgroup of that name, so that exactly they can be
ended, and network namespaces `NAME-*`. Hence a `Fleet` of the same name may be made in another process too:

    hosts.py NAME                 what runs
    hosts.py NAME HOST command    run a command on a host (or in "world" or "control", only in its network)
    hosts.py NAME down            end it
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import image
from image import run

T = TypeVar("T")

NETWORK = "198.51.100"  # TEST-NET-2: the hosts' own addresses
BYOIP = "203.0.113"  # TEST-NET-3: the addresses that move
ROUTER, CONTROL = f"{NETWORK}.1", f"{NETWORK}.2"
# The world must look public, so neither a documentation range: 192.88.99.0/24 was 6to4's and is nobody's now (RFC 7526).
RESOLVER, MX, CLOUD = "192.88.99.53", "192.88.99.25", "192.88.99.80"
PACKAGES_URL = f"http://{CONTROL}"

CGROUPS = next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())
NAMESPACES = Path("/run/netns")
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
CLONE_NEWNET = 0x40000000
POWER_OFF = signal.SIGRTMIN + 4  # systemd(1), SIGNALS
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FILTER = """
table bridge provider {
  set own { type ifname . ipv4_addr; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname { "p-world", "p-control" } jump deliver
    iifname { "p-world", "p-control" } accept
    ether type arp arp saddr ip 0.0.0.0 accept
    ether type arp iifname . arp saddr ip != @own counter drop
    ether type ip iifname . ip saddr != @own counter drop
    ether type != { arp, ip } drop
    jump deliver
  }
  chain deliver {
    oifname { "p-world", "p-control" } accept
    ether type ip ip daddr != 255.255.255.255 oifname . ip daddr != @own counter drop
  }
}
"""


@dataclass(frozen=True)
class Host:
    """One host of a fleet, running or not."""

    name: str
    release: str
    ip: str
    directory: Path
    cgroup: Path
    namespace: str
    switch: str

    PATIENCE: ClassVar[float] = 120
    """Seconds that a command may take, if nothing else is said."""

    @property
    def mac(self) -> str:
        """The address of its network interface."""
        return "02:00:" + ":".join(f"{int(octet):02x}" for octet in self.ip.split("."))

    # Power

    def start(self) -> None:
        """Switch it on; `wait` says when it has booted."""
        for directory in ("upper/etc", "work", "root"):
            (self.directory / directory).mkdir(parents=True, exist_ok=True)
        etc = self.directory / "upper/etc"
        if not (etc / "hostname").exists():
            (etc / "hostname").write_text(f"{self.name}\n", encoding="utf-8")
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.ip} {self.name}\n", encoding="utf-8")
            (etc / "resolv.conf").write_text(f"nameserver {RESOLVER}\n", encoding="utf-8")
        _remove(self.cgroup)  # a cgroup once killed kills what systemd starts into it (Linux 6.18)
        self.cgroup.mkdir()
        # Its cable is plugged in anew at each boot: nothing that an earlier life did to its network is left.
        turn = f"{self._plug()}\n{self._boot()}\n[ $? = 133 ] || exit"  # 133: it wants to reboot
        _spawn(self.cgroup, ["sh", "-c", f"while :; do\n{turn}\ndone"], self.directory / "console.log")

    def _plug(self) -> str:
        inside, outside = f"ip -n {self.namespace}", f"ip -n {self.switch}"
        return f"""
            ip netns del {self.namespace} 2>/dev/null
            {outside} link del p-{self.name} 2>/dev/null
            ip netns add {self.namespace}
            {outside} link add p-{self.name} type veth peer name eth0 address {self.mac} netns {self.namespace}
            {outside} link set p-{self.name} master br0 up
            {inside} link set lo up
            {inside} addr add {self.ip}/24 dev eth0
            {inside} link set eth0 up
            {inside} route add default via {ROUTER}
        """

    def _boot(self) -> str:
        nspawn = [
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only"),
            *("--capability=CAP_NET_ADMIN", f"--network-namespace-path={NAMESPACES / self.namespace}"),
            "--system-call-filter=bpf",  # or else IPAddressDeny= is without effect
            *(f"--machine={self.name}", f"--directory={self.directory}/root"),
        ]
        # In mount namespaces of its own, so that nothing stays mounted behind it: its files; a pure cgroup v2 tree, as any
        # Debian has; and a tmpfs, since nspawn refuses to tidy up below a /run that is none and then cannot reboot.
        script = f"""
            mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd &&
            mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
            mount -t overlay overlay -o {shlex.quote(self._layers())} {self.directory}/root &&
            SYSTEMD_NSPAWN_API_VFS_WRITABLE=network exec {shlex.join(nspawn)}
        """
        return f"unshare --mount sh -c {shlex.quote(script)}"

    def _layers(self) -> str:
        return f"lowerdir={self._image()},upperdir={self.directory}/upper,workdir={self.directory}/work"

    def _image(self) -> Path:
        return image.root(self.release, PACKAGES_URL)

    def wait(self, limit: float = 90) -> str:
        """Wait until it has booted; systemd's word for its state ("running", "degraded").

        Raises:
            TimeoutError: it has not after `limit` seconds, or never will.
        """

        def state() -> str:
            if not _populated(self.cgroup):
                raise TimeoutError(f"{self.name} went off, see {self.directory}/console.log")
            if self.leader() is None:
                return ""
            said = self.run("systemctl is-system-running --wait", check=False).strip()
            return said if said in ("running", "degraded") else ""

        return until(state, limit, f"{self.name} to boot, see {self.directory}/console.log")

    def leader(self) -> int | None:
        """The machine's number for its PID 1; None when it is off."""
        try:
            pids = (self.cgroup / "payload/init.scope/cgroup.procs").read_text(encoding="ascii").split()
        except OSError:
            return None
        for pid in pids:
            with contextlib.suppress(OSError):
                if _status(int(pid), "NSpid").split()[-1] == "1":
                    return int(pid)
        return None

    def kill(self) -> None:
        """Pull the plug: it falls silent, then every process is gone. Its page cache is not: this proves nothing about fsync.

        Nobody hears of it: without the cable no connection is closed by its kernel, which goes on.
        """
        self.cut()
        _end(self.cgroup)

    def lose(self) -> None:
        """Lose it with its disk; what takes its place is a bare host, which has booted."""
        self.kill()
        for directory in ("upper", "work"):
            shutil.rmtree(self.directory / directory)
        self.start()
        self.wait()

    def stop(self, limit: float = 90) -> None:
        """Shut it down in good order."""
        leader = self.leader()
        if leader is not None:
            os.kill(leader, POWER_OFF)
            until(lambda: not _populated(self.cgroup), limit, f"{self.name} to shut down")

    def reboot(self, limit: float = 90) -> None:
        """Have it reboot itself, and wait for that."""
        before = self.leader()
        self.run("systemctl reboot", check=False)
        until(lambda: self.leader() not in (before, None), limit, f"{self.name} to reboot")
        self.wait(limit)

    # Network

    def cut(self) -> None:
        """Pull the network cable."""
        run("ip", "-n", self.switch, "link", "set", f"p-{self.name}", "down")

    def heal(self) -> None:
        """Put the cable back."""
        run("ip", "-n", self.switch, "link", "set", f"p-{self.name}", "up")

    # Inside

    def run(self, command: str, *, check: bool = True, timeout: float | None = None) -> str:
        """What a shell command prints there (both streams). Raises RuntimeError."""
        done = subprocess.run(
            self._shell(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout or self.PATIENCE,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command}: exit {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def _shell(self, command: str) -> list[str]:
        """How to have a shell there do something; not through the network."""
        leader = self.leader()
        if leader is None:
            raise RuntimeError(f"{self.name} is off")
        return [*_enter(leader), "/bin/sh", "-c", command]


class Fleet:
    """Hosts by name, the world and the controller beside them, and the provider's switch between all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = image.CACHE / "running" / name
        self.cgroup = CGROUPS / f"fleet-{name}"
        self.hosts: dict[str, Host] = {}
        for directory in sorted(self.directory.glob("host-*")):  # of an earlier process of this name
            number, release, host = directory.name.removeprefix("host-").split("-", 2)
            self._know(host, release, int(number))

    def up(self) -> None:
        """Make the network, and serve packages in it."""
        # Every systemd watches a handful of files, and all hosts count as one user: Debian's 128 are too few for eleven.
        if int(INOTIFY.read_text(encoding="ascii")) < 1024:
            INOTIFY.write_text("1024", encoding="ascii")
        self.directory.mkdir(parents=True)
        self.cgroup.mkdir()
        run("ip", "netns", "add", self.namespace("switch"))
        self._switch("link", "add", "br0", "type", "bridge", "ageing_time", "100")
        self._switch("link", "set", "br0", "up")
        for end, address in (("world", ROUTER), ("control", CONTROL)):
            self._cable(end, address)
        world = ["ip", "-n", self.namespace("world")]
        for address in (RESOLVER, MX, CLOUD):
            run(*world, "addr", "add", f"{address}/32", "dev", "lo")
        run(*world, "route", "add", f"{BYOIP}.0/24", "dev", "eth0")
        run("ip", "-n", self.namespace("control"), "route", "add", "default", "via", ROUTER)
        self._filter(FILTER)
        run(*self.inside("world"), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.serve(
            "control", [sys.executable, "-m", "http.server", "80", "--bind", CONTROL, "--directory", self._packages()]
        )

    def _packages(self) -> str:
        """A directory with a repository for each Debian."""
        directory = self.directory / "packages"
        directory.mkdir()
        for release in image.RELEASES:
            root = image.root(release, PACKAGES_URL)
            (directory / release).symlink_to(image.repository(release, root))
        return str(directory)

    def down(self) -> None:
        """End every process of this fleet, and leave nothing behind."""
        _end(self.cgroup)
        _remove(self.cgroup)
        for namespace in NAMESPACES.glob(f"{self.name}-*"):
            run("ip", "netns", "del", namespace.name)
        shutil.rmtree(self.directory, ignore_errors=True)

    # Hosts

    def add(self, name: str, release: str = "bookworm") -> Host:
        """A new host, switched on."""
        host = self._know(name, release, 11 + len(self.hosts))
        host.directory.mkdir()
        self._filter(f'add element bridge provider own {{ "p-{name}" . {host.ip} }}')
        host.start()
        return host

    @contextlib.contextmanager
    def lending(self, **releases: str) -> Iterator[list[Host]]:
        """Hosts by their names and Debian releases, booted; they are gone afterwards."""
        hosts = [self.add(name, release) for name, release in releases.items()]
        try:
            for host in hosts:
                host.wait()
            yield hosts
        finally:
            for host in hosts:
                host.kill()
                del self.hosts[host.name]
                shutil.rmtree(host.directory)

    def _know(self, name: str, release: str, number: int) -> Host:
        self.hosts[name] = Host(
            name=name,
            release=release,
            ip=f"{NETWORK}.{number}",
            directory=self.directory / f"host-{number}-{release}-{name}",
            cgroup=self.cgroup / name,
            namespace=self.namespace(name),
            switch=self.namespace("switch"),
        )
        return self.hosts[name]

    # The provider's network

    def own(self, address: str, host: Host | None) -> None:
        """Let the address belong to this host and to no other, in one step; None: to nobody."""
        rules = [f'delete element bridge provider own {{ "p-{name}" . {address} }}' for name in self._owners(address)]
        if host is not None:
            rules.append(f'add element bridge provider own {{ "p-{host.name}" . {address} }}')
        self._filter("\n".join(rules))

    def share(self, address: str, *hosts: Host) -> None:
        """Let these hosts settle among themselves who has the address, as on a network where the provider has no say."""
        self._filter("\n".join(f'add element bridge provider own {{ "p-{host.name}" . {address} }}' for host in hosts))

    def owner(self, address: str) -> str | None:
        """The name of the host that has the address."""
        return next(iter(self._owners(address)), None)

    def _owners(self, address: str) -> list[str]:
        words = run(*self.inside("switch"), "nft", "list", "set", "bridge", "provider", "own").replace(",", " ").split()
        ports = [words[at - 2] for at, word in enumerate(words) if word == address and words[at - 1] == "."]
        return [port.strip('"').removeprefix("p-") for port in ports]

    def _filter(self, rules: str) -> None:
        run(*self.inside("switch"), "nft", "-f", "-", stdin=rules + "\n")

    def _switch(self, *words: str) -> None:
        run("ip", "-n", self.namespace("switch"), *words)

    def _cable(self, end: str, address: str) -> None:
        """A namespace with one cable to the switch."""
        namespace = self.namespace(end)
        run("ip", "netns", "add", namespace)
        self._switch("link", "add", f"p-{end}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        self._switch("link", "set", f"p-{end}", "master", "br0", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            run("ip", "-n", namespace, *words)

    # Work elsewhere in the network

    def namespace(self, end: str) -> str:
        """The name of a network namespace: "world", "control", "switch" or a host's."""
        return f"{self.name}-{end}"

    def inside(self, end: str) -> list[str]:
        """What to put before a command so that it runs in that network."""
        return ["ip", "netns", "exec", self.namespace(end)]

    def serve(self, end: str, command: Sequence[str]) -> None:
        """Start a program of the fleet's in that network; `down` ends it."""
        cgroup = self.cgroup / f"at-{end}"
        cgroup.mkdir(exist_ok=True)
        _spawn(cgroup, [*self.inside(end), *command], self.directory / f"{end}.log")

    @contextlib.contextmanager
    def network(self, end: str) -> Iterator[None]:
        """Let this thread make its sockets in that network; they stay there."""
        with Path(f"/proc/self/task/{threading.get_native_id()}/ns/net").open("rb") as here:
            with (NAMESPACES / self.namespace(end)).open("rb") as there:
                _setns(there.fileno())
            try:
                yield
            finally:
                _setns(here.fileno())


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _enter(leader: int) -> list[str]:
    """How to run something on a host with just the capabilities that its PID 1 has.

    nsenter alone keeps those of the machine, and then `date -s` on a host would set the machine's clock.
    """
    bound = int(_status(leader, "CapBnd"), 16)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    kept = ",".join(["-all", *(f"+cap_{number}" for number in range(last + 1) if bound >> number & 1)])
    nsenter = ["nsenter", f"--target={leader}", *("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")]
    setpriv = ["/usr/bin/setpriv", f"--bounding-set={kept}", "--inh-caps=-all"]
    return [*nsenter, "--", *setpriv, "--", "/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]


def _status(pid: int, key: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return line.partition(":")[2].strip()
    raise OSError(f"process {pid} has no {key}")


def _spawn(cgroup: Path, command: Sequence[str], log: Path) -> None:
    """Start a program as a member of a cgroup and nobody's child; what it prints is appended to the log."""
    join = ["sh", "-c", 'echo $$ >"$0" && exec setsid --fork "$@"', str(cgroup / "cgroup.procs")]
    with log.open("ab") as file:
        subprocess.run([*join, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True)


def _populated(cgroup: Path) -> bool:
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text(encoding="ascii")
    except OSError:
        return False


def _end(cgroup: Path) -> None:
    """Kill every process in the cgroup and below, and wait until all are gone."""
    if cgroup.is_dir():
        (cgroup / "cgroup.kill").write_text("1", encoding="ascii")
        until(lambda: not _populated(cgroup), 30, f"the processes of {cgroup.name} to end")


def _remove(cgroup: Path) -> None:
    if cgroup.is_dir():
        for below in sorted((path for path in cgroup.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
            below.rmdir()
        cgroup.rmdir()


def until(ask: Callable[[], T], limit: float, what: str) -> T:
    """Ask again until the answer is true. Raises TimeoutError that says what was waited for.

    A question that takes long is asked more rarely, so that it does not take the machine from those that it asks about.
    """
    end = time.monotonic() + limit
    began = time.monotonic()
    while not (answer := ask()):
        now = time.monotonic()
        if now > end:
            raise TimeoutError(f"waited {limit:.0f} s for {what}")
        time.sleep(max(0.05, min(2.0, 3 * (now - began))))
        began = time.monotonic()
    return answer


def main(name: str, *words: str) -> None:
    """See the module's text."""
    fleet = Fleet(name)
    match words:
        case []:
            for host in fleet.hosts.values():
                sys.stdout.write(f"{host.name} {host.release} {host.ip} {'on' if host.leader() else 'off'}\n")
        case ["down"]:
            fleet.down()
        case ["world" | "control" | "switch" as end, *command]:
            os.execvp("ip", [*fleet.inside(end), *command])
        case [host, *command]:
            leader = fleet.hosts[host].leader()
            if leader is None:
                sys.exit(f"{host} is off")
            os.execvp("nsenter", [*_enter(leader), *(command or ["/bin/bash", "-l"])])


if __name__ == "__main__":
    main(*sys.argv[1:])
