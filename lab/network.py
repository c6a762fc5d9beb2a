"""A lab's network: a namespace with a bridge, and for each host a namespace with a link to it.

Nothing of it is in the root namespace, so labs can use the same addresses at the same time.
"""

from pathlib import Path

from lab.command import run
from lab.state import HostRecord

GATEWAY = "10.77.0.1"
FIRST_NUMBER = 11
_NAMESPACES = Path("/run/netns")


def namespace(lab: str) -> str:
    """Return the name of the lab's namespace."""
    return f"vistral-{lab}"


def path(name: str) -> Path:
    """Return the file by which a namespace is entered."""
    return _NAMESPACES / name


def make_lab(lab: str) -> None:
    """Make the lab's namespace with its bridge, if it is not there."""
    name = namespace(lab)
    if path(name).exists():
        return
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "-n", name, "link", "add", "bridge", "type", "bridge")
    run("ip", "-n", name, "address", "add", f"{GATEWAY}/24", "dev", "bridge")
    run("ip", "-n", name, "link", "set", "bridge", "up")
    # Hosts have a default route, as in production, but it leads nowhere. Only a forwarding router
    # answers "unreachable"; otherwise attempts would wait for their time-out.
    run("nsenter", f"--net={path(name)}", "sysctl", "-qw", "net.ipv4.ip_forward=1")


def make_host(host: HostRecord) -> None:
    """Make the host's namespace with a link to the bridge, its address and its default route."""
    if path(host.machine).exists():
        return
    run("ip", "netns", "add", host.machine)
    run(
        *("ip", "-n", namespace(host.lab), "link", "add", _port(host), "type", "veth"),
        *("peer", "name", "host0", "netns", host.machine),
    )
    run("ip", "-n", namespace(host.lab), "link", "set", _port(host), "master", "bridge", "up")
    run("ip", "-n", host.machine, "link", "set", "lo", "up")
    run("ip", "-n", host.machine, "address", "add", f"{host.address}/24", "dev", "host0")
    run("ip", "-n", host.machine, "link", "set", "host0", "up")
    run("ip", "-n", host.machine, "route", "add", "default", "via", GATEWAY)


def make_tap(host: HostRecord) -> str:
    """Make a virtual machine's link to the bridge and return its name in the lab's namespace."""
    name, tap = namespace(host.lab), _port(host)
    if f" {tap}:" not in run("ip", "-n", name, "-oneline", "link"):
        run("ip", "-n", name, "tuntap", "add", "dev", tap, "mode", "tap")
        run("ip", "-n", name, "link", "set", tap, "master", "bridge", "up")
    return tap


def names(lab: str) -> list[str]:
    """Return the namespaces of the lab and its hosts that exist."""
    found = [*_NAMESPACES.glob(f"{namespace(lab)}.*"), *_NAMESPACES.glob(namespace(lab))]
    return [file.name for file in found]


def remove_lab(lab: str) -> None:
    """Remove the lab's namespace and its hosts'; links end with the namespaces they are in."""
    for name in names(lab):
        run("ip", "netns", "delete", name)


def _port(host: HostRecord) -> str:
    return f"host{host.number}"
