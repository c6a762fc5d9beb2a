"""What a survey found, as plain data: this is what --json prints."""

from pydantic import BaseModel, ConfigDict

from vistrald.frameworks.scaling import Measured


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True)


class Obstacle(_Data):
    """Why a step was not done: a kind that the report translates, and the evidence as it came.

    Kinds: install, download, disk, timeout, memory, trial, weights, only_sized.
    """

    kind: str
    detail: str


class Rates(_Data):
    """One variant of one model: seconds, tokens a second, greedy answer as token ids."""

    load_seconds: float
    prefill: float
    decode: float
    cores: float  # at work while decoding
    prompt_tokens: int
    answer: list[int]


class Trial(_Data):
    variants: dict[str, Rates]
    process_bytes: int  # resident with the framework imported and nothing loaded
    peak_bytes: int


class Finding(_Data):
    """One framework: installed or not, and its trials on the small model and on the wide layer."""

    framework: str
    packages: list[str] = []  # with versions, the largest first
    download_bytes: int | None = None
    install_seconds: float | None = None
    obstacle: Obstacle | None = None
    small: Trial | None = None
    wide: Trial | None = None
    wide_obstacle: Obstacle | None = None
    answer: str = ""


class Model(_Data):
    """What was tried: a file's name, its type, and weights that a token is multiplied with."""

    name: str
    file_type: str
    parameters: int
    multiplied: int
    wide_multiplied: int

    def measured(self, rates: Rates) -> Measured:
        return Measured(rates.prefill, rates.decode, self.multiplied)

    def measured_wide(self, rates: Rates) -> Measured:
        return Measured(rates.prefill, rates.decode, self.wide_multiplied)


class Host(_Data):
    """The machine that was surveyed. Bytes; the date is UTC, to the minute."""

    processor: str
    instruction_sets: list[str]
    machine: str
    system: str
    kernel: str
    cores: int
    memory: int
    nvidia: bool
    python: str
    date: str


class Survey(_Data):
    host: Host
    model: Model
    prompt: str
    download_limit: int
    findings: list[Finding]
