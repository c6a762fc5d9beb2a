"""`make demo`: a disposable host, the real deployment over SSH, and a legal question to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from lab import Lab, LabError
from tools.wheelhouse import ROOT, cache_dir

LAB = "demo"
HOST = "vistral-demo"
DAEMON_PORT = 8080
LOCAL_PORT = 18080
# The embedded model is English; the article is the Criminal Code's own text in translation.
ARTICLE = ROOT / "tools/demo_article.txt"
QUESTION = "What is the punishment for theft under part 1 of this article? Answer in one sentence."


class Phases:
    """Names each phase as it begins and remembers how long it took."""

    def __init__(self) -> None:
        self.took: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        click.secho(f"==> {name}", bold=True)
        start = time.monotonic()
        yield
        self.took.append((name, time.monotonic() - start))

    def table(self) -> str:
        total = ("total", sum(seconds for _, seconds in self.took))
        return "\n".join(f"  {name:<52}{seconds:7.1f} s" for name, seconds in [*self.took, total])


def run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], cwd=ROOT, check=False)
    if result.returncode != 0:
        raise click.ClickException(f"{command[0]} failed with status {result.returncode}")


@click.command()
def main() -> None:
    """Boot the demo host, deploy to it over SSH, ask it a question."""
    phases = Phases()
    with phases.phase("Booting a Debian 12 host with systemd as PID 1"):
        lab = Lab(LAB)
        try:
            lab.up(HOST)
        except LabError as error:
            raise click.ClickException(str(error)) from None
    with phases.phase("ansible-playbook -i inventory/demo site.yml"):
        run("ansible-playbook", "-i", "inventory/demo", "site.yml")
    url = lab.keep_forwarding(HOST, DAEMON_PORT, LOCAL_PORT)
    with phases.phase("Asking a question with a statute article as context"):
        click.echo(f"{ARTICLE.read_text().strip()}\n\n  {QUESTION}\n")
        run("vistrald", "ask", "--url", url, "--context-file", ARTICLE, QUESTION)
    click.secho("\nHow long it took", bold=True)
    click.echo(phases.table())
    click.secho("\nWhere to look", bold=True)
    click.echo(
        f"  status page       {url}/\n"
        f"  API description   {url}/openapi.json\n"
        f"  logs              make demo-shell, then: journalctl -u vistrald\n"
        f"  second release    change anything in daemon/ or inventory/demo, then: make demo\n"
        f"  rollback          .venv/bin/ansible-playbook -i inventory/demo playbooks/rollback.yml\n"
        f"  remove it all     make demo-down    (the cache stays in {cache_dir()})"
    )


if __name__ == "__main__":
    main()
