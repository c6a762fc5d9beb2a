"""A GGUF to a smaller type through libllama's quantizer.

The quantizer runs in a process of its own (quantizer.py): it takes up to an hour during which
nothing interrupts it, it aborts on some malformed files, and its memory is to be free afterwards.
"""

import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vistrald.conversion import destination as files
from vistrald.conversion.errors import ConversionError
from vistrald.model_file import ModelFileError, check_header

# enum llama_ftype; what a 24B model is worth being kept in.
FILE_TYPES = {
    "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14, "IQ4_NL": 25,
    "IQ4_XS": 30, "Q4_0": 2, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_XS": 22,
    "Q2_K": 10,
}  # fmt: skip
METADATA_BYTES = 64 * 2**20
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
TOTAL = re.compile(r"quant size += +([\d.]+) MiB")
SHOWN_LINES = 4  # of libllama's last words, in an error


class Request(BaseModel):
    """What quantizer.py is asked for."""

    model_config = ConfigDict(frozen=True)

    source: Path
    destination: Path
    file_type: int
    threads: int
    imatrix: Path | None = None
    dry_run: bool = False


def needed_bytes(request: Request) -> int:
    """What the result takes on disk, some more than it will have. Raises ConversionError."""
    size = 0.0
    with _running(request.model_copy(update={"dry_run": True})) as lines:
        for line in lines:
            if total := TOTAL.search(line):
                size = float(total[1]) * 2**20
    return int(size) + METADATA_BYTES


def quantize(request: Request, progress: Callable[[float], None] = lambda _: None) -> None:
    """Writes request.destination; `progress` gets the fraction of tensors done.

    Begins anew after an interruption. Raises ConversionError, with libllama's last words.
    """
    with files.whole(request.destination) as part:
        asked = request.model_copy(update={"destination": part})
        with _running(asked) as lines:
            for line in lines:
                if tensor := TENSOR.search(line):
                    progress((int(tensor[1]) - 1) / int(tensor[2]))
    progress(1.0)


def check_source(source: Path) -> None:
    """Raises ConversionError for a header that libllama must not see."""
    try:
        check_header(source)
    except ModelFileError as error:
        raise ConversionError(str(error)) from None
    except OSError as error:
        raise ConversionError(
            f"{source}: {error.strerror}; name the GGUF file that `vistrald convert` made"
        ) from None


@contextmanager
def _running(request: Request) -> Iterator[Iterator[str]]:
    """The child's lines as they come; it is killed if the block is left by an exception.

    Raises ConversionError if it fails.
    """
    said: deque[str] = deque(maxlen=SHOWN_LINES)
    child = subprocess.Popen(
        [sys.executable, "-m", "vistrald.conversion.quantizer", request.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    assert child.stdout is not None  # noqa: S101 - told to be a pipe above

    def lines(stream: Iterator[str]) -> Iterator[str]:
        for line in stream:
            if line.strip():
                said.append(line.rstrip())
            yield line

    try:
        yield lines(child.stdout)
        status = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        child.stdout.close()
    if status:
        raise ConversionError(
            f"{request.source}: libllama's quantizer ended with status {status}; nothing was kept. "
            "It said:\n" + "\n".join(said)
        )
