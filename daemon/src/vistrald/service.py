"""The state of the process: the phase it is in and, once ready, its engine.

The engine thread goes through the phases: verifying the file, loading it, warming up, ready; a
signal to stop adds draining. If that thread dies the process is of no use and must end.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from vistrald import log as logs
from vistrald import model_file, model_parts
from vistrald.cgroup import memory_limit, memory_used, usable_cores
from vistrald.engine import llama
from vistrald.engine.disk_cache import DiskCache
from vistrald.engine.engine import Engine, QueueFullError
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.sampling import Sampling
from vistrald.engine.sequence import DeadlineUnreachableError, Result, Stream
from vistrald.engine.template import ChatTemplate, TemplateError, check_format
from vistrald.gguf_header import read_header
from vistrald.gguf_source import FileSource
from vistrald.metrics import Metrics
from vistrald.notify import Notifier
from vistrald.settings import Settings
from vistrald.sizing import plan
from vistrald.sizing.host import this_host
from vistrald.sizing.shape import ShapeError
from vistrald.sizing.source import SourceError, read_file
from vistrald.totals import Totals

log = logging.getLogger(__name__)

Phase = Literal["starting", "verifying", "loading", "warming", "ready", "draining", "failed"]

# What systemd is asked to wait for the next sign of life. Signs come each second while the file is
# hashed and read; the first token of a 24B model from cold memory comes without any.
SIGN_OF_LIFE_SECONDS = 60
WARM_UP_SECONDS = 300

# Before the engine runs, a restart mends none of these.
REFUSALS = model_file.ModelFileError, plan.DoesNotFitError, TemplateError, llama.LlamaError


class NotReadyError(Exception):
    """The model is not loaded yet, or no longer takes requests."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(f"the service is {phase}")
        self.phase = phase


class NotOfferedError(Exception):
    """The request asks for what the configuration forbids."""

    def __init__(self, name: str, key: str) -> None:
        super().__init__(f"{name} is not offered here")
        self.key = key


class KeepingError(Exception):
    """Another prefix is being computed."""


class _StoppedError(Exception):
    """Told to stop while verifying or loading."""


class Service:
    def __init__(
        self,
        settings: Settings,
        *,
        notifier: Notifier,
        on_failure: Callable[[bool], None],
    ) -> None:
        """Nothing runs before start().

        `on_failure(refused)` must end the process: True if the model was refused, which a restart
        will not mend; False if the engine died.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.totals = Totals()
        self.phase: Phase = "starting"
        self.progress = 0.0  # of the phase
        self.model_description = ""
        self.backend = ""
        self.threads = settings.engine.threads or usable_cores()
        self.started = time.monotonic()
        self.load_seconds = 0.0
        self._engine: Engine | None = None
        self._encoder: PromptEncoder | None = None
        self._notifier = notifier
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._keeping = threading.Lock()
        self._told = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._register_gauges()

    def start(self) -> None:
        self._thread.start()

    @property
    def engine(self) -> Engine:
        if self._engine is None or self.phase != "ready":
            raise NotReadyError(self.phase)
        return self._engine

    @property
    def encoder(self) -> PromptEncoder:
        if self._encoder is None or self.phase != "ready":
            raise NotReadyError(self.phase)
        return self._encoder

    def submit(
        self, tokens: list[int], sampling: Sampling, deadline_seconds: float | None
    ) -> Stream:
        """Engine.submit, counted also where it refuses.

        Raises also NotReadyError, and NotOfferedError for what the configuration forbids.
        """
        if sampling.logit_bias and not self.settings.generation.logit_bias:
            raise NotOfferedError("logit_bias", "generation.logit_bias")
        try:
            return self.engine.submit(tokens, sampling, deadline_seconds)
        except (QueueFullError, DeadlineUnreachableError) as error:
            full = isinstance(error, QueueFullError)
            self.totals.refused()
            self.metrics.refused("queue_full" if full else "deadline_unreachable")
            raise

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """For whoever computes a prefix to keep: one at a time. Raises KeepingError."""
        if not self._keeping.acquire(blocking=False):
            raise KeepingError
        try:
            yield
        finally:
            self._keeping.release()

    @property
    def running(self) -> int:
        return self._engine.running if self._engine else 0

    @property
    def waiting(self) -> int:
        return self._engine.waiting if self._engine else 0

    def drain(self) -> None:
        """Takes no more requests; those it has may finish within the grace time."""
        grace = self.settings.server.grace_seconds
        self.phase = "draining"
        self._notifier.stopping(grace + SIGN_OF_LIFE_SECONDS)
        log.info(logs.line("draining", running=self.running, waiting=self.waiting, grace=grace))
        self._stopping.set()
        if self._engine:
            self._engine.refuse()
            deadline = time.monotonic() + grace
            while self.running + self.waiting and time.monotonic() < deadline:
                time.sleep(0.05)
            self._engine.cancel_all()

    def stop(self) -> None:
        """Ends the engine thread; after drain(), when no request is left."""
        self._stopping.set()
        if self._engine:
            self._engine.stop()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._verify()
            self._check_format()
            self._check_memory()
            engine = self._load()
            self._warm_up(engine)
            engine.run()
        except _StoppedError:
            log.info(logs.line("stopped", phase=self.phase))
        except REFUSALS as error:
            refused = self._engine is None
            self._fail("model refused" if refused else "engine died", error, refused)
        except Exception as error:
            log.exception("engine thread")
            self._fail("engine died", error, False)

    def _fail(self, event: str, error: Exception, refused: bool) -> None:
        self.phase = "failed"
        log.error(logs.line(event, error=error))
        self._on_failure(refused)

    def _verify(self) -> None:
        self._enter("verifying")
        model = self.settings.model
        began = time.monotonic()
        hashed = model_parts.verify(model, self.settings.paths.state_dir, self._advance)
        log.info(
            logs.line(
                "verified",
                sha256=model.sha256,
                hashed=hashed,
                seconds=time.monotonic() - began,
            )
        )

    def _check_format(self) -> None:
        """A wrong format is answered in silence, only worse; so the file's template is tried."""
        model = self.settings.model
        if model.format != "any":
            with FileSource(model.path) as source:
                check_format(read_header(source).chat_template, model.format)

    def _check_memory(self) -> None:
        """Before gigabytes are read: the kernel would end the process in the midst of them."""
        path = self.settings.model.path
        try:
            model = read_file(path)
        except (ShapeError, SourceError) as error:
            # An architecture of another kind may work all the same.
            log.warning(logs.line("memory not planned", error=error))
            return
        host = this_host(path, measure=False)
        account = plan.check(model, self.settings.engine, host)
        log.info(logs.line("planned", peak=account.peak, available=host.available, **vars(account)))

    def _load(self) -> Engine:
        self._enter("loading")
        began = time.monotonic()
        settings = self.settings.engine
        self.backend = llama.load_backend()
        log.info(
            logs.line(
                "backend", library=self.backend, features=llama.cpu_features(), threads=self.threads
            )
        )
        try:
            model = llama.Model(self.settings.model.path, settings, self._advance_or_stop)
        except llama.LlamaError:
            if self._stopping.is_set():
                raise _StoppedError from None
            raise
        self.model_description = model.description
        vocabulary = model.vocabulary
        template = ChatTemplate(
            model.chat_template,
            bos=vocabulary.text(vocabulary.bos),
            eos=vocabulary.text(vocabulary.eos),
        )
        self._encoder = PromptEncoder(vocabulary, template)
        context = llama.Context(model, settings, self.threads)
        engine = Engine(model, context, settings, self._finished, self._disk_cache())
        self.load_seconds = time.monotonic() - began
        log.info(logs.line("loaded", model=model.description, seconds=self.load_seconds))
        return engine

    def _disk_cache(self) -> DiskCache | None:
        settings = self.settings
        if not (settings.engine.disk_cache_bytes and settings.engine.prefix_cache):
            return None
        # Tokenizer and shape are the model file's.
        key = f"{settings.model.digest} {settings.engine.kv_type} {llama.version()}"
        try:
            return DiskCache(
                settings.paths.state_dir / "prefixes", key, settings.engine.disk_cache_bytes
            )
        except OSError as error:
            log.warning(logs.line("no prefix cache on disk", error=error))
            return None

    def _warm_up(self, engine: Engine) -> None:
        self._enter("warming")
        self._notifier.progress("warming up", WARM_UP_SECONDS)
        engine.warm_up()
        self._engine = engine
        if self._stopping.is_set():
            raise _StoppedError
        self.progress = 1.0
        self.phase = "ready"
        log.info(logs.line("ready", seconds=time.monotonic() - self.started))
        self._notifier.ready(f"serving {self.settings.model.name}")

    def _finished(self, result: Result) -> None:
        if self.phase == "warming":
            return  # our own token, nobody's request
        self.metrics.finished(result)
        self.totals.finished(result)

    def _enter(self, phase: Phase) -> None:
        if self._stopping.is_set():
            raise _StoppedError
        self.phase, self.progress = phase, 0.0
        self._notifier.progress(phase, SIGN_OF_LIFE_SECONDS)

    def _advance(self, fraction: float) -> None:
        self.progress = fraction
        if self._stopping.is_set():
            raise _StoppedError
        if (now := time.monotonic()) - self._told >= 1:
            self._told = now
            self._notifier.progress(f"{self.phase} {fraction:.0%}", SIGN_OF_LIFE_SECONDS)

    def _advance_or_stop(self, fraction: float) -> bool:
        """For libllama, through which no exception may pass: False stops the load."""
        try:
            self._advance(fraction)
        except _StoppedError:
            return False
        return True

    def _register_gauges(self) -> None:
        settings = self.settings
        self.metrics.info(
            release=settings.release.id, model=settings.model.name, sha256=settings.model.sha256
        )
        gauge = self.metrics.gauge
        gauge("ready", "1 once requests are taken", lambda: float(self.phase == "ready"))
        gauge("requests_processing", "Requests in the batch", lambda: self.running)
        gauge("requests_deferred", "Requests waiting in the queue", lambda: self.waiting)
        gauge("memory_limit_bytes", "The control group's, 0: none", lambda: memory_limit() or 0)
        gauge(
            "memory_used_bytes",
            "The control group's that has the limit, less file pages not used lately",
            lambda: memory_used() or 0,
        )
        gauge(
            "kv_cache_usage_ratio",
            "KV cells in use, the prefix cache's included",
            lambda: self._of_engine("used_cells") / settings.engine.context_tokens,
        )
        gauge("kv_cache_tokens", "The same, in tokens", lambda: self._of_engine("used_cells"))
        gauge(
            "prompt_tokens_seconds",
            "Prefill rate, tokens/s, a moving estimate; 0: not measured yet",
            lambda: (self._engine.rates.prefill if self._engine else None) or 0,
        )
        gauge(
            "predicted_tokens_seconds",
            "Decode rate of one answer alone without guesses, tokens/s, a moving estimate",
            lambda: 1 / ((self._engine.rates.step(1) if self._engine else None) or math.inf),
        )
        self.metrics.count("n_decode", "Batches computed", lambda: self._of_engine("decodes"))
        gauge("load_seconds", "Time to load the model", lambda: self.load_seconds)
        gauge("disk_cache_bytes", "Saved prefixes", lambda: self._of_disk("bytes"))
        gauge("disk_cache_limit_bytes", "Their cap, 0: off", lambda: self._of_disk("max_bytes"))
        gauge("disk_cache_files", "Those of use here", lambda: self._of_disk("files"))
        count = self.metrics.count
        count(
            "disk_cache_evictions", "Files that the cap removed", lambda: self._of_disk("evictions")
        )
        count("disk_cache_damaged", "Files found of no use", lambda: self._of_disk("damaged"))

    def _of_engine(self, name: str) -> float:
        return float(getattr(self._engine, name)) if self._engine else 0.0

    def _of_disk(self, name: str) -> float:
        disk = self._engine.disk if self._engine else None
        return float(getattr(disk, name)) if disk else 0.0
