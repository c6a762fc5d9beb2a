"""`python -m llama_cpp.server`, with the processor's kernels registered first.

The project's wheel has a library of kernels for each kind of processor and registers none by
itself; llama_cpp knows nothing of that. This runs in the peer's own venv.
"""

import ctypes
import runpy

from llama_cpp import llama_cpp as C  # noqa: N812 (the C API, as in the daemon)

ggml = ctypes.CDLL(C._lib._name)
ggml.ggml_backend_load_all_from_path(str(C._base_path).encode())
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
