"""Memory, scaling, verdicts and the report from given findings; processes and their limits."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from vistrald.cli import main
from vistrald.frameworks.environment import check_disk
from vistrald.frameworks.findings import Finding, Host, Model, Obstacle, Rates, Survey, Trial
from vistrald.frameworks.needs import best_fit, needs
from vistrald.frameworks.process import Limits, StepError, run
from vistrald.frameworks.report import Report
from vistrald.frameworks.scaling import Measured, estimate
from vistrald.frameworks.verdict import Verdict, mlx_against_llama, verdicts
from vistrald.sizing.catalogue import vistral

CAP = 14_000_000_000
ANSWER = [504, 3575, 282, 4649]


def rates(prefill: float, decode: float) -> Rates:
    return Rates(
        load_seconds=1, prefill=prefill, decode=decode, cores=1, prompt_tokens=23, answer=ANSWER
    )


def trial(**variants: Rates) -> Trial:
    return Trial(variants=variants, process_bytes=10**8, peak_bytes=10**9)


def finding(framework: str, small: Trial | None, wide: Trial | None = None) -> Finding:
    return Finding(framework=framework, small=small, wide=wide, answer="Paris" if small else "")


def survey(*findings: Finding) -> Survey:
    host = Host(
        processor="Test CPU",
        instruction_sets=["avx2"],
        machine="x86_64",
        system="Debian 12",
        kernel="6.1",
        cores=8,
        memory=16 * 10**9,
        nvidia=False,
        python="3.11",
        date="2026-11-24 20:00 UTC",
    )
    model = Model(
        name="small.gguf",
        file_type="Q4_1",
        parameters=134_515_008,
        multiplied=134_479_872,
        wide_multiplied=577_000_000,
    )
    return Survey(
        host=host,
        model=model,
        prompt="What is the capital of France?",
        download_limit=10**9,
        findings=list(findings),
    )


def llama() -> Finding:
    return finding("llama.cpp", trial(Q8_0=rates(400, 90)), trial(Q8_0=rates(250, 60)))


def mlx() -> Finding:
    eight = {"8-bit, float32": rates(7, 7), "8-bit, bfloat16": rates(0.9, 0.9)}
    small = Trial(variants=eight, process_bytes=10**8, peak_bytes=10**9)
    wide = small.model_copy(update={"variants": {"8-bit, float32": rates(2, 2)}})
    return Finding(
        framework="mlx", install_seconds=9, download_bytes=10**8, packages=["mlx 0.32.4"],
        small=small, wide=wide, answer="Paris",
    )  # fmt: skip


def vllm() -> Finding:
    return Finding(
        framework="vllm",
        packages=["torch 2.14.0", "vllm 0.33.0"],
        download_bytes=4_263_904_576,
        obstacle=Obstacle(kind="download", detail="4.26 GB > 1.00 GB"),
    )


def test_the_shape_has_the_parameters_of_the_model_card() -> None:
    assert vistral().parameters == pytest.approx(23.57e9, rel=1e-3)
    assert vistral().kv_elements * 2 == 160 * 1024


@pytest.mark.requirement("1.2")
@pytest.mark.requirement("3.3")
@pytest.mark.parametrize(
    ("framework", "name", "gigabytes"),
    [
        ("transformers", "bfloat16", 47.1),
        ("vllm", "bfloat16", 47.1),
        ("mlx", "8-bit", 25.0),
        ("mlx", "4-bit", 13.3),
        ("llama.cpp", "Q8_0", 25.1),
        ("llama.cpp", "IQ4_XS", 12.8),
    ],
)
def test_weights_take_what_the_files_do(framework: str, name: str, gigabytes: float) -> None:
    need = next(each for each in needs(framework) if each.format.name == name)
    assert need.weights / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_the_measured_memory_of_the_24b_shape_is_predicted() -> None:
    """12.7 GiB resident with IQ4_XS and 4096 tokens of f16 cache."""
    need = next(each for each in needs("llama.cpp") if each.format.name == "IQ4_XS")
    assert need.total == pytest.approx(12.7 * 2**30, rel=0.03)


@pytest.mark.parametrize(
    ("framework", "fit"),
    [("llama.cpp", "IQ4_XS"), ("transformers", None), ("vllm", None), ("mlx", "3-bit")],
)
def test_the_largest_format_under_the_cap(framework: str, fit: str | None) -> None:
    best = best_fit(needs(framework, CAP))
    assert (best and best.format.name) == fit


def test_rates_scale_by_weights_and_the_wide_layer_is_believed() -> None:
    tenth = int(vistral().multiplied) // 10
    small = Measured(prefill=100, decode=10, multiplied=tenth)
    alone = estimate(small, None)
    assert (alone.decode.low, alone.decode.likely, alone.decode.high) == (0.25, 1, 4)
    both = estimate(small, Measured(prefill=300, decode=20, multiplied=tenth))
    assert (both.decode.low, both.decode.likely, both.decode.high) == (1, 2, 2)
    assert both.answer_tokens(30, prompt=300) == pytest.approx(2 * (30 - 300 / 30))
    assert both.answer_tokens(30, prompt=3000) == 0


@pytest.mark.requirement("3.2")
def test_the_fastest_that_fits_and_runs_is_recommended() -> None:
    torch = finding("transformers", trial(bfloat16=rates(4000, 200)))
    found = {v.finding.framework: v for v in verdicts(survey(llama(), torch, vllm(), mlx()), CAP)}
    assert found["llama.cpp"].recommended
    assert [name for name, each in found.items() if each.recommended] == ["llama.cpp"]
    assert found["transformers"].reasons == ("too_large",)
    assert found["vllm"].reasons == ("too_large", "obstacle")
    assert found["mlx"].reasons == ("too_slow",)


def test_with_memory_for_all_the_rate_decides() -> None:
    fast = finding("transformers", trial(bfloat16=rates(4000, 900)))
    found = verdicts(survey(llama(), fast), cap=100 * 10**9)
    assert [each.recommended for each in found] == [False, True]
    assert found[0].kind == "suitable"


def test_a_framework_that_failed_its_trial_is_never_recommended() -> None:
    failed = llama().model_copy(update={"obstacle": Obstacle(kind="trial", detail="exit 1")})
    found = verdicts(survey(failed), CAP)
    assert not any(each.recommended for each in found)


def test_mlx_is_compared_with_the_same_bits() -> None:
    found = {(each.model, each.variant): each for each in mlx_against_llama(survey(llama(), mlx()))}
    assert found["small", "8-bit, float32"].decode == pytest.approx(90 / 7)
    assert found["small", "8-bit, bfloat16"].prefill == pytest.approx(400 / 0.9)
    assert found["wide", "8-bit, float32"].decode == pytest.approx(60 / 2)


def report(language: str, *findings: Finding) -> tuple[str, list[Verdict]]:
    found = survey(*findings)
    judged = verdicts(found, CAP)
    return Report(found, judged, CAP, language).markdown(), judged


@pytest.mark.requirement("3.1")
def test_the_report_says_in_russian_why_mlx_does_not_suit() -> None:
    text, _ = report("ru", llama(), vllm(), mlx())
    assert "**Работает, но не годится.**" in text
    assert "| маленькая | 8-bit, float32 | ×57 | ×13 |" in text
    assert "**Рекомендуется llama.cpp (GGUF)**, формат IQ4_XS: 13,6 ГБ при пределе 14,0 ГБ" in text
    assert "Загрузка больше дозволенного. Предел задаёт" in text
    assert "    4.26 GB > 1.00 GB" in text
    assert "На сервере нет устройства NVIDIA" in text


def test_both_languages_say_the_same_things() -> None:
    ru, _ = report("ru", llama(), vllm(), mlx())
    en, _ = report("en", llama(), vllm(), mlx())
    assert ru.count("\n| ") == en.count("\n| ")
    assert ru.count("#") == en.count("#")
    assert not any("а" <= letter <= "я" for letter in en.casefold())


@pytest.mark.parametrize(
    "kind", ["install", "download", "disk", "timeout", "memory", "trial", "weights", "only_sized"]
)
@pytest.mark.parametrize("language", ["ru", "en"])
def test_every_obstacle_is_explained(kind: str, language: str) -> None:
    stopped = Finding(framework="mlx", obstacle=Obstacle(kind=kind, detail="the evidence"))
    text, judged = report(language, stopped)
    assert judged[0].reasons == ("obstacle",)
    assert "    the evidence" in text


def test_a_step_that_takes_too_much_memory_is_stopped_and_says_so() -> None:
    command = [sys.executable, "-c", "len(bytearray(600_000_000))"]
    run(command, Limits(20, memory=900_000_000))
    with pytest.raises(StepError, match="MemoryError") as failed:
        run(command, Limits(20, memory=300_000_000))
    assert failed.value.kind == "memory"


def test_a_step_that_writes_too_much_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "open('big', 'wb').write(bytes(2_000_000))"]
    with pytest.raises(StepError, match="File too large") as failed:
        run(command, Limits(20, file_bytes=1_000_000), cwd=tmp_path)
    assert failed.value.kind == "download"
    assert (tmp_path / "big").stat().st_size <= 1_000_000


def test_a_step_that_takes_too_long_ends_with_its_children() -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, file=open('pid', 'w'), flush=True)\ntime.sleep(60)\n"
    )
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    with pytest.raises(StepError) as failed:
        run([sys.executable, "-c", script.replace("open('pid', 'w')", "sys.stderr")], Limits(1.5))
    assert failed.value.kind == "timeout"
    time.sleep(0.1)
    assert {each.pid for each in psutil.Process().children(recursive=True)} <= before


def test_no_room_is_said_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"9000000\.0 GB > ") as failed:
        check_disk(tmp_path / "not" / "there", 9 * 10**15)
    assert failed.value.kind == "disk"


def test_an_unknown_framework_in_an_option_is_refused(model_path: Path) -> None:
    command = [sys.executable, "-m", "vistrald", "frameworks", "--model", model_path]
    done = subprocess.run(
        [*command, "--index", "torch=https://example.invalid"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "FRAMEWORK one of llama.cpp, transformers, vllm, mlx" in done.stderr


def test_the_command_prints_a_table_and_writes_the_report(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = survey(llama(), vllm(), mlx())
    monkeypatch.setattr("vistrald.cli.frameworks.run_survey", lambda _plan, _tell: found)
    written = tmp_path / "report.md"
    options = ["frameworks", "--model", str(model_path), "--report", str(written)]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    assert "llama.cpp (GGUF): рекомендуется" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Рекомендуется llama.cpp (GGUF), формат IQ4_XS")
    assert written.read_text().startswith("# Какой фреймворк годится")
    # With less memory than any format takes there is nothing to recommend.
    refused = CliRunner().invoke(main, [*options, "--cap-gb", "2", "--json"])
    assert refused.exit_code == 1
    report = json.loads(refused.stdout)
    assert report["recommended"] is None
    assert {each["verdict"] for each in report["verdicts"]} == {"too_large"}


def test_a_stop_leaves_nothing_behind(model_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vistrald", "frameworks", "--model", model_path]
    process = subprocess.Popen(
        [*command, "--scratch", tmp_path, "--framework", "mlx"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    process.stderr.readline()  # the first step is said: its folder is there
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())
