"""Does the running daemon serve what the configuration says? Asked over HTTP, step by step."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import requests

from vistrald.settings import Settings

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Step:
    name: str
    ok: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    url: str
    steps: list[Step]

    @property
    def ok(self) -> bool:
        return all(step.ok for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        failed = next((step for step in self.steps if not step.ok), None)
        return {
            "ok": self.ok,
            "url": self.url,
            "failed_step": failed.name if failed else None,
            "reason": failed.detail if failed else None,
            "steps": [asdict(step) for step in self.steps],
        }


class _FailedError(Exception):
    """The step did not hold; the message says what was expected and found."""


def smoke(settings: Settings, timeout: float) -> Report:
    """Runs the steps until one fails; `timeout` in seconds covers them all."""
    url = f"http://{settings.server.listen}"
    deadline = time.monotonic() + timeout
    steps: list[Step] = []
    checks: dict[str, Callable[[], str]] = {
        "live": lambda: _await(f"{url}/health/live", deadline),
        "ready": lambda: _await(f"{url}/health/ready", deadline),
        "identity": lambda: _identity(url, settings, deadline),
        "generation": lambda: _generation(url, settings, deadline),
    }
    for name, check in checks.items():
        began = time.monotonic()
        try:
            ok, detail = True, check()
        except (_FailedError, requests.RequestException) as error:
            ok, detail = False, str(error)
        steps.append(Step(name, ok, detail, round(time.monotonic() - began, 3)))
        if not ok:
            break
    return Report(url, steps)


def _await(url: str, deadline: float) -> str:
    """Waits for 200."""
    last = "no answer"
    while True:
        try:
            response = requests.get(url, timeout=_left(deadline))
            if response.status_code == 200:
                return response.text.strip()
            last = f"status {response.status_code}: {response.text.strip()[:300]}"
        except requests.RequestException as error:
            last = str(error)
        if time.monotonic() + POLL_SECONDS > deadline:
            raise _FailedError(f"{url}: {last}")
        time.sleep(POLL_SECONDS)


def _identity(url: str, settings: Settings, deadline: float) -> str:
    """Another release or model may still answer at this address."""
    status = _json(requests.get(f"{url}/api/v1/status", timeout=_left(deadline)))
    expected = {"release": settings.release.id, "sha256": settings.model.sha256}
    found = {"release": status["release"], "sha256": status["model"]["sha256"]}
    if found != expected:
        raise _FailedError(f"expected {expected}, found {found}")
    return f"release {found['release']}, model {found['sha256'][:16]}…"


def _generation(url: str, settings: Settings, deadline: float) -> str:
    request = {
        "model": settings.model.name,
        "messages": [{"role": "user", "content": "Ответь одним словом: да."}],
        "max_tokens": 4,
        "temperature": 0,
        "best_effort": True,  # a slow host is no broken release
    }
    answer = _json(
        requests.post(f"{url}/v1/chat/completions", json=request, timeout=_left(deadline))
    )
    tokens = answer["usage"]["completion_tokens"]
    if tokens < 1:
        raise _FailedError("the model generated no token")
    return f"{tokens} tokens, first after {answer['timings']['ttft_ms']:.0f} ms"


def _json(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise _FailedError(f"{response.url}: status {response.status_code}: {response.text[:300]}")
    return response.json()


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
