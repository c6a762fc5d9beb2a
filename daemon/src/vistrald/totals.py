"""Totals since start, with the names that the application's get_stats() has."""

import threading
from dataclasses import dataclass, field
from typing import Any

from vistrald.engine.sequence import Result


@dataclass
class Totals:
    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    average_response_time: float = 0.0  # seconds, of the successful ones
    last_response_time: float = 0.0
    prompt_tokens: int = 0
    predicted_tokens: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def finished(self, result: Result) -> None:
        seconds = (result.timings.ttft_ms + result.timings.predicted_ms) / 1000
        with self._lock:
            self.total_requests += 1
            self.prompt_tokens += result.timings.prompt_n
            self.predicted_tokens += result.timings.predicted_n
            if result.finish_reason in {"cancelled", "deadline_unreachable"}:
                self.failed_requests += 1
                return
            self.successful_requests += 1
            self.last_response_time = seconds
            self.average_response_time += (
                seconds - self.average_response_time
            ) / self.successful_requests

    def refused(self) -> None:
        with self._lock:
            self.total_requests += 1
            self.failed_requests += 1

    def as_dict(self) -> dict[str, float]:
        return {key: getattr(self, key) for key in self.__dataclass_fields__ if key[0] != "_"}
