"""A host of the fleet with a kernel of its own, in an emulated machine: for what hosts that share one cannot show.

Pulling its plug takes the page cache along, so that what comes back is what was flushed; and the memory that a unit is granted is
all that it gets. It is some ten times slower than the others.
"""

import shlex
from typing import ClassVar

import image
from hosts import PACKAGES_URL, ROUTER, Fleet, Host
from image import run

KERNEL = ("initramfs-tools", "linux-image-cloud-amd64", "udev")
MEMORY, DISK = "2G", "6G"
PREPARE = """
set -e
echo 'deb [trusted=yes] {packages} ./' >/etc/apt/sources.list.d/kernel.list
apt-get -q update
DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends {kernel}
printf '[Match]\nName=eth0\n[Network]\nAddress={ip}/24\nGateway={router}\n' >/etc/systemd/network/eth0.network
systemctl enable systemd-networkd
"""


class Machine(Host):
    """See the module's text. It takes the place of a host that is shut down, and has its files as they were then."""

    PATIENCE: ClassVar[float] = 600

    @classmethod
    def instead_of(cls, host: Host, fleet: Fleet) -> "Machine":
        """Shut the host down and make the machine, which is off."""
        machine = cls(**vars(host))
        name = f"{host.release}-kernel"
        (fleet.directory / "packages" / name).symlink_to(image.repository(host.release, machine._image(), KERNEL))
        said = {"packages": f"{PACKAGES_URL}/{name}", "kernel": " ".join(KERNEL), "ip": host.ip, "router": ROUTER}
        host.run(PREPARE.format(**said), timeout=600)
        host.stop()
        machine._fill()
        return machine

    def _fill(self) -> None:
        """Make the disk, and lay what boots it beside it."""
        here = self.directory
        script = f"""
            set -e
            mount -t overlay overlay -o {shlex.quote(self._layers())} {here}/root
            cp --dereference {here}/root/vmlinuz {here}/root/initrd.img {here}
            mke2fs -q -t ext4 -d {here}/root {here}/disk {DISK}
        """
        run("unshare", "--mount", "sh", "-c", script)

    def _plug(self) -> str:
        switch = f"ip -n {self.switch}"
        return f"""
            {switch} link del p-{self.name} 2>/dev/null
            {switch} tuntap add p-{self.name} mode tap
            {switch} link set p-{self.name} master br0 up
        """

    def _boot(self) -> str:
        return shlex.join(
            [
                *("ip", "netns", "exec", self.switch),
                *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
                *("-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", MEMORY),
                *("-drive", f"file={self.directory}/disk,if=virtio,format=raw"),
                *("-netdev", f"tap,id=cable,ifname=p-{self.name},script=no,downscript=no"),
                *("-device", f"virtio-net-pci,netdev=cable,mac={self.mac}", "-device", "virtio-rng-pci"),
                *("-kernel", f"{self.directory}/vmlinuz", "-initrd", f"{self.directory}/initrd.img"),
                *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0"),
            ]
        )

    def leader(self) -> int | None:
        """The number of the process that is the machine; None when it is off."""
        pids = (self.cgroup / "cgroup.procs").read_text(encoding="ascii").split() if self.cgroup.is_dir() else []
        return int(pids[-1]) if pids else None

    def _shell(self, command: str) -> list[str]:
        """How to have a shell there do something: by ssh."""
        return [
            *("ip", "netns", "exec", self.switch.replace("-switch", "-control")),
            *("ssh", "-i", str(image.key()), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10", f"root@{self.ip}", command),
        ]
