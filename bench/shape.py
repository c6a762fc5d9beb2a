"""`make bench-24b`: the daemon with a model of the 24B shape under a hard cap of memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import requests

from bench import hardware, machine, report, servers, synthetic
from bench.control_group import limited, looked_at
from bench.corpus import Corpus, read
from tools.wheelhouse import LLAMA_VERSION, cache_dir
from vistrald.settings import EngineSection
from vistrald.trial import Speed, Trial
from vistrald.tune import run_trial

LIMIT = 14 * 10**9  # bytes, the product's cap
USERS = 4
ANSWER_TOKENS = 16
ALONE_TOKENS = 24
MODEL_PARAMETERS = 23.57e9
SECONDS = 3600  # for an answer, on a slow machine


@dataclass
class Measured:
    """Seconds, bytes, tokens a second."""

    kind: str
    file_bytes: int
    first_start: float  # hashing included, nothing of the file in memory
    restart: float
    peak: int
    kills: int
    prefill: float
    alone: float
    users: float  # all together
    speed: Speed
    bandwidth: float
    flops: float

    @property
    def decode_share(self) -> float:
        """Of the memory's bandwidth that reading each weight once for a token takes."""
        return self.file_bytes / self.speed.steps[1] / self.bandwidth

    @property
    def prefill_share(self) -> float:
        """Of the processor's single-precision rate: two operations for a weight and a token."""
        return 2 * MODEL_PARAMETERS * self.speed.prefill / self.flops


@click.command()
@click.option("--type", "kinds", type=click.Choice(sorted(synthetic.BASE)), multiple=True)
@click.option("--threads", type=click.IntRange(1, 512), help="Default: all usable cores.")
@click.option("--docs", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(kinds: tuple[str, ...], threads: int | None, docs: Path | None) -> None:
    """Measure the 24B shape under 14e9 bytes. Needs root, 15 GB of RAM and of disk for each type.

    With --docs, its benchmarks-24b.md and .json are written anew.
    """
    cores = threads or len(os.sched_getaffinity(0))
    found = [_measure(kind, cores) for kind in kinds or ("IQ4_XS",)]
    text = _markdown(found, cores)
    click.echo(text)
    if docs:
        document = docs / "benchmarks-24b.md"
        document.write_text(report.put_into(document.read_text(), text))
        data = [_as_dict(each) for each in found]
        (docs / "benchmarks-24b.json").write_text(json.dumps(data, indent=1) + "\n")


def _measure(kind: str, threads: int) -> Measured:
    path = cache_dir() / f"synthetic-24b-{kind}.gguf"
    if not path.exists():
        synthetic.write(path, kind)
    click.echo(f"{kind}: memory's and processor's own rates", err=True)
    bandwidth, flops = hardware.read_bandwidth(threads), hardware.flops()
    # Guesses would be about random text; what they gain is measured with a model that speaks.
    setup = servers.Setup(path, threads)
    server = servers.vistrald(setup, drafts=False)
    with TemporaryDirectory(prefix="bench-") as home, limited(LIMIT) as group:
        own = dataclasses.replace(
            server, command=lambda home, port: group.command(server.command(home, port))
        )
        _drop_page_cache()
        click.echo(f"{kind}: first start", err=True)
        with looked_at(group), servers.running(own, Path(home)) as started:
            first_start = started.ready_seconds
        click.echo(f"{kind}: restart and load", err=True)
        with looked_at(group), servers.running(own, Path(home)) as started:
            restart = started.ready_seconds
            prefill, alone = _alone(started.url, read("en"))
            users = _users(started.url)
        peak, kills = group.peak, group.kills
    click.echo(f"{kind}: the cost of a step", err=True)
    engine = EngineSection(draft_tokens=12)  # with four sequences, rows for a step of 16
    speed = run_trial(Trial(model=path, engine=engine, threads=threads))
    return Measured(
        kind, path.stat().st_size, first_start, restart, peak, kills, prefill, alone, users, speed,
        bandwidth, flops,
    )  # fmt: skip


def _drop_page_cache() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _alone(url: str, texts: Corpus) -> tuple[float, float]:
    """Prefill and decode rates of one request with a document."""
    timings = _ask(url, texts.sections[0] + "\n\n" + texts.question(0), ALONE_TOKENS)
    return timings["prompt_per_second"], timings["predicted_per_second"]


def _users(url: str) -> float:
    """Tokens a second of all users together while all of them decode."""
    together: list[dict[str, Any]] = []

    def user(number: int) -> None:
        together.append(_ask(url, f"Question {number}: what is theft?", ANSWER_TOKENS))

    threads = [threading.Thread(target=user, args=(number,)) for number in range(USERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(sum(each["predicted_per_second"] for each in together))


def _ask(url: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """The timings of an answer drawn at random: greedily, random weights go in circles."""
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 1.5,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 1,
        "best_effort": True,
    }
    response = requests.post(f"{url}/api/v1/generate", json=body, timeout=SECONDS)
    if not response.ok:
        raise click.ClickException(f"{url} answered {response.status_code}: {response.text[:300]}")
    timings: dict[str, Any] = response.json()["timings"]
    return timings


def _as_dict(measured: Measured) -> dict[str, Any]:
    return {
        field.name: getattr(measured, field.name)
        for field in dataclasses.fields(measured)
        if field.name != "speed"
    } | {"speed": measured.speed.model_dump(mode="json", exclude={"trial"})}


def _markdown(found: list[Measured], threads: int) -> str:
    described = machine.describe()
    head = ["", *(each.kind for each in found)]
    rows: list[tuple[str, list[str]]] = [
        ("file, GB", [f"{each.file_bytes / 1e9:.2f}" for each in found]),
        ("**peak memory, GB** (cap 14.00)", [f"**{each.peak / 1e9:.2f}**" for each in found]),
        ("processes killed for the cap", [str(each.kills) for each in found]),
        ("first start, s (hashed, read from disk)", [f"{each.first_start:.0f}" for each in found]),
        ("restart, s", [f"{each.restart:.0f}" for each in found]),
        ("prefill, tokens/s", [f"{each.prefill:.2f}" for each in found]),
        ("decode alone, tokens/s", [f"{each.alone:.2f}" for each in found]),
        (f"decode of {USERS} users together, tokens/s", [f"{each.users:.2f}" for each in found]),
        ("memory's read bandwidth, GB/s", [f"{each.bandwidth / 1e9:.1f}" for each in found]),
        ("processor, float32 GFLOP/s", [f"{each.flops / 1e9:.0f}" for each in found]),
        ("decode, share of the bandwidth", [f"{each.decode_share:.0%}" for each in found]),
        ("prefill, share of the float32 rate", [f"{each.prefill_share:.0%}" for each in found]),
    ]
    rows += [
        (
            f"step of {size} tokens, times a step of one",
            [f"{each.speed.steps[size] / each.speed.steps[1]:.2f}" for each in found],
        )
        for size in found[0].speed.steps
        if size > 1
    ]
    lines = [
        f"Measured {described.date} on {described}; {threads} threads, llama.cpp of "
        f"llama-cpp-python {LLAMA_VERSION}, kernels {found[0].speed.backend}.",
        "",
        *report.markdown_table(head, [[title, *values] for title, values in rows]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
