"""Asks the Vistral daemon, in place of a Saiga model inside the application.

VistralService has the methods, arguments, results and errors of SaigaService. This one file is all;
it needs httpx (0.25 or newer, below 1) and Python 3.9 or newer. Nothing is connected at import.

Settings come from the environment, else from attributes of the same names of a settings object, and
are read when the first request needs them:

    VISTRAL_URL                address of the daemon or its gateway; http://127.0.0.1:8080
    VISTRAL_API_KEY            sent as "Authorization: Bearer …" where the gateway asks for one
    VISTRAL_CA_FILE            PEM of the authority that signed the gateway's certificate
    VISTRAL_INFERENCE_TIMEOUT  seconds for an answer, waiting included; 1 to 600, 30
    VISTRAL_LOAD_TIMEOUT       seconds that ensure_model_loaded waits for the model; 1 to 3600, 300
    VISTRAL_MAX_CONCURRENCY    answers at once in one event loop, more wait; 1 to 64, 8
    VISTRAL_REPEAT_PENALTY     1 is off; the daemon's setting
    VISTRAL_STOP_TOKENS        texts that end an answer: a JSON list, or divided by commas; none
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import importlib
import json
import logging
import os
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Coroutine,
    Generator,
    Iterator,
)
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import httpx

# The application's settings object, as "package.module:attribute"; a leading dot makes it relative
# to this package. Empty: only the environment is read.
SETTINGS = ""
# True keeps the names SaigaService and saiga_service for code that still imports them.
SAIGA_NAMES = False

GRACE_SECONDS = 2.0  # the daemon ends an answer at its deadline; it must still arrive
SILENCE_SECONDS = 15.0  # a stream without text has a ping every 2 s
CONNECT_SECONDS = 5.0
REFUSED_SECONDS = 20.0  # a service that restarts listens again by then
PROBE_SECONDS = 2.0
PROMPT_SECONDS = 10.0
PROMPT_SECONDS_IN_LOOP = 3.0  # a sync call there stands in the way of everything else
CONTROL_CONNECTIONS = 4  # beside those of answers: health is asked also when all of them are busy
KNOWN_PROMPTS = 4096
NOT_VISTRAL = "what answers at VISTRAL_URL is not the Vistral daemon; correct the address"

log = logging.getLogger(__name__)
T = TypeVar("T")


# --- Errors --------------------------------------------------------------------------------------


class VistralError(RuntimeError):
    """No answer. The text says why and what to do; it never has people's text in it."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code  # the daemon's, as its README lists them
        self.request_id = request_id  # by which the daemon's log is searched
        self.retry_after = retry_after  # seconds


class VistralTimeoutError(VistralError):
    """No answer within VISTRAL_INFERENCE_TIMEOUT; the text begins with "Inference timeout"."""


class VistralUnavailableError(VistralError):
    """The daemon is down, loading, stopping or full; the same request may succeed later."""


class VistralRequestError(VistralError):
    """The request itself was refused; repeating it is of no use."""


_UNAVAILABLE = {"not_ready", "shutting_down", "queue_full"}
_BUSY = {429, 502, 503, 504}


def _refusal(body: Any, status: int, retry_after: float | None = None) -> VistralError:
    """The error that the daemon, or a gateway before it, answered with."""
    body = body if isinstance(body, dict) else {}
    error = body["error"] if isinstance(body.get("error"), dict) else {}
    code = str(error.get("code", ""))
    message = str(error.get("message") or f"the service answered with status {status}")
    if "phase" in body:  # of /health/ready
        message = f"the model is not loaded: {body['phase']}, {body.get('progress', 0):.0%}"
    if error.get("hint"):
        message += f"; {error['hint']}"
    if error.get("request_id"):
        message += f" (request {error['request_id']})"
    kind = VistralError
    if code == "deadline_unreachable":
        kind, message = VistralTimeoutError, f"Inference timeout: {message}"
    elif code in _UNAVAILABLE or status in _BUSY:
        kind, message = VistralUnavailableError, f"Vistral is not available: {message}"
    elif 400 <= status < 500:
        kind, message = VistralRequestError, f"Vistral refused the request: {message}"
        if status in {401, 403}:
            message += "; check VISTRAL_API_KEY"
    return kind(
        message,
        code=code,
        request_id=str(error.get("request_id", "")),
        retry_after=retry_after,
    )


# --- Settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    url: str
    api_key: str
    ca_file: str
    inference_timeout: float
    load_timeout: float
    max_concurrency: int
    repeat_penalty: float | None
    stop: list[str]


def _read_config(settings: Any) -> _Config:
    """Raises VistralError naming the variable, its value and the limit."""

    def given(name: str) -> Any:
        value: Any = os.environ.get(name) or getattr(settings, name, None)
        if hasattr(value, "get_secret_value"):  # pydantic's SecretStr
            value = value.get_secret_value()
        return value.strip() if isinstance(value, str) else value

    def number(name: str, default: float | None, least: float, most: float) -> Any:
        value = given(name)
        if value is None or value == "":
            return default
        with contextlib.suppress(TypeError, ValueError):
            if least <= float(value) <= most:
                return float(value)
        raise VistralError(f"{name} = {value!r}: a number from {least:g} to {most:g} is expected")

    url = str(given("VISTRAL_URL") or "http://127.0.0.1:8080").rstrip("/")
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL:
        host = ""
    if not host or not url.startswith(("http://", "https://")):
        raise VistralError(f"VISTRAL_URL = {url!r}: http:// or https:// and a host are expected")
    stop = given("VISTRAL_STOP_TOKENS") or []
    if isinstance(stop, str):
        try:
            stop = json.loads(stop) if stop.startswith("[") else stop.split(",")
        except ValueError:
            raise VistralError(f"VISTRAL_STOP_TOKENS = {stop!r}: not a JSON list") from None
    return _Config(
        url=url,
        api_key=str(given("VISTRAL_API_KEY") or ""),
        ca_file=str(given("VISTRAL_CA_FILE") or ""),
        inference_timeout=number("VISTRAL_INFERENCE_TIMEOUT", 30, 1, 600),
        load_timeout=number("VISTRAL_LOAD_TIMEOUT", 300, 1, 3600),
        max_concurrency=int(number("VISTRAL_MAX_CONCURRENCY", 8, 1, 64)),
        repeat_penalty=number("VISTRAL_REPEAT_PENALTY", None, 0.01, 2),
        stop=[str(text) for text in stop if str(text).strip()],
    )


def _settings_object() -> Any:
    if not SETTINGS:
        return None
    module, _, attribute = SETTINGS.partition(":")
    try:
        return getattr(importlib.import_module(module, __package__), attribute)
    except (ImportError, AttributeError) as error:
        raise VistralError(f"SETTINGS = {SETTINGS!r} in {__file__}: {error}") from error


# --- Prompts -------------------------------------------------------------------------------------


class _Format(NamedTuple):
    turn: re.Pattern[str]  # its groups are named after the roles, in the order they stand in
    end: re.Pattern[str]  # where the answer begins


def _format(turn: str, end: str) -> _Format:
    return _Format(re.compile(turn, re.DOTALL), re.compile(end))


_FORMATS = (
    # <s><system>…</system><user>…</user><bot>
    _format(
        r"\s*(?:<s>\s*)?(?:<system>(?P<system>.*?)</system>|<user>(?P<user>.*?)</user>"
        r"|<bot>(?P<assistant>.*?)</bot>)(?:\s*</s>)?",
        r"\s*(?:<s>\s*)?(?:<bot>\s*)?",
    ),
    # <s>system\n…</s><s>user\n…</s><s>bot\n
    _format(
        r"\s*<s>\s*(?:system\n(?P<system>.*?)|user\n(?P<user>.*?)"
        r"|(?:bot|assistant)\n(?P<assistant>.*?))</s>",
        r"\s*(?:<s>\s*(?:bot|assistant)\s*)?",
    ),
    # ChatML
    _format(
        r"\s*(?:<s>)?<\|im_start\|>(?:system\n(?P<system>.*?)|user\n(?P<user>.*?)"
        r"|assistant\n(?P<assistant>.*?))<\|im_end\|>",
        r"\s*(?:<\|im_start\|>assistant\s*)?",
    ),
    # Vistral's own: <s>[SYSTEM_PROMPT]…[/SYSTEM_PROMPT][INST]…[/INST]…</s>[INST]…[/INST]
    _format(
        r"\s*(?:<s>)?(?:\[SYSTEM_PROMPT\](?P<system>.*?)\[/SYSTEM_PROMPT\]"
        r"|\[INST\](?P<user>.*?)\[/INST\](?:(?P<assistant>.*?)</s>)?)",
        r"\s*",
    ),
)


def read_prompt(prompt: str) -> list[dict[str, str]]:
    """A prompt string as messages, whichever format it is in; otherwise it is one user's message.

    Only the daemon's template makes control tokens of messages, so what stands in them is text. A
    system turn after the first question can come from that question's text, and becomes part of it.
    """
    for turn, end in _FORMATS:
        messages: list[dict[str, str]] = []
        position = 0
        while match := turn.match(prompt, position):
            for role, content in match.groupdict().items():
                if content and content.strip():
                    _append(messages, role, content.strip())
            position = match.end()
        if end.fullmatch(prompt, position) and messages and messages[-1]["role"] == "user":
            return messages
    return [{"role": "user", "content": prompt}]


def _append(messages: list[dict[str, str]], role: str, content: str) -> None:
    """Joins neighbours of one role: chat templates refuse two in a row, and an answer first."""
    asked = any(message["role"] != "system" for message in messages)
    if role == "system" and asked:
        role = "user"
    if role == "assistant" and not asked:
        return
    if messages and messages[-1]["role"] == role:
        messages[-1]["content"] += f"\n\n{content}"
    else:
        messages.append({"role": role, "content": content})


def _history(messages: Any) -> list[dict[str, str]]:
    """The turns of a chat, given as dicts or as objects with `role` and `content`."""
    turns = []
    for message in messages or []:
        get = message.get if isinstance(message, dict) else lambda k, m=message: getattr(m, k, None)
        role = "assistant" if get("role") in {"assistant", "bot", "ai"} else "user"
        content = str(get("content") or "")
        if content.strip():
            turns.append({"role": role, "content": content})
    return turns


class _KnownPrompts:
    """Which strings this process had the daemon make: their control tokens are the template's own.

    Digests of the latest, not texts. Whatever is not known is read as messages.
    """

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, prompt: str) -> None:
        with self._lock:
            self._digests[self._digest(prompt)] = None
            if len(self._digests) > KNOWN_PROMPTS:
                self._digests.popitem(last=False)

    def __contains__(self, prompt: str) -> bool:
        with self._lock:
            return self._digest(prompt) in self._digests

    @staticmethod
    def _digest(prompt: str) -> bytes:
        return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


# --- Connections ---------------------------------------------------------------------------------


class _Pool(NamedTuple):
    """What one event loop has."""

    client: httpx.AsyncClient
    places: asyncio.Semaphore  # for answers


class _Connections:
    """A pool for each event loop, and an event loop in a thread for the sync calls.

    They belong to one process: after a fork, neither the sockets nor the thread are the child's.
    """

    def __init__(self, config: _Config) -> None:
        self.pid = os.getpid()
        self._config = config
        self._lock = threading.Lock()
        self._of_loop: dict[asyncio.AbstractEventLoop, tuple[Any, _Pool]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ssl: ssl.SSLContext | None = None

    async def pool(self) -> _Pool:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._of_loop:
                for other in [other for other in self._of_loop if other.is_closed()]:
                    del self._of_loop[other]
                holder = self._hold(loop)
                # Nothing is awaited up to the generator's yield, so the lock is not held for long.
                self._of_loop[loop] = (holder, await holder.__anext__())
            return self._of_loop[loop][1]

    async def _hold(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[_Pool, None]:
        """A generator, since asyncio.run and its like close those that are open at a loop's end."""
        pool = _Pool(self._new_client(), asyncio.Semaphore(self._config.max_concurrency))
        try:
            yield pool
        finally:
            with self._lock:
                self._of_loop.pop(loop, None)
            await pool.client.aclose()

    def _new_client(self) -> httpx.AsyncClient:
        config = self._config
        if self._ssl is None:
            self._ssl = httpx.create_ssl_context()
            try:
                if config.ca_file:
                    self._ssl.load_verify_locations(config.ca_file)
            except OSError as error:  # ssl's own errors are of this kind too
                raise VistralError(f"VISTRAL_CA_FILE = {config.ca_file!r}: {error}") from None
        return httpx.AsyncClient(
            base_url=config.url,
            headers={"Authorization": f"Bearer {config.api_key}"} if config.api_key else {},
            verify=self._ssl,
            limits=httpx.Limits(max_connections=config.max_concurrency + CONTROL_CONNECTIONS),
            trust_env=False,  # a proxy of the environment must not see confidential texts
        )

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it in the thread's loop. Cancels it if the waiting thread is interrupted."""
        with self._lock:
            if self._thread is None:
                started = threading.Event()
                self._thread = threading.Thread(
                    target=asyncio.run, args=(self._serve(started),), name="vistral", daemon=True
                )
                self._thread.start()
                started.wait()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise VistralUnavailableError("the Vistral service was closed here") from None
        except BaseException:
            future.cancel()
            raise

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        started.set()
        await self._stop.wait()

    def close(self) -> None:
        """Ends the thread; calls that wait in it are cancelled. A later call starts a new one."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread:
                self._loop.call_soon_threadsafe(self._stop.set)
        if thread:
            thread.join()


class _Clock:
    """A request's time. The first half may be spent on waiting for the daemon."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.1, self._end - time.monotonic())

    def allows(self, pause: float) -> bool:
        return pause <= self.left - self.seconds / 2


@dataclass
class _Call:
    """`async with` gives the response with status 200, to be read.

    Not a generator: of those that are open at its end, an event loop closes the inner ones first.
    """

    config: _Config
    client: httpx.AsyncClient
    path: str
    body: dict[str, Any] | None  # None: GET
    clock: _Clock
    places: asyncio.Semaphore | None = None  # of answers; None: not an answer
    streams: bool = False

    async def __aenter__(self) -> httpx.Response:
        await self._take_place()
        try:
            self._response = await self._accepted()
        except BaseException as error:
            self._leave_place()
            if isinstance(error, httpx.RequestError):
                raise self._failure(error) from error
            raise
        return self._response

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            await self._response.aclose()
        finally:
            self._leave_place()
        if isinstance(error, httpx.RequestError):
            raise self._failure(error) from error

    async def _take_place(self) -> None:
        """Before the request is made: it names the time that is left then."""
        if self.places:
            try:
                await asyncio.wait_for(self.places.acquire(), self.clock.left)
            except asyncio.TimeoutError:
                places = self.config.max_concurrency
                reason = f"all {places} places (VISTRAL_MAX_CONCURRENCY) were taken"
                raise _timed_out(reason) from None

    def _leave_place(self) -> None:
        if self.places:
            self.places.release()

    async def _accepted(self) -> httpx.Response:
        """Repeats only what cannot have begun: a refused connection, or 503 with Retry-After."""
        backoff = 0.25
        while True:
            pause: float | None
            try:
                response = await self.client.send(self._request(), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem: VistralError = VistralUnavailableError(
                    f"Vistral is not available: no connection to {self.config.url} "
                    f"({error}); is vistrald running, is VISTRAL_URL right?"
                )
                pause, backoff = backoff, backoff * 2
            else:
                if response.status_code == httpx.codes.OK:
                    return response
                problem = await _read_refusal(response)
                pause = problem.retry_after if response.status_code in {429, 503} else None
            if pause is None or not self.clock.allows(pause):
                raise problem
            log.info("waiting %.3g s: %s", pause, problem)
            await asyncio.sleep(pause)

    def _request(self) -> httpx.Request:
        """With the time that is left now."""
        left = self.clock.left
        read = left + (GRACE_SECONDS if self.places else 0)
        if self.streams:
            read = min(read, SILENCE_SECONDS)
        connect = min(CONNECT_SECONDS, left)
        timeout = httpx.Timeout(connect=connect, read=read, write=left, pool=left)
        if self.body is None:
            return self.client.build_request("GET", self.path, timeout=timeout)
        body = dict(self.body)
        if self.places:
            # A little less than what is left: the answer's way back takes time as well.
            body["deadline_seconds"] = max(0.1, round(left * 0.95, 2))
        # Not httpx's JSON: some of its versions raise UnicodeEncodeError at half a surrogate pair.
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json"}
        return self.client.build_request(
            "POST", self.path, content=content, headers=headers, timeout=timeout
        )

    def _failure(self, error: httpx.RequestError) -> VistralError:
        if isinstance(error, httpx.TimeoutException):
            silent = f"{self.config.url} says nothing to {self.path}"
            return _timed_out(f"{silent}, which has {self.clock.seconds:g} s", "is vistrald well?")
        return self.lost()

    def lost(self) -> VistralError:
        return VistralUnavailableError(
            f"Vistral is not available: the connection to {self.config.url} ended before the "
            "answer did; the service may be restarting, ask again"
        )


def _timed_out(
    reason: str, remedy: str = "shorten the prompt or raise VISTRAL_INFERENCE_TIMEOUT"
) -> VistralTimeoutError:
    return VistralTimeoutError(f"Inference timeout: {reason}; {remedy}")


async def _read_refusal(response: httpx.Response) -> VistralError:
    try:
        content = await response.aread()
    finally:
        await response.aclose()
    body = None
    with contextlib.suppress(ValueError):  # a gateway's page
        body = json.loads(content)
    retry_after = response.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    return _refusal(body, response.status_code, seconds)


class _Events:
    """Server-sent events out of bytes as they come, cut anywhere.

    httpx's own lines end also at U+2028 and its like, which may stand in a text.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield _parse(line[len(b"data: ") :])


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise VistralError(NOT_VISTRAL) from None


def _pick(body: Any, *keys: str | int) -> Any:
    try:
        for key in keys:
            body = body[key]
    except (LookupError, TypeError):
        raise VistralError(NOT_VISTRAL) from None
    return body


# --- The service ---------------------------------------------------------------------------------


class _Stats:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._total = self._successful = self._failed = 0
            self._seconds = self._last = 0.0

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """One that its caller cancels counts in the total alone."""
        with self._lock:
            self._total += 1
        began = time.monotonic()
        try:
            yield
        except Exception:
            with self._lock:
                self._failed += 1
            raise
        with self._lock:
            self._successful += 1
            self._last = time.monotonic() - began
            self._seconds += self._last

    def as_dict(self) -> dict[str, Any]:
        with self._lock:
            return {
                "total_requests": self._total,
                "successful_requests": self._successful,
                "failed_requests": self._failed,
                "average_response_time": self._seconds / max(1, self._successful),
                "last_response_time": self._last,
            }


class VistralService:
    """Every method raises VistralError, which is a RuntimeError, and may be called from any thread.

    The sync methods wait in the calling thread: in an event loop's thread use the async ones.
    """

    def __init__(self, settings: Any = None) -> None:
        """`settings`: an object with VISTRAL_* attributes, for what the environment leaves out."""
        self._settings = settings
        self._lock = threading.Lock()
        self._read: _Config | None = None
        self._open: _Connections | None = None
        self._known = _KnownPrompts()
        self._stats = _Stats()
        self._preloading: asyncio.Future[None] | None = None

    async def generate_response_async(
        self, prompt: str, max_tokens: int = 1024, temperature: float = 0.3, top_p: float = 0.8
    ) -> str:
        """The answer; where the time ran out, up to its last full sentence."""
        sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        clock = _Clock(self._config.inference_timeout)
        with self._stats.request():
            try:
                answer = self._whole_answer(prompt, sampling, clock)
                return await asyncio.wait_for(answer, clock.left + GRACE_SECONDS)
            except asyncio.TimeoutError:
                raise _timed_out(f"no answer within {clock.seconds:g} s") from None

    def generate_response(
        self, prompt: str, max_tokens: int = 1024, temperature: float = 0.3, top_p: float = 0.8
    ) -> str:
        return self._run(self.generate_response_async(prompt, max_tokens, temperature, top_p))

    async def stream_response(
        self, prompt: str, max_tokens: int = 1024, temperature: float = 0.3, top_p: float = 0.8
    ) -> AsyncGenerator[str, None]:
        """Pieces of the answer as the model makes them.

        A consumer that stops closes the connection, and the daemon computes no further.
        """
        sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        clock = _Clock(self._config.inference_timeout)
        with self._stats.request():
            some = ended = cut = False
            events = _Events()
            call = await self._generation(prompt, sampling, clock, stream=True)
            async with call as response:
                async for chunk in response.aiter_bytes():
                    for data in events.feed(chunk):
                        if "error" in data:
                            raise _refusal(data, 500)
                        choice = data["choices"][0] if data.get("choices") else {}
                        text = data.get("text") or choice.get("delta", {}).get("content")
                        if text:
                            some = True
                            yield text
                        if data.get("finish_reason") or choice.get("finish_reason"):
                            ended = True
                            cut = data.get("ended_by") == "deadline"
            if not ended:
                raise call.lost()
            if cut and not some:
                raise _timed_out(f"no word of the answer within {clock.seconds:g} s")

    def create_legal_prompt(self, question: str, context: str | None = None) -> str:
        """The question and its documents in the model's own format, made by the daemon."""
        return self.create_legal_prompt_with_history(question, None, context)

    def create_legal_prompt_with_history(
        self,
        question: str,
        chat_history: list[Any] | None = None,
        context: str | None = None,
    ) -> str:
        """The same after a chat: dicts or objects with `role` (user, assistant, bot) and `content`.

        The daemon's instructions and template go into it, so it raises where that is not ready.
        """
        body = {"question": question, "context": context, "chat_history": _history(chat_history)}
        clock = _Clock(PROMPT_SECONDS_IN_LOOP if _in_loop() else PROMPT_SECONDS)
        prompt = str(_pick(self._run(self._json("/api/v1/prompt", body, clock)), "prompt"))
        self._known.add(prompt)
        return prompt

    async def ensure_model_loaded_async(self) -> None:
        """Returns once the daemon serves. The model is the daemon's: nothing is loaded here."""
        clock = _Clock(self._config.load_timeout)
        answered = time.monotonic()
        while True:
            try:
                await self._ready()
            except (VistralUnavailableError, VistralTimeoutError) as error:
                if error.retry_after is not None:
                    answered = time.monotonic()
                if clock.left < 1 or time.monotonic() - answered > REFUSED_SECONDS:
                    raise
                await asyncio.sleep(0.5)
            else:
                return

    def ensure_model_loaded_sync(self) -> None:
        self._run(self.ensure_model_loaded_async())

    def preload_model(self) -> Awaitable[None]:
        """Waits for the model, called plainly; in an event loop only what is returned waits."""
        if _in_loop():
            self._preloading = asyncio.ensure_future(self.ensure_model_loaded_async())
            return self._preloading
        self.ensure_model_loaded_sync()
        return _Done()

    def is_model_loaded(self) -> bool:
        """Whether the daemon takes requests now; False also where it cannot be asked."""
        try:
            self._run(self._ready())
        except VistralError:
            return False
        return True

    def get_stats(self) -> dict[str, Any]:
        """Of this object's answers, whole and streamed; times in seconds, of successful ones."""
        return self._stats.as_dict()

    def reset_stats(self) -> None:
        self._stats.reset()

    def close(self) -> None:
        """Ends the thread of the sync methods. Each event loop's own connections end with it."""
        if self._open and self._open.pid == os.getpid():
            self._open.close()

    # How a request is made

    @property
    def _config(self) -> _Config:
        if self._read is None:
            settings = _settings_object() if self._settings is None else self._settings
            self._read = _read_config(settings)
        return self._read

    @property
    def _connections(self) -> _Connections:
        config = self._config
        with self._lock:
            if self._open is None or self._open.pid != os.getpid():
                self._open = _Connections(config)
            return self._open

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            connections = self._connections
        except VistralError:
            coroutine.close()
            raise
        return connections.run(coroutine)

    async def _ready(self) -> None:
        await self._json("/health/ready", None, _Clock(PROBE_SECONDS))

    async def _whole_answer(self, prompt: str, sampling: dict[str, Any], clock: _Clock) -> str:
        async with await self._generation(prompt, sampling, clock, stream=False) as response:
            data = _parse(await response.aread())
        if "choices" in data:
            text = _pick(data, "choices", 0, "message", "content")
        else:
            text = _pick(data, "response")
        if not text and data.get("ended_by") == "deadline":
            raise _timed_out(f"no word of the answer within {clock.seconds:g} s")
        return str(text)

    async def _generation(
        self, prompt: str, sampling: dict[str, Any], clock: _Clock, *, stream: bool
    ) -> _Call:
        config = self._config
        body = {
            **sampling,
            "repeat_penalty": config.repeat_penalty,
            "stop": config.stop or None,
        }
        if prompt in self._known:
            path = "/api/v1/stream" if stream else "/api/v1/generate"
            body["prompt"] = prompt
        else:
            # Asked each time: the daemon may have been given another model.
            models = await self._json("/v1/models", None, clock)
            path = "/v1/chat/completions"
            body["model"] = _pick(models, "data", 0, "id")
            body["messages"] = read_prompt(prompt)
            body["stream"] = stream
        pool = await self._connections.pool()
        return _Call(config, pool.client, path, body, clock, places=pool.places, streams=stream)

    async def _json(self, path: str, body: dict[str, Any] | None, clock: _Clock) -> Any:
        pool = await self._connections.pool()
        async with _Call(self._config, pool.client, path, body, clock) as response:
            return _parse(await response.aread())


class _Done:
    """For a caller that awaits what is done already."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


vistral_service = VistralService()

if SAIGA_NAMES:
    SaigaService = VistralService
    saiga_service = vistral_service
