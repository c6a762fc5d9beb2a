"""The survey itself: every framework is installed, loaded, asked and removed, one after the other.

Whatever a step comes to is a finding; only an operator's mistake, or Ctrl+C, ends the survey.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vistrald.frameworks import packages, weights
from vistrald.frameworks.environment import Download, Environment, check_disk
from vistrald.frameworks.findings import Finding, Model, Obstacle, Survey, Trial
from vistrald.frameworks.host import describe, memory_for_trials
from vistrald.frameworks.packages import Candidate
from vistrald.frameworks.process import Limits, StepError, run
from vistrald.sizing.catalogue import vistral

PROMPT = "What is the capital of France, and what is it known for?"
# ChatML, the test model's; of another model the ids are as good a load, the answer is not.
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
WIDE_PROMPT = list(range(2, 18))  # token ids: random weights answer nothing
WIDE_VARIANTS: dict[str, list[str]] = {
    "llama.cpp": [],  # by their files
    "transformers": ["bfloat16", "float32"],
    "mlx": ["8-bit, float32"],
}
WIDE_PARAMETERS = int(vistral().linear) // vistral().layers + 4096 * vistral().hidden
ANSWER_TOKENS = 24
WIDE_ANSWER_TOKENS = 6
VARIANT_SECONDS = 20.0  # of computing, for each variant
TRIAL_SECONDS = 400  # of a whole trial, imports and conversions included
PREPARE_SECONDS = 300


@dataclass(frozen=True)
class Plan:
    """What an operator chose."""

    model: Path
    frameworks: list[str]
    download_limit: int  # bytes of all installations together
    indexes: dict[str, list[str]] = field(default_factory=dict)  # more indexes, by framework
    wide: bool = True
    scratch: Path | None = None


def survey(plan: Plan, tell: Callable[[str], None]) -> Survey:
    """Raises StepError if the model itself cannot be read or there is no room for it."""
    with TemporaryDirectory(prefix="vistral-frameworks-", dir=plan.scratch) as scratch:
        return _Survey(plan, Path(scratch), tell).run()


class _Survey:
    def __init__(self, plan: Plan, scratch: Path, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._scratch = scratch
        self._tell = tell
        self._left = plan.download_limit
        self._wide_obstacle: Obstacle | None = None
        self._host = describe()

    def run(self) -> Survey:
        model = self._prepare()
        chosen = [each for each in packages.CANDIDATES if each.key in self._plan.frameworks]
        findings = self._with_texts([self._try(each) for each in chosen])
        return Survey(
            host=self._host,
            model=model,
            prompt=PROMPT,
            download_limit=self._plan.download_limit,
            findings=findings,
        )

    def _prepare(self) -> Model:
        self._tell(f"{self._plan.model}: the same weights in the form of every framework")
        path = self._plan.model
        self._prompt = self._words(TEMPLATE.format(PROMPT), [])["prompt"]
        # At least two bits a weight, whatever the type.
        small = self._write("small", path.stat().st_size * 4, wide=False)
        if self._plan.wide:
            self._tell("a layer as wide as the 24B model's")
            try:
                self._write("wide", WIDE_PARAMETERS, wide=True)
            except StepError as failed:
                self._wide_obstacle = _obstacle(failed)
        return Model(
            name=path.name,
            file_type=small["file_type"],
            parameters=small["parameters"],
            multiplied=small["multiplied"],
            wide_multiplied=WIDE_PARAMETERS,
        )

    def _write(self, name: str, parameters: int, *, wide: bool) -> Any:
        # And once more in float32, which is the most that MLX's converter writes for a variant.
        check_disk(self._scratch, weights.bytes_needed(parameters) + 4 * parameters)
        request = {
            "model": str(self._plan.model),
            "folder": str(self._scratch / name),
            "wide": wide,
        }
        return self._own("vistrald.frameworks.prepare", request, PREPARE_SECONDS, "weights")

    def _try(self, candidate: Candidate) -> Finding:
        finding = Finding(framework=candidate.key)
        if candidate is packages.LLAMA:
            return self._trials(candidate, finding, None)
        folder = self._scratch / "environment"
        try:
            self._tell(f"{candidate.title}: what its installation would fetch")
            environment = Environment(folder, self._plan.indexes.get(candidate.key, []))
            downloads = environment.resolve(candidate.requirements, self._left)
            needed = sum(each.bytes for each in downloads)
            finding = _resolved(finding, downloads)
            self._check_download(needed)
            if candidate.module is None:
                return finding.model_copy(
                    update={"obstacle": Obstacle(kind="only_sized", detail=candidate.title)}
                )
            self._tell(f"{candidate.title}: installation, {needed / 1e6:.0f} MB")
            self._left -= needed
            seconds = environment.install(downloads, candidate.requirements)
            finding = finding.model_copy(update={"install_seconds": seconds})
            return self._trials(candidate, finding, environment.python)
        except StepError as failed:
            return finding.model_copy(update={"obstacle": _obstacle(failed)})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check_download(self, needed: int) -> None:
        if needed > self._left:
            raise StepError("download", f"{needed / 1e9:.2f} GB > {self._left / 1e9:.2f} GB")

    def _trials(self, candidate: Candidate, finding: Finding, python: Path | None) -> Finding:
        update: dict[str, Any] = {}
        try:
            self._tell(f"{candidate.title}: load and answer, the small model")
            small = self._trial(candidate, python, "small")
            update["small"] = small
            if self._plan.wide and self._wide_obstacle is None:
                self._tell(f"{candidate.title}: load and answer, the wide layer")
                update["wide"] = self._trial(candidate, python, "wide")
            else:
                update["wide_obstacle"] = self._wide_obstacle
        except StepError as failed:
            update["wide_obstacle" if "small" in update else "obstacle"] = _obstacle(failed)
        return finding.model_copy(update=update)

    def _trial(self, candidate: Candidate, python: Path | None, name: str) -> Trial:
        small = name == "small"
        request: dict[str, Any] = {
            "model": str(self._scratch / name / "hf"),
            "prompt": self._prompt if small else WIDE_PROMPT,
            "answer_tokens": ANSWER_TOKENS if small else WIDE_ANSWER_TOKENS,
            "seconds": VARIANT_SECONDS,
            "threads": self._host.cores,
            "variants": list(candidate.variants) if small else WIDE_VARIANTS[candidate.key],
        }
        if python is None:
            models = {"Q8_0": str(self._scratch / name / "Q8_0.gguf")}
            if small:
                models["file"] = str(self._plan.model)
            else:
                # The type that is served; nothing that is 576 wide can be divided into its blocks.
                models["IQ4_XS"] = str(self._scratch / name / "IQ4_XS.gguf")
            request |= {"models": models, "variants": list(models)}
            module = f"vistrald.frameworks.trials.{candidate.module}"
            return Trial.model_validate(self._own(module, request, TRIAL_SECONDS, "trial"))
        trials = self._scratch / "trials"
        if not trials.exists():
            shutil.copytree(Path(__file__).with_name("trials"), trials)
        command = [str(python), "-m", f"trials.{candidate.module}"]
        return Trial.model_validate(self._run(command, request, TRIAL_SECONDS, "trial"))

    def _with_texts(self, findings: list[Finding]) -> list[Finding]:
        """The answers in words: of each framework's first variant that gave one."""
        answers = [
            next((rates.answer for rates in each.small.variants.values() if rates.answer), [])
            if each.small
            else []
            for each in findings
        ]
        texts = self._words("", answers)["texts"]
        return [
            each.model_copy(update={"answer": text})
            for each, text in zip(findings, texts, strict=True)
        ]

    def _words(self, text: str, answers: list[list[int]]) -> Any:
        request = {"model": str(self._plan.model), "text": text, "answers": answers}
        module = "vistrald.frameworks.trials.words"
        return self._own(module, request, PREPARE_SECONDS, "weights")

    def _own(self, module: str, request: dict[str, Any], seconds: float, kind: str) -> Any:
        """In this interpreter's environment."""
        return self._run([sys.executable, "-m", module], request, seconds, kind)

    def _run(self, command: list[str], request: dict[str, Any], seconds: float, kind: str) -> Any:
        memory = memory_for_trials()
        if memory <= 0:
            raise StepError("memory", f"{memory / 1e9:.1f} GB")
        out = run(
            command,
            Limits(seconds, memory=memory),
            cwd=self._scratch,
            stdin=json.dumps(request),
            kind=kind,
        )
        try:
            return json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            raise StepError(kind, f"{command[-1]}: {out[-300:]!r}") from None


def _resolved(finding: Finding, downloads: list[Download]) -> Finding:
    return finding.model_copy(
        update={
            "packages": [f"{each.name} {each.version}" for each in downloads],
            "download_bytes": sum(each.bytes for each in downloads),
        }
    )


def _obstacle(failed: StepError) -> Obstacle:
    return Obstacle(kind=failed.kind, detail=failed.detail)
