"""The command line, `python -m lab`."""

import json
import os
import shlex
import subprocess
import sys

import click

from lab import packages as debian_packages
from lab import state
from lab.command import say
from lab.errors import LabError
from lab.image import image as make_image
from lab.lab import Lab
from lab.size import parse_size, parse_tmpfs


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Make disposable Debian 12 hosts with systemd as PID 1. Sizes are like 67108864, 64M or 2G."""
    if os.geteuid() != 0:
        raise LabError(
            f"making hosts needs root, not user id {os.geteuid()}: run it as root or by sudo"
        )


@cli.command()
@click.argument("lab")
@click.argument("hosts", nargs=-1, required=True, metavar="HOST…")
@click.option("--memory", metavar="SIZE", help="Limit each host's memory.")
@click.option("--tmpfs", metavar="PATH=SIZE", multiple=True, help="Put a small disk at a path.")
@click.option("--vm", is_flag=True, help="Make virtual machines, each with its kernel.")
@click.option("--disk", metavar="SIZE", help="A virtual machine's disk.")
def up(  # noqa: PLR0913, PLR0917 - one for each option
    lab: str,
    hosts: tuple[str, ...],
    memory: str | None,
    tmpfs: tuple[str, ...],
    vm: bool,
    disk: str | None,
) -> None:
    """Boot hosts; return when all answer by SSH."""
    Lab(lab).up(
        *hosts,
        memory=None if memory is None else parse_size(memory),
        tmpfs=dict(parse_tmpfs(text) for text in tmpfs),
        vm=vm,
        disk=None if disk is None else parse_size(disk),
    )


@cli.command()
@click.argument("lab")
def down(lab: str) -> None:
    """Remove every trace of a lab."""
    Lab(lab).down()
    say(f"Lab {lab} is gone.")


@cli.command("list")
def list_() -> None:
    """Print every lab's hosts: lab, host, address, state."""
    for lab in state.labs():
        for host in Lab(lab).hosts:
            say(f"{lab}\t{host.name}\t{host.address}\t{'up' if host.is_running else 'off'}")


@cli.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("lab")
@click.argument("host")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND…")
def exec_(lab: str, host: str, command: tuple[str, ...]) -> None:
    """Run a command in a host as root and exit with its code."""
    sys.exit(subprocess.run(Lab(lab).host(host).ssh(shlex.join(command)), check=False).returncode)


@cli.command()
@click.argument("lab")
@click.argument("host")
def ssh(lab: str, host: str) -> None:
    """Open a shell in a host."""
    sys.exit(subprocess.run(Lab(lab).host(host).ssh(), check=False).returncode)


@cli.command()
@click.argument("lab")
def inventory(lab: str) -> None:
    """Print an Ansible inventory of a lab, as JSON."""
    say(json.dumps(Lab(lab).inventory(), indent=2))


@cli.command()
@click.argument("lab")
@click.argument("host")
@click.argument("host_port", type=click.IntRange(1, 65535))
@click.argument("local_port", type=click.IntRange(1, 65535))
def forward(lab: str, host: str, host_port: int, local_port: int) -> None:
    """Make a host's port reachable on this machine's loopback until the lab is down."""
    url = Lab(lab).keep_forwarding(host, host_port, local_port)
    say(f"{url}/ leads to port {host_port} of host {host}.")


@cli.command()
def image() -> None:
    """Build the image if need be and print its folder."""
    debian_packages.require(virtual=False)
    say(str(make_image()))


@cli.command()
@click.option("--install", is_flag=True, help="Install them.")
@click.option("--vm", is_flag=True, help="Those for virtual machines too.")
def packages(install: bool, vm: bool) -> None:
    """Print the Debian packages that are needed and missing."""
    for package in debian_packages.missing(vm):
        say(package)
    if install:
        debian_packages.install(vm)


def main() -> None:
    """Run the command line; a LabError is shown without a traceback."""
    try:
        cli()
    except LabError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
