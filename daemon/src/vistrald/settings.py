"""One immutable settings object, read once from one TOML file."""

import difflib
import hashlib
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


def _require_absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


AbsolutePath = Annotated[Path, Field(strict=False), AfterValidator(_require_absolute)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PartSection(Section):
    """A further file of a split model; its path follows from the first's."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0, description="bytes")


class ModelSection(Section):
    path: AbsolutePath
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(gt=0, description="bytes")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$", description="id in the API")
    format: Literal["any", "v7-tekken", "chatml"] = Field(
        default="any", description="the prompt format that the file's own template must have"
    )
    parts: list[PartSection] = Field(default=[], description="the files after the first")

    @model_validator(mode="after")
    def _named_as_libllama_looks_for_them(self) -> Self:
        if self.parts and not self.path.name.endswith(self._ending(1)):
            raise ValueError(
                f"model.path is the first of {len(self.parts) + 1} files, so it must end in "
                f"{self._ending(1)}; it is {self.path}"
            )
        return self

    def _ending(self, number: int) -> str:
        return f"-{number:05}-of-{len(self.parts) + 1:05}.gguf"

    @property
    def files(self) -> list[tuple[Path, int, str]]:
        """Path, size and sha256 of each file, the one that libllama is given first."""
        stem = str(self.path).removesuffix(self._ending(1))
        further = [
            (Path(stem + self._ending(number)), part.size, part.sha256)
            for number, part in enumerate(self.parts, 2)
        ]
        return [(self.path, self.size, self.sha256), *further]

    @property
    def digest(self) -> str:
        """Tells models apart; of a split one, two may have the same first file."""
        if not self.parts:
            return self.sha256
        return hashlib.sha256("".join(file[2] for file in self.files).encode()).hexdigest()


class ServerSection(Section):
    listen: str = Field(default="127.0.0.1:8080", pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")
    request_threads: int = Field(default=32, ge=4, le=512)
    max_body_bytes: int = Field(default=2**20, ge=1024, le=64 * 2**20)
    grace_seconds: int = Field(default=20, ge=0, le=600)


class EngineSection(Section):
    context_tokens: int = Field(
        default=4096, ge=256, le=2**20, description="KV cache cells, shared by all sequences"
    )
    parallel_sequences: int = Field(default=4, ge=1, le=64)
    threads: int = Field(default=0, ge=0, le=512, description="0: all usable cores")
    batch_tokens: int = Field(default=512, ge=128, le=8192)  # >= sequences + drafts
    queue_length: int = Field(default=16, ge=0, le=1024)
    draft_tokens: int = Field(
        default=15, ge=0, le=63, description="most guessed tokens in a batch; 0: no speculation"
    )
    load_mode: Literal["none", "mmap"] = "none"
    repack: bool = True
    kv_type: Literal["f16", "q8_0"] = "f16"
    prefix_cache: bool = True
    disk_cache_bytes: int = Field(
        default=0, ge=0, le=2**40, description="cap of prefixes kept in paths.state_dir; 0: none"
    )

    @model_validator(mode="after")
    def _no_doubled_weights(self) -> Self:
        # mmap keeps the file's pages resident beside the repacked copy: twice the model's size.
        if self.load_mode == "mmap" and self.repack:
            raise ValueError('load_mode = "mmap" with repack = true holds the weights in RAM twice')
        return self


class GenerationSection(Section):
    max_tokens: int = Field(default=512, ge=1, le=2**20, description="default and upper limit")
    temperature: float = Field(default=0.2, ge=0, le=2)
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=40, ge=0, le=1000, description="0: off")
    min_p: float = Field(default=0.0, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, gt=0, le=2, description="1: off")
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, description="0: off")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="0: off")
    logit_bias: bool = Field(default=False, description="whether requests may send one")
    deadline_seconds: float = Field(default=30, ge=0.1, le=600, description="default of requests")


class PathsSection(Section):
    state_dir: AbsolutePath = Path("/var/lib/vistrald")


class ReleaseSection(Section):
    id: str = Field(default="unreleased", pattern=r"^[A-Za-z0-9._+-]{1,64}$")


class Settings(Section):
    model: ModelSection
    server: ServerSection = ServerSection()
    engine: EngineSection = EngineSection()
    generation: GenerationSection = GenerationSection()
    paths: PathsSection = PathsSection()
    release: ReleaseSection = ReleaseSection()

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.generation.max_tokens >= self.engine.context_tokens:
            raise ValueError(
                "generation.max_tokens must be less than engine.context_tokens "
                f"({self.engine.context_tokens}), which holds prompt and answer"
            )
        # Each waiting request holds a thread; health checks must still find one.
        # So does the prefix that is being kept.
        holders = self.engine.parallel_sequences + self.engine.queue_length + 1
        if self.server.request_threads <= holders:
            raise ValueError(
                "server.request_threads must exceed parallel_sequences + queue_length + 1, "
                f"{holders}: a full queue leaves no thread for health checks"
            )
        return self


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration file."""

    key: str
    value: Any
    limit: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.limit}; {self.remedy}"


class SettingsError(Exception):
    def __init__(self, path: Path, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))
        self.problems = problems

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(problem) for problem in self.problems]


def read_settings(path: Path) -> Settings:
    """Reads and validates the file. Raises SettingsError with every problem found."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = Problem("file", str(path), error.strerror or str(error), "name a readable file")
        raise SettingsError(path, [problem]) from None
    except ValueError as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError
        problem = Problem("file", str(path), f"not valid TOML: {error}", "correct the syntax there")
        raise SettingsError(path, [problem]) from None
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(path, [_problem(detail) for detail in error.errors()]) from None


def _problem(detail: Any) -> Problem:
    """One of pydantic's errors as key, value, limit and remedy."""
    location = [str(part) for part in detail["loc"]]
    key, value = ".".join(location), detail["input"]
    match detail["type"]:
        case "missing":
            return Problem(key, None, "required", f"add `{location[-1]} = …`{_under(location)}")
        case "extra_forbidden":
            near = difflib.get_close_matches(location[-1], _names_beside(location), n=1)
            remedy = f"did you mean `{near[0]}`?" if near else "remove it"
            return Problem(key, value, "unknown name", remedy)
        case "value_error":
            # A rule over several keys: the message names them, the whole section says nothing.
            shown = None if isinstance(value, (dict, BaseModel)) else value
            return Problem(
                key or "settings", _plain(shown), str(detail["ctx"]["error"]), "change one of them"
            )
        case _:
            limit = detail["msg"].replace("Input should", "should")
            return Problem(key, _plain(value), limit, f"correct `{location[-1]}`{_under(location)}")


def _under(location: list[str]) -> str:
    return f" under [{location[-2]}]" if len(location) > 1 else ""


def _names_beside(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)


def _plain(value: Any) -> Any:
    """TOML knows dates and we know paths; JSON knows neither."""
    return (
        value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)
    )
