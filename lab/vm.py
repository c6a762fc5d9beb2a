"""Host kind 2: a virtual machine, for what needs a kernel of its own. Boots in half a minute."""

from pathlib import Path

from lab import network, process, rootfs
from lab.command import run
from lab.kernel import kernel
from lab.state import HostRecord

MEMORY = 1 << 30
DISK = 4 << 30
# Boots in 17 s on two idle cores, in 30 s beside other work.
READY_SECONDS = 240


def start(host: HostRecord) -> None:
    """Make what the host needs and begin to boot it; it is not ready yet."""
    stop(host)
    tap = network.make_tap(host)
    disk = host.folder / "disk"
    if not disk.exists():
        _make_disk(host, disk)
    address = f"address={host.address}/24 gateway={network.GATEWAY}"
    process.start(
        console(host),
        [
            *("nsenter", f"--net={network.path(network.namespace(host.lab))}"),
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "pc,hpet=off", "-accel", "tcg,thread=multi,tb-size=256"),
            *("-cpu", "max", "-smp", "2", "-m", f"size={(host.memory or MEMORY) >> 20}M"),
            *("-kernel", str(kernel() / "vmlinuz"), "-initrd", str(kernel() / "initrd")),
            *("-append", f"console=ttyS0 quiet net.ifnames=0 {address}"),
            *("-drive", f"file={disk},format=raw,if=virtio,discard=unmap,cache=unsafe"),
            *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
            # Its boot ROM is in a package that is not needed otherwise.
            *("-device", f"virtio-net-pci,netdev=net,mac={_mac(host)},romfile="),
            *("-serial", "stdio"),
        ],
    )


def stop(host: HostRecord) -> None:
    """Switch the host off at once; its disk stays."""
    process.stop(console(host))


def console(host: HostRecord) -> Path:
    """Return the record of the host's process; its log is the host's console."""
    return host.folder / "console"


def _make_disk(host: HostRecord, disk: Path) -> None:
    root = rootfs.make(host, kernel() / "root")
    unfinished = disk.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    size = f"{(host.disk or DISK) >> 10}k"
    run("mke2fs", "-q", "-t", "ext4", "-d", root, unfinished, size)
    rootfs.unmount(host)
    unfinished.rename(disk)


def _mac(host: HostRecord) -> str:
    # The prefix is qemu's; labs may repeat addresses, being apart.
    return f"52:54:00:0a:4d:{host.number:02x}"
