"""`make bench-sizing`: the peak of memory that `vistrald plan` predicts, and the measured one."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import requests

from bench import machine, model, report, servers, synthetic
from bench.control_group import limited, looked_at
from tools.wheelhouse import LLAMA_VERSION, cache_dir
from vistrald.sizing import plan
from vistrald.sizing.account import Use
from vistrald.sizing.host import this_host
from vistrald.sizing.source import read_file

BAR = 0.03  # of the measured peak
ROOM = (
    2 * 10**9
)  # bytes of the group's limit beyond the prediction: the measurement must not be cut
LONGEST_PROMPT = 1200  # words
ANSWER_TOKENS = 16
SECONDS = 1800
# Between the small real model and the 24B one, with the latter's vocabulary.
MIDDLE = synthetic.Shape(layers=16, hidden=2048, feed_forward=8192, heads=16, kv_heads=4)


@dataclass(frozen=True)
class Case:
    title: str
    path: Callable[[], Path]
    context_tokens: int
    users: int
    kv_type: str


def _synthetic(name: str, kind: str, shape: synthetic.Shape) -> Callable[[], Path]:
    def path() -> Path:
        found = cache_dir() / f"synthetic-{name}-{kind}.gguf"
        if not found.exists():
            synthetic.write(found, kind, shape)
        return found

    return path


CASES = [
    Case("SmolLM2-135M", model.packaged, 4096, 4, "f16"),
    Case("SmolLM2-135M", model.default, 8192, 8, "q8_0"),
    Case("1.3B shape", _synthetic("1b", "IQ4_XS", MIDDLE), 2048, 1, "q8_0"),
    Case("1.3B shape", _synthetic("1b", "Q4_K_S", MIDDLE), 16384, 2, "f16"),
    Case("24B shape", _synthetic("24b", "IQ4_XS", synthetic.Shape()), 4096, 4, "f16"),
]


@dataclass(frozen=True)
class Compared:
    """Bytes."""

    case: Case
    quantization: str
    predicted: int
    measured: int
    kills: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    def cells(self) -> list[str]:
        return [
            self.case.title,
            self.quantization,
            str(self.case.context_tokens),
            str(self.case.users),
            self.case.kv_type,
            f"{self.predicted / 1e9:.3f}",
            f"{self.measured / 1e9:.3f}",
            f"{self.error:+.1%}",
            "met" if abs(self.error) <= BAR and not self.kills else "missed",
        ]


HEAD = ["model", "type", "context", "users", "KV", "predicted, GB", "measured, GB", "error", ""]


@click.command()
@click.option("--quick", is_flag=True, help="Without the 24B shape.")
@click.option("--docs", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(quick: bool, docs: Path | None) -> None:
    """Compare the predicted peak with the measured one. Needs root; 15 GB of RAM and of disk.

    With --docs, its sizing.md is written anew. Exits 1 if a prediction is off by more than 3 %.
    """
    found = []
    for case in CASES[:-1] if quick else CASES:
        found.append(_compare(case))
        click.echo("  ".join(found[-1].cells()), err=True)
    text = _markdown(found)
    click.echo(text)
    if docs:
        document = docs / "sizing.md"
        document.write_text(
            report.put_into(document.read_text(encoding="utf-8"), text), encoding="utf-8"
        )
    sys.exit(any(abs(each.error) > BAR or each.kills for each in found))


def _compare(case: Case) -> Compared:
    path = case.path()
    threads = len(os.sched_getaffinity(0))
    setup = servers.Setup(path, threads, case.context_tokens, case.users, case.kv_type)
    server = servers.vistrald(setup)
    file = read_file(path)
    use = Use(case.context_tokens, case.users, setup.kv_type)  # type: ignore[arg-type]
    predicted = plan.evaluate(file, use, this_host(path), plan.CAP)
    limit = predicted.account.peak + ROOM
    click.echo(f"{case.title}: {plan.describe(predicted.account)}", err=True)
    with TemporaryDirectory(prefix="bench-") as home, limited(limit) as group:
        own = dataclasses.replace(
            server, command=lambda home, port: group.command(server.command(home, port))
        )
        with looked_at(group), servers.running(own, Path(home)) as started:
            # Longer than the largest batch that the engine may take.
            words = min(LONGEST_PROMPT, 2 * predicted.rates.largest_batch)
            words = min(words, case.context_tokens // 2)
            _ask(started.url, "law " * words)
            _ask_together(started.url, case.users)
        kills = group.kills
    return Compared(case, file.quantization, predicted.account.peak, group.peak, kills)


def _ask_together(url: str, users: int) -> None:
    threads = [
        threading.Thread(target=_ask, args=(url, f"Question {number}: what is theft?"))
        for number in range(users)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _ask(url: str, prompt: str) -> None:
    body = {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 1.5, "best_effort": True}
    response = requests.post(f"{url}/api/v1/generate", json=body, timeout=SECONDS)
    if not response.ok:
        raise click.ClickException(f"{url} answered {response.status_code}: {response.text[:300]}")


def _markdown(found: list[Compared]) -> str:
    described = machine.describe()
    lines = [
        f"Measured {described.date} on {described}; llama.cpp of llama-cpp-python {LLAMA_VERSION}.",
        "",
        *report.markdown_table(HEAD, [each.cells() for each in found]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
