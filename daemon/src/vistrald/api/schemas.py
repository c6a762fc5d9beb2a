"""What requests and responses look like; the OpenAPI document is made from these."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vistrald.engine.sampling import Sampling
from vistrald.engine.sequence import Result
from vistrald.engine.template import Message
from vistrald.settings import GenerationSection


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank), Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=200)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
LogitBias = dict[TokenId, Annotated[float, Field(ge=-100, le=100)]]
StopStrings = Annotated[list[StopString], Field(max_length=16)]


class Body(BaseModel):
    """A request body: types are not converted, and unknown names are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class SamplingFields(Body):
    """Sampling settings; what is left out comes from the configuration."""

    max_tokens: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="lowered to the configured limit"
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1000, description="0 is off")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=2, description="1 is off")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="0 is off")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="0 is off")
    logit_bias: LogitBias | None = Field(
        default=None, max_length=300, description="by token id; where the configuration allows it"
    )
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    stop: StopString | StopStrings | None = None
    deadline_seconds: float | None = Field(
        default=None, ge=0.1, le=600, description="from submission to the answer's end"
    )
    best_effort: bool = Field(default=False, description="go on past the deadline")

    def deadline(self, defaults: GenerationSection) -> float | None:
        """Seconds from submission on; None if there is none."""
        if self.best_effort:
            return None
        return defaults.deadline_seconds if self.deadline_seconds is None else self.deadline_seconds

    def sampling(self, defaults: GenerationSection) -> Sampling:
        def given(name: str) -> Any:
            value = getattr(self, name)
            return getattr(defaults, name) if value is None else value

        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=min(given("max_tokens"), defaults.max_tokens),
            temperature=given("temperature"),
            top_p=given("top_p"),
            top_k=given("top_k"),
            min_p=given("min_p"),
            repeat_penalty=given("repeat_penalty"),
            presence_penalty=given("presence_penalty"),
            frequency_penalty=given("frequency_penalty"),
            logit_bias=tuple((int(at), bias) for at, bias in (self.logit_bias or {}).items()),
            seed=self.seed,
            stop=tuple(stop),
        )


# --- RAG interface -----------------------------------------------------------


class HistoryMessage(Body):
    role: Literal["user", "assistant", "bot"] = Field(description="bot is Saiga's word: assistant")
    content: Text


class PromptRequest(Body):
    question: Text
    context: str | None = None
    chat_history: list[HistoryMessage] | None = None


class PromptResponse(BaseModel):
    prompt: str


class GenerateRequest(SamplingFields):
    prompt: Text
    temperature: float | None = Field(default=0.3, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(default=0.8, gt=0, le=1)


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="taken from the prefix cache instead of computed")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, result: Result) -> "Usage":
        return cls(
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens,
            total_tokens=result.prompt_tokens + result.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=result.timings.cache_n),
        )


class TimingsModel(BaseModel):
    queue_ms: float
    prompt_ms: float
    predicted_ms: float
    ttft_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_per_token_ms: float
    predicted_per_second: float
    cache_n: int = Field(description="prompt tokens taken from the prefix cache")
    prompt_n: int = Field(description="prompt tokens computed")
    predicted_n: int
    draft_n: int = Field(description="tokens guessed from the request's own text")
    draft_n_accepted: int = Field(description="of these, how many the model generated")

    @classmethod
    def of(cls, result: Result) -> "TimingsModel":
        return cls(**{name: round(getattr(result.timings, name), 3) for name in cls.model_fields})


EndedBy = Annotated[
    Literal["deadline"] | None,
    Field(description="deadline: the answer was cut for it, finish_reason is length"),
]
CompleteChars = Annotated[
    int | None,
    Field(
        description="where the deadline ended the answer: its length up to the last full sentence, "
        "in Unicode characters; a stream may have sent more"
    ),
]


class Summary(BaseModel):
    """What is known of a request once its answer has ended."""

    request_id: str
    finish_reason: Literal["stop", "length"]
    ended_by: EndedBy
    complete_chars: CompleteChars
    usage: Usage
    timings: TimingsModel


class GenerateResponse(Summary):
    response: str


def summary(request_id: str, result: Result) -> dict[str, Any]:
    """The fields of Summary."""
    return {
        "request_id": request_id,
        "finish_reason": result.finish_reason,
        "ended_by": result.ended_by,
        "complete_chars": result.complete_chars,
        "usage": Usage.of(result),
        "timings": TimingsModel.of(result),
    }


# --- OpenAI interface --------------------------------------------------------


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]

    def as_message(self) -> Message:
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        # "developer" is OpenAI's later name for the same thing.
        return Message("system" if self.role == "developer" else self.role, content)


class TextFormat(BaseModel):
    type: Literal["text"]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class ChatRequest(SamplingFields):
    """OpenAI's chat completion; fields that change nothing here (user, metadata, …) are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    # Asked for, these would change the answer, and they are not offered: refused, not ignored.
    n: Literal[1] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    ended_by: EndedBy
    usage: Usage
    timings: TimingsModel


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


# --- Prefixes ----------------------------------------------------------------


class PrefixRequest(Body):
    """With neither context nor messages: what all prompts with documents begin with."""

    context: Text | None = Field(default=None, description="as /api/v1/prompt gets it")
    messages: list[ChatMessage] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="as a conversation begins; a user's message at the end may go on",
    )
    dry_run: bool = Field(default=False, description="only say what it would take")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.context is not None and self.messages is not None:
            raise ValueError("context and messages exclude each other")
        return self


class PrefixResponse(BaseModel):
    status: Literal["saved", "known", "absent"]
    tokens: int
    bytes: int = Field(description="on disk, without the file's header")
    seconds: float | None = Field(
        description="to compute it at the measured rate; 0 if it is known, null without a rate"
    )
    disk_bytes: int = Field(description="of all files")
    disk_cache_bytes: int = Field(description="their cap")


# --- Operations --------------------------------------------------------------


class Live(BaseModel):
    status: Literal["live"] = "live"


class Readiness(BaseModel):
    status: Literal["ready", "not_ready"]
    phase: str
    progress: float = Field(description="of the phase, 0 to 1")


class ModelStatus(BaseModel):
    name: str
    description: str
    sha256: str
    size: int = Field(description="bytes")
    context_tokens: int


class MemoryStatus(BaseModel):
    rss_bytes: int
    limit_bytes: int | None = Field(description="the control group's limit, if there is one")


class QueueStatus(BaseModel):
    running: int
    waiting: int
    parallel_sequences: int
    queue_length: int


class CpuStatus(BaseModel):
    backend: str
    threads: int


class TotalsStatus(BaseModel):
    total_requests: int
    successful_requests: int
    failed_requests: int
    average_response_time: float = Field(description="seconds, of the successful requests")
    last_response_time: float
    prompt_tokens: int
    predicted_tokens: int


class Status(BaseModel):
    release: str
    version: str
    phase: str
    progress: float
    uptime_seconds: float
    load_seconds: float
    model: ModelStatus
    memory: MemoryStatus
    queue: QueueStatus
    cpu: CpuStatus
    totals: TotalsStatus


class ErrorDetail(BaseModel):
    code: str
    message: str
    hint: str
    request_id: str


class ErrorResponse(BaseModel):
    error: ErrorDetail
