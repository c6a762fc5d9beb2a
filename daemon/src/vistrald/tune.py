"""`vistrald tune`: which engine settings are the fastest on this host, by measurement.

One setting after the other is varied and the better value kept, threads first: the settings hardly
influence each other, and each trial of a large model costs a load.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from vistrald.cgroup import memory_limit, usable_cores
from vistrald.settings import EngineSection, ModelSection, Settings
from vistrald.trial import Speed, Trial, gives_huge_pages

# What is asked, for the sake of one figure: a new question about a known document, a short answer.
PROMPT_TOKENS = 64
ANSWER_TOKENS = 150
USERS = 4
NOISE = 0.97  # of the time of the settings in use; what gains less is not changed
LIKELY = 0.9  # that a guess comes true in a quotation
WORTH = 1.05  # tokens a second, relative to fewer users or guesses
BESIDE_WEIGHTS = 1.5e9  # bytes: cache, buffers, the process


class TuneError(Exception):
    """Why nothing was measured."""


@dataclass(frozen=True)
class Choice:
    """What was tried, in order, the best of it, and the inventory's variables that follow."""

    speeds: list[Speed]
    best: Speed
    variables: dict[str, Any]


def tune(
    settings: Settings,
    measured: Callable[[Speed], None] = lambda _: None,
    run: Callable[[Trial], Speed] | None = None,
) -> Choice:
    """Tries the settings of this host; `measured` gets each trial's result as it comes.

    Raises TuneError if the model does not fit beside what runs, or a trial fails.
    """
    run = run or run_trial
    _check_memory(settings.model)
    threads = settings.engine.threads or usable_cores()
    best = run(Trial(model=settings.model.path, engine=_roomy(settings.engine), threads=threads))
    speeds = [best]
    measured(best)
    for vary in (_threads, _kv_types, _repacking, _load_modes, _huge_pages):
        for trial in vary(best.trial):
            speed = run(trial)
            speeds.append(speed)
            measured(speed)
            if better(speed, best):
                best = speed
    return Choice(speeds, best, chosen(best))


def better(speed: Speed, best: Speed) -> bool:
    """Whether it answers sooner; of load modes that answer alike, whether it loads sooner."""
    relative = seconds(speed) / seconds(best)
    if speed.trial.engine.load_mode != best.trial.engine.load_mode and relative < 1 / NOISE:
        return speed.load_seconds < NOISE * best.load_seconds
    return relative < NOISE


def seconds(speed: Speed) -> float:
    """One person's answer, and that of USERS who ask at once: less is better."""
    return sum(
        users * PROMPT_TOKENS / speed.prefill + ANSWER_TOKENS * speed.steps[users]
        for users in (1, USERS)
    )


def chosen(best: Speed) -> dict[str, Any]:
    """The inventory's variables that follow from a trial."""
    engine = best.trial.engine
    variables: dict[str, Any] = {
        "daemon_engine": {
            "threads": best.trial.threads,
            "kv_type": engine.kv_type,
            "repack": engine.repack,
            "load_mode": engine.load_mode,
            "parallel_sequences": useful_users(best.steps),
            "draft_tokens": useful_guesses(best.steps),
        }
    }
    if gives_huge_pages():
        mode = "always" if best.trial.huge_pages else "never"
        variables["host_transparent_hugepage"] = mode
    return variables


def useful_users(steps: dict[int, float]) -> int:
    """How many answers in a step are worth it: beyond, each of them only gets slower."""
    best = 1
    for users in sorted(users for users in steps if users <= 2 * USERS):
        if users / steps[users] >= WORTH * best / steps[best]:
            best = users
    return best


def useful_guesses(steps: dict[int, float]) -> int:
    """Most guessed tokens in a step, where nearly all of them come true; 0 if none pays.

    The engine takes fewer where fewer come true.
    """

    def rate(tokens: int) -> float:
        expected = sum(LIKELY**guess for guess in range(tokens))
        return expected / steps[tokens]

    best = max(steps, key=rate)
    return best - 1 if rate(best) >= WORTH * rate(1) else 0


def run_trial(trial: Trial) -> Speed:
    """In a process of its own. Raises TuneError with the end of what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "vistrald.trial"],
        input=trial.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise TuneError(
            f"the trial {describe(trial)} failed with {done.returncode}: {done.stderr[-500:]}"
        )
    return Speed.model_validate_json(done.stdout)


def describe(trial: Trial) -> str:
    engine = trial.engine
    repack = "repacked" if engine.repack else "not repacked"
    pages = "" if trial.huge_pages else ", small pages"
    return f"{trial.threads} threads, KV {engine.kv_type}, {engine.load_mode}, {repack}{pages}"


def as_yaml(variables: dict[str, Any]) -> str:
    """For the inventory; every JSON value is one of YAML."""
    lines = ["---"]
    for name, value in variables.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {json.dumps(each)}" for key, each in value.items())]
        else:
            lines.append(f"{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _roomy(engine: EngineSection) -> EngineSection:
    """With rows for the largest step that is measured."""
    rows = max(16 - engine.parallel_sequences, engine.draft_tokens)
    return engine.model_copy(update={"draft_tokens": rows})


def _threads(trial: Trial) -> Iterator[Trial]:
    """All usable cores, without the second threads of cores, and one core left to the rest."""
    cores = usable_cores()
    whole = psutil.cpu_count(logical=False) or cores
    for threads in sorted({cores, min(cores, whole), max(1, cores - 1)} - {trial.threads}):
        yield trial.model_copy(update={"threads": threads})


def _kv_types(trial: Trial) -> Iterator[Trial]:
    for kv_type in ("f16", "q8_0"):
        if kv_type != trial.engine.kv_type:
            yield _with(trial, kv_type=kv_type)


def _repacking(trial: Trial) -> Iterator[Trial]:
    """Never with mmap: that holds the weights twice."""
    yield _with(trial, repack=not trial.engine.repack, load_mode="none")


def _load_modes(trial: Trial) -> Iterator[Trial]:
    """What is not repacked can be left to the file's own pages."""
    if not trial.engine.repack:
        yield _with(trial, load_mode="mmap" if trial.engine.load_mode == "none" else "none")


def _huge_pages(trial: Trial) -> Iterator[Trial]:
    """The file's own pages are small in any case."""
    if gives_huge_pages() and trial.engine.load_mode == "none":
        yield trial.model_copy(update={"huge_pages": False})


def _with(trial: Trial, **engine: Any) -> Trial:
    return trial.model_copy(update={"engine": trial.engine.model_copy(update=engine)})


def _check_memory(model: ModelSection) -> None:
    needed = sum(size for _, size, _ in model.files) + BESIDE_WEIGHTS
    free = psutil.virtual_memory().available
    limit = memory_limit()
    if limit is not None:
        free = min(free, limit)
    if needed > free:
        raise TuneError(
            f"{model.path} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are available; "
            "stop the daemon while its host is measured: systemctl stop vistrald.socket vistrald"
        )
