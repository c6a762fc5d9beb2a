"""`python -m vistrald.conversion.quantizer REQUEST`: one run of libllama's quantizer.

What it says goes to standard error as it says it; quantize.py reads that. Exits 0, or 1 after
saying why.
"""

import ctypes
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from llama_cpp import llama_cpp as C  # noqa: N812 (the C API, named as such)

from vistrald.conversion.errors import ConversionError
from vistrald.conversion.quantize import Request
from vistrald.engine import llama

# Rows kept in memory at a time. Libllama's own is 8 GiB; the result is the same bit by bit.
BUFFER_BYTES = 512 * 2**20
SUMS, COUNTS = ".in_sum2", ".counts"  # endings of an importance matrix's tensors
Q8_0 = 7  # enum llama_ftype
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(request: Request) -> bool:
    """Whether libllama made the file. Raises ConversionError for a bad importance matrix."""
    llama.load_backend()
    # Libllama's own: everything to standard error at once, not only warnings.
    C.llama_log_set(C.llama_log_callback(), None)
    params = C.llama_model_quantize_default_params()
    params.ftype = request.file_type
    params.nthread = request.threads
    params.max_buf_size = BUFFER_BYTES
    params.dry_run = request.dry_run
    # Of the quantized types this one is close enough to the original to be made smaller.
    params.allow_requantize = _file_type(request.source) == Q8_0
    if request.imatrix:
        importance = read_imatrix(request.imatrix)
        # Ends with an entry without a name.
        entries = (C.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = len(values)
        params.imatrix = entries
    source, destination = str(request.source).encode(), str(request.destination).encode()
    return bool(C.llama_model_quantize(source, destination, ctypes.byref(params)) == 0)


def _file_type(source: Path) -> int | None:
    """general.file_type of a GGUF."""
    params = C.llama_model_default_params()
    params.vocab_only = True
    model = C.llama_model_load_from_file(str(source).encode(), params)
    if not model:
        return None  # the quantizer will say why
    text = ctypes.create_string_buffer(16)
    length = C.llama_model_meta_val_str(model, b"general.file_type", text, len(text))
    C.llama_model_free(model)
    return int(text.value) if length > 0 else None


def read_imatrix(file: Path) -> dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]:
    """Importance by tensor: the mean square of what the tensor's columns were multiplied with.

    Raises ConversionError.
    """
    try:
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}
    except (OSError, ValueError, LookupError) as error:
        raise ConversionError(
            f"{file} is no importance matrix in GGUF ({error}); make it with llama-imatrix, which "
            "also converts older .dat files: llama-imatrix --in-file OLD -o NEW.gguf"
        ) from None
    importance = {}
    for name in (each.removesuffix(SUMS) for each in tensors if each.endswith(SUMS)):
        sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
        if counts is None or counts.size == 0 or sums.dtype != np.float32:
            raise ConversionError(f"{file}: {name}{SUMS} has no {COUNTS}; make the file again")
        rows = sums.reshape(counts.size, -1)
        times = counts.reshape(-1, 1)
        # A part that no text ever reached counts as any other.
        mean = np.divide(rows, times, out=np.ones_like(rows), where=times > 0)
        importance[name] = np.ascontiguousarray(mean.reshape(-1), dtype=np.float32)
    if not importance:
        raise ConversionError(
            f"{file} has no tensor that ends with {SUMS}, so it is no importance matrix; make it "
            "with llama-imatrix"
        )
    return importance


def end_with_parent() -> None:
    """A killed command must not leave an hour of work behind that nobody waits for."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    try:
        sys.exit(0 if run(Request.model_validate_json(sys.argv[1])) else 1)
    except ConversionError as error:
        sys.exit(str(error))
