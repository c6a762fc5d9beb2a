"""A lab: some disposable Debian 12 hosts on a network of their own. The Python interface."""

import os
import signal
from contextlib import suppress
from typing import Any

from lab import apt, network, packages, process, rootfs, state
from lab.command import run, say
from lab.errors import LabError
from lab.host import Host
from lab.image import image
from lab.kernel import kernel
from lab.relay import Forward
from lab.state import HostRecord


class Lab:
    """A lab by its name, whether it exists yet or not. As a context manager it ends in `down`."""

    def __init__(self, name: str) -> None:
        self.name = state.check_name("lab", name)
        self.folder = state.folder(name)
        self._namespace = network.path(network.namespace(name))

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def hosts(self) -> list[Host]:
        """The lab's hosts in the order of their addresses."""
        return [Host(record) for record in state.records(self.name)]

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts) or "none"
        raise LabError(
            f"lab {self.name} has no host {name!r} (its hosts: {known});"
            f" make it: python -m lab up {self.name} {name}"
        )

    def up(
        self,
        *names: str,
        memory: int | None = None,
        tmpfs: dict[str, int] | None = None,
        vm: bool = False,
        disk: int | None = None,
    ) -> list[Host]:
        """Boot hosts and return when all answer by SSH; those that run already are left alone.

        `memory` limits each host, in bytes. `tmpfs` maps a path in the host to the bytes of a small
        disk there, whose content does not survive a reboot. `vm` makes virtual machines instead of
        containers; `memory` (1 GiB) and `disk` (4 GiB) are then what they have.
        """
        for name in names:
            state.check_name("host", name)
        if vm and tmpfs:
            raise LabError(f"tmpfs {tmpfs} is for containers; give a virtual machine a small disk")
        if disk is not None and not vm:
            raise LabError(f"disk {disk} is for virtual machines; give a container a tmpfs")
        packages.require(vm)
        # Before the lock, for both may take a minute.
        image()
        if vm:
            kernel()
        options = {"memory": memory, "tmpfs": tmpfs or {}, "vm": vm, "disk": disk}
        with state.lock():
            self._make()
            for name in names:
                self._record(name, options)
            hosts = [self.host(name) for name in names]
            for host in hosts:
                if host.is_running:
                    say(f"Host {host.name} of lab {self.name} already runs at {host.address}.")
                else:
                    say(f"Booting host {host.name} of lab {self.name} at {host.address} …")
                    host.start()
        for host in hosts:
            host.wait_ready()
        return hosts

    def inventory(self) -> dict[str, Any]:
        """Return an Ansible inventory of the lab's hosts."""
        return {
            "all": {
                "hosts": {host.name: {"ansible_host": host.address} for host in self.hosts},
                "vars": {
                    "ansible_user": "root",
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "ansible_ssh_executable": str(self.folder / "ssh"),
                    "ansible_ssh_private_key_file": str(self.folder / "key"),
                    # sftp and scp would not go through the executable above.
                    "ansible_ssh_transfer_method": "piped",
                    "ansible_ssh_common_args": "-o StrictHostKeyChecking=no"
                    " -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
                },
            }
        }

    def forward(self, host: str, port: int, local_port: int = 0) -> Forward:
        """Return a port on loopback that leads to the host's, until closed; 0 takes any free one.

        >>> with lab.forward("web", 8080) as web:
        ...     urllib.request.urlopen(f"{web.url}/health/live")
        """
        return Forward(self._namespace, self.host(host).address, port, local_port)

    def keep_forwarding(self, host: str, port: int, local_port: int) -> str:
        """Forward as `forward` does, in a process that stays until `down`; return the URL."""
        address = self.host(host).address
        record = self.folder / f"forward-{host}-{port}-{local_port}"
        arguments = (str(self._namespace), address, str(port), str(local_port))
        log = record.with_suffix(".log")
        with state.lock():
            if process.running(record) is None:
                process.start(record, process.module("lab.relay", *arguments))
        # It says its URL once it listens, or why it cannot.
        process.wait_until(lambda: bool(log.read_text()), 10)
        said = log.read_text().strip()
        if not said.startswith("http"):
            raise LabError(said)
        return said

    def down(self) -> None:
        """Remove every trace of the lab, whatever is left of it; no error if there is none."""
        with state.lock():
            for host in self.hosts:
                host.stop()
            process.wait_until(self._left_network, 10)
            for file in self.folder.glob("*.pid"):
                process.stop(file.with_suffix(""))
            for record in state.records(self.name):
                rootfs.unmount(record)
            network.remove_lab(self.name)
            state.remove_folder(self.name)

    def _make(self) -> None:
        state.make_folder(self.name)
        network.make_lab(self.name)
        key, wrapper = self.folder / "key", self.folder / "ssh"
        if not wrapper.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key)
            wrapper.touch(mode=0o755)
            wrapper.write_text(f'#!/bin/sh\nexec nsenter --net={self._namespace} ssh "$@"\n')
        if process.running(self.folder / "proxy") is None:
            servers = sorted(apt.servers(apt.sources()))
            command = process.module("lab.proxy", str(self._namespace), *servers)
            process.start(self.folder / "proxy", command)

    def _record(self, name: str, options: dict[str, Any]) -> None:
        """Give a new host its address; an old one must be what the options ask for."""
        records = state.records(self.name)
        for record in records:
            if record.name == name:
                for key, wish in options.items():
                    if wish and wish != getattr(record, key):
                        raise LabError(
                            f"host {name} of lab {self.name} exists with {key}"
                            f" {getattr(record, key)}, not {wish}; to change it remove the lab"
                            f" first: python -m lab down {self.name}"
                        )
                return
        used = {record.number for record in records}
        number = next(n for n in range(network.FIRST_NUMBER, 255) if n not in used)
        HostRecord(self.name, name, number, **options).save()

    def _left_network(self) -> bool:
        """Ask what is still in the lab's network to end; return whether nothing is.

        Such as Ansible's shared SSH connections, which remove their sockets when asked.
        """
        pids = [
            int(pid)
            for name in network.names(self.name)
            for pid in run("ip", "netns", "pids", name).split()
        ]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return not pids
