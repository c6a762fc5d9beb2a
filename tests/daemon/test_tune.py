"""The choice from given speeds, and one real measurement."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vistrald.settings import EngineSection, ModelSection, Settings
from vistrald.trial import Speed, Trial
from vistrald.tune import (
    TuneError,
    as_yaml,
    chosen,
    run_trial,
    seconds,
    tune,
    useful_guesses,
    useful_users,
)

VISTRALD = (sys.executable, "-m", "vistrald")

# Seconds of a step: each token costs the same; the weights are read once for all; in between, as
# measured with the 24B shape in Q4_K_S on two cores.
DEAR = {size: 0.5 * size for size in (1, 2, 3, 4, 6, 8, 16)}
FREE = dict.fromkeys((1, 2, 3, 4, 6, 8, 16), 0.5)
BETWEEN = {1: 0.69, 2: 1.1, 3: 1.3, 4: 1.45, 6: 2.2, 8: 3.0, 16: 5.9}


def speed(trial: Trial, prefill: float, steps: dict[int, float]) -> Speed:
    return Speed(trial=trial, backend="x", load_seconds=1, prefill=prefill, depth=64, steps=steps)


@pytest.mark.parametrize(
    ("steps", "users", "guesses"), [(DEAR, 1, 0), (FREE, 8, 15), (BETWEEN, 4, 3)]
)
def test_users_and_guesses_follow_from_the_cost_of_a_step(
    steps: dict[int, float], users: int, guesses: int
) -> None:
    assert (useful_users(steps), useful_guesses(steps)) == (users, guesses)


def test_each_setting_is_varied_and_the_best_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host where a core less, q8_0 and no repacking are each faster, by a tenth."""
    monkeypatch.setattr("vistrald.tune.usable_cores", lambda: 4)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    monkeypatch.setattr("vistrald.tune.gives_huge_pages", lambda: True)

    def run(trial: Trial) -> Speed:
        faster = (trial.threads == 3) + (trial.engine.kv_type == "q8_0") + (not trial.engine.repack)
        gain = 0.9**faster
        return speed(trial, 20 / gain, {size: each * gain for size, each in BETWEEN.items()})

    tried: list[Speed] = []
    free = settings.model_copy(update={"engine": EngineSection(threads=4)})
    choice = tune(free, tried.append, run)
    assert tried == choice.speeds
    assert [each.trial.threads for each in tried] == [4, 3, 3, 3, 3, 3]
    assert choice.variables == {
        "daemon_engine": {
            "threads": 3,
            "kv_type": "q8_0",
            "repack": False,
            "load_mode": "none",
            "parallel_sequences": 4,
            "draft_tokens": 3,
        },
        "host_transparent_hugepage": "always",
    }


def test_what_gains_no_more_than_noise_changes_nothing(settings: Settings) -> None:
    def run(trial: Trial) -> Speed:
        return speed(trial, 20, {size: each * 0.99 for size, each in BETWEEN.items()})

    choice = tune(settings, run=run)
    assert choice.best is choice.speeds[0]


@pytest.mark.parametrize(
    ("loads", "steps", "mode"), [(5, 1, "mmap"), (10, 1, "none"), (5, 1.1, "none")]
)
def test_a_load_mode_that_only_loads_sooner_is_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, loads: float, steps: float, mode: str
) -> None:
    monkeypatch.setattr("vistrald.tune.gives_huge_pages", lambda: False)

    def run(trial: Trial) -> Speed:
        mapped = trial.engine.load_mode == "mmap"
        slower = (steps if mapped else 1) * (2 if trial.engine.repack else 1)
        made = speed(trial, 20, {size: each * slower for size, each in BETWEEN.items()})
        return made.model_copy(update={"load_seconds": loads if mapped else 10})

    assert tune(settings, run=run).variables["daemon_engine"]["load_mode"] == mode


def test_an_answer_takes_less_where_prefill_or_steps_do(settings: Settings) -> None:
    trial = Trial(model=settings.model.path, engine=EngineSection(), threads=1)
    usual = seconds(speed(trial, 20, BETWEEN))
    assert seconds(speed(trial, 40, BETWEEN)) < usual
    assert seconds(speed(trial, 20, FREE)) < usual


def test_a_model_that_does_not_fit_is_refused_with_the_remedy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vistrald.tune.memory_limit", lambda: 10**9)
    with pytest.raises(TuneError, match=r"1\.6 GB, 1\.0 GB are available; stop the daemon"):
        tune(settings)


def test_a_trial_that_fails_says_which(settings: Settings) -> None:
    missing = settings.model.path.with_name("missing.gguf")
    with pytest.raises(TuneError, match=r"1 threads, KV f16, none, repacked failed with 1"):
        run_trial(Trial(model=missing, engine=EngineSection(), threads=1))


def test_the_choice_is_yaml_for_the_inventory(settings: Settings) -> None:
    trial = Trial(model=settings.model.path, engine=EngineSection(), threads=8)
    variables = chosen(speed(trial, 20, BETWEEN))
    assert yaml.safe_load(as_yaml(variables)) == variables
    assert variables["daemon_engine"]["threads"] == 8


@pytest.mark.slow
def test_a_real_host_is_measured(tmp_path: Path, model_section: ModelSection) -> None:
    config = tmp_path / "vistrald.toml"
    config.write_text(
        f'[model]\npath = "{model_section.path}"\nsha256 = "{model_section.sha256}"\n'
        f'size = {model_section.size}\nname = "m"\n[engine]\ncontext_tokens = 1024\n'
        "[generation]\nmax_tokens = 64\n"
    )
    written = tmp_path / "tuned.yml"
    done = subprocess.run(
        [*VISTRALD, "tune", "--config", config, "--json", "--write", written],
        capture_output=True,
        text=True,
        check=True,
    )
    report: Any = json.loads(done.stdout)
    assert len(report["speeds"]) >= 4  # other threads, KV type, repacking, huge pages or mmap
    for each in report["speeds"]:
        assert each["prefill"] > 0
        assert each["depth"] > 500
        assert set(map(int, each["steps"])) == {1, 2, 3, 4, 6, 8, 16}
    variables = yaml.safe_load(written.read_text())
    assert variables == report["variables"]
    # What it writes is what the daemon takes.
    chosen_engine = "\n".join(
        f"{key} = {json.dumps(value)}" for key, value in variables["daemon_engine"].items()
    )
    config.write_text(config.read_text().replace("[engine]\n", f"[engine]\n{chosen_engine}\n"))
    checked = subprocess.run(
        [*VISTRALD, "check-config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
