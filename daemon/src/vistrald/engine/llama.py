"""The llama.cpp C API as a few plain objects: vocabulary, model, context, sampler.

Nothing here knows of requests. Written for llama-cpp-python 0.3.36: the structs' fields change
between versions. Except for the vocabulary, which is read-only, all of it belongs to one thread.
"""

import ctypes
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as C  # noqa: N812 (the C API, named as such)

from vistrald.engine.sampling import Sampling
from vistrald.settings import EngineSection

log = logging.getLogger(__name__)

GGML_TYPES = {"f16": 1, "q8_0": 8}  # enum ggml_type
LOAD_MODES = {"none": C.LLAMA_LOAD_MODE_NONE, "mmap": C.LLAMA_LOAD_MODE_MMAP}
GGML_LOG_WARN, GGML_LOG_ERROR = 3, 4  # ggml.h; llama_cpp's own comment is outdated
SEQUENCE_IDS: int = C.llama_max_parallel_sequences()  # LLAMA_MAX_SEQ, 256
GGML_CPU_DEVICE = 0  # enum ggml_backend_dev_type
PENALTY_WINDOW = 64  # tokens that penalties look back upon, llama.cpp's default

# Tekken's pre-tokenizer runs in std::wregex, which recurses once per character: a run of 40,000
# letters (or blanks) overflows an 8 MiB stack and kills the process. Longer runs are cut.
LONG_RUN = re.compile(r"\S{1000}|\s{1000}")


class LlamaError(Exception):
    """libllama refused or failed; the message says what was asked of it."""


def _forward_log(level: int, text: bytes, _data: object) -> None:
    if level in (GGML_LOG_WARN, GGML_LOG_ERROR):
        log.warning("llama.cpp: %s", text.decode(errors="replace").strip())


_LOG_CALLBACK = C.llama_log_callback(_forward_log)  # libllama keeps the pointer: never collected


def load_backend() -> str:
    """Registers the CPU backend that suits this processor and returns its library's name.

    A wheel built with GGML_BACKEND_DL carries one library per CPU generation and registers none by
    itself. The symbols are looked up through libllama's own handle: the wheel contains copies of
    libggml.so, and loading another copy would fill a registry that libllama does not see.
    """
    C.llama_log_set(_LOG_CALLBACK, None)
    ggml = ctypes.CDLL(C._lib._name)
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    if not ggml.ggml_backend_dev_by_type(GGML_CPU_DEVICE):
        ggml.ggml_backend_load_all_from_path(str(C._base_path).encode())
    if not ggml.ggml_backend_dev_by_type(GGML_CPU_DEVICE):
        raise LlamaError(f"no CPU backend in {C._base_path}; reinstall llama-cpp-python")
    C.llama_backend_init()
    maps = Path("/proc/self/maps").read_text()
    libraries = re.findall(r"/(libggml-cpu[^/\s]*\.so)", maps)
    return libraries[0].removeprefix("lib").removesuffix(".so") if libraries else "built in"


def version() -> str:
    return str(llama_cpp.__version__)


def cpu_features() -> str:
    """The instruction sets the loaded backend uses, as llama.cpp prints them."""
    text: bytes = C.llama_print_system_info()
    return " ".join(re.findall(r"(\w+) = 1", text.decode()))


class Vocabulary:
    """Text to token ids and back. Read-only, so any thread may use it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.size: int = C.llama_vocab_n_tokens(handle)
        self.bos: int = C.llama_vocab_bos(handle)
        self.eos: int = C.llama_vocab_eos(handle)
        self.adds_bos: bool = C.llama_vocab_get_add_bos(handle)
        ids = range(self.size)
        self.end_of_generation = frozenset(t for t in ids if C.llama_vocab_is_eog(handle, t))
        self.control = (
            frozenset(t for t in ids if C.llama_vocab_is_control(handle, t))
            | self.end_of_generation
        )
        self.user_defined = frozenset(
            t for t in ids if C.llama_vocab_get_attr(handle, t) & C.LLAMA_TOKEN_ATTR_USER_DEFINED
        )

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it; "" for no token (-1)."""
        return "" if token < 0 else C.llama_vocab_get_text(self._handle, token).decode()

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids without BOS or EOS; `special` turns control-token text into control tokens."""
        ids: list[int] = []
        start = 0
        for run in LONG_RUN.finditer(text):
            ids += self._tokenize(text[start : run.end()], special)
            start = run.end()
        return ids + self._tokenize(text[start:], special)

    def _tokenize(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        # A token covers at least one byte; some tokenizers put one blank before the text.
        ids = (C.llama_token * (len(data) + 2))()
        count = C.llama_tokenize(self._handle, data, len(data), ids, len(ids), False, special)
        if count < 0:
            raise LlamaError(f"tokenizing {len(data)} bytes of text failed with {count}")
        return ids[:count]

    def piece(self, token: int) -> bytes:
        """The bytes a generated token stands for; control tokens stand for none."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = C.llama_token_to_piece(self._handle, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count


class Model:
    """Weights and vocabulary of one verified GGUF file."""

    def __init__(
        self,
        path: Path,
        settings: EngineSection,
        progress: Callable[[float], bool] = lambda _: True,
    ) -> None:
        """Loads the file; `progress` gets the fraction and returns False to stop.

        Raises LlamaError if libllama cannot load it (or was stopped).
        """
        params = C.llama_model_default_params()
        params.load_mode = LOAD_MODES[settings.load_mode]
        params.use_extra_bufts = settings.repack
        params.n_gpu_layers = 0
        callback = C.llama_progress_callback(lambda fraction, _data: progress(fraction))
        params.progress_callback = callback
        self.handle = C.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise LlamaError(f"libllama could not load {path}; its messages above say why")
        self.vocabulary = Vocabulary(C.llama_model_get_vocab(self.handle))
        template = C.llama_model_chat_template(self.handle, None)
        self.chat_template: str | None = template.decode() if template else None
        # Windowed and recurrent caches drop old positions: what is left is no prefix to share.
        self.shares_prefixes = not (
            C.llama_model_n_swa(self.handle)
            or C.llama_model_is_recurrent(self.handle)
            or C.llama_model_is_hybrid(self.handle)
        )
        self.trained_context: int = C.llama_model_n_ctx_train(self.handle)
        description = ctypes.create_string_buffer(128)
        C.llama_model_desc(self.handle, description, len(description))
        self.description = description.value.decode()

    def close(self) -> None:
        C.llama_model_free(self.handle)


class Entry(NamedTuple):
    """One token of a batch: where it goes, and whether its logits are wanted."""

    token: int
    position: int
    sequence: int
    output: bool


class Decoded(IntEnum):
    """What llama_decode answers; anything below zero is an error."""

    DONE = 0
    NO_SLOT = 1
    ABORTED = 2


class Context:
    """The unified KV cache and the compute graph of one model."""

    def __init__(self, model: Model, settings: EngineSection, threads: int) -> None:
        """Allocates the cache for settings.context_tokens. Raises LlamaError."""
        if settings.context_tokens > model.trained_context:
            raise LlamaError(
                f"engine.context_tokens = {settings.context_tokens} exceeds the "
                f"{model.trained_context} that the model was trained for; lower it"
            )
        params = C.llama_context_default_params()
        params.n_ctx = settings.context_tokens
        # Equal, so that a batch is one micro-batch: an abort then leaves nothing of it behind.
        params.n_batch = params.n_ubatch = settings.batch_tokens
        # Sequences in a batch, each with a row of logits. The prefix cache's are not counted: a
        # unified cache takes ids below SEQUENCE_IDS whatever this says (seq_to_stream in
        # llama-kv-cache.cpp, n_seq_max in llama_context::decode).
        params.n_seq_max = settings.parallel_sequences
        params.kv_unified = True
        # Each sequence and each guess needs one row of logits; the default reserves one per batch
        # token (256 MiB for 512 tokens of a vocabulary of 131072).
        self.rows = settings.parallel_sequences + settings.draft_tokens
        params.n_outputs_max = self.rows
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.type_k = params.type_v = GGML_TYPES[settings.kv_type]
        params.no_perf = True
        # The callback runs before every node of the graph, many hundred times a step. libc's strlen
        # in its place ("" -> 0, "\x01" -> 1) answers without taking Python's lock.
        self._abort = ctypes.create_string_buffer(2)
        strlen = ctypes.CDLL(None).strlen
        params.abort_callback = ctypes.cast(strlen, C.ggml_abort_callback)
        params.abort_callback_data = ctypes.addressof(self._abort)
        self.handle = C.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LlamaError(
                f"libllama could not allocate {settings.context_tokens} tokens of "
                f"{settings.kv_type} KV cache; lower engine.context_tokens if memory is short"
            )
        self.context_tokens: int = C.llama_n_ctx(self.handle)
        self.batch_tokens = settings.batch_tokens
        self._memory = C.llama_get_memory(self.handle)
        self._batch = C.llama_batch_init(settings.batch_tokens, 0, 1)

    def decode(self, entries: Sequence[Entry]) -> Decoded:
        """Computes one batch; DONE makes the outputs' logits readable by index in `entries`.

        After NO_SLOT and ABORTED the KV cache is as it was before. Raises LlamaError.
        """
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, entry in enumerate(entries):
            batch.token[i] = entry.token
            batch.pos[i] = entry.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = entry.sequence
            batch.logits[i] = entry.output
        status = C.llama_decode(self.handle, batch)
        if status < 0:
            raise LlamaError(f"llama_decode of {len(entries)} tokens failed with {status}")
        return Decoded(status)

    def abort(self) -> None:
        """Makes a decode that is running end with ABORTED; any thread may call it."""
        self._abort[0] = b"\x01"

    def allow(self) -> None:
        """Withdraws abort()."""
        self._abort[0] = b"\x00"

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Lets `target` see `source`'s cells at positions start <= p < end; nothing is copied."""
        C.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove(self, sequence: int, start: int, end: int) -> None:
        """Takes positions start <= p < end from the sequence; cells that no other sees are free."""
        C.llama_memory_seq_rm(self._memory, sequence, start, end)

    def forget(self, sequence: int) -> None:
        """Takes all positions from the sequence."""
        C.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def state_size(self, sequence: int) -> int:
        """Bytes of what save_state() writes."""
        size: int = C.llama_state_seq_get_size(self.handle, sequence)
        return size

    def save_state(self, sequence: int, buffer: "ctypes.Array[ctypes.c_uint8]") -> bool:
        """Writes the sequence's cells, positions included; False if that failed."""
        size = len(buffer)
        return bool(C.llama_state_seq_get_data(self.handle, buffer, size, sequence) == size)

    def load_state(self, sequence: int, buffer: "ctypes.Array[ctypes.c_uint8]") -> bool:
        """Puts saved cells into the sequence in place of its own; False if that failed."""
        size = len(buffer)
        return bool(C.llama_state_seq_set_data(self.handle, buffer, size, sequence) == size)

    def close(self) -> None:
        C.llama_batch_free(self._batch)
        C.llama_free(self.handle)


class Sampler:
    """Chooses the next token from logits: a llama.cpp sampler chain."""

    def __init__(
        self, vocabulary: Vocabulary, sampling: Sampling, history: Iterable[int] = ()
    ) -> None:
        """Samplers in llama-server's order; `history` (the prompt's end) counts for the penalty."""
        self._vocabulary_size = vocabulary.size
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        if sampling.logit_bias:
            pairs = [C.llama_logit_bias(*pair) for pair in sampling.logit_bias]
            biases = (C.llama_logit_bias * len(pairs))(*pairs)
            self._add(C.llama_sampler_init_logit_bias(vocabulary.size, len(biases), biases))
        penalties = (
            sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty,
        )  # fmt: skip
        if penalised := penalties != (1, 0, 0):
            self._add(C.llama_sampler_init_penalties(vocabulary.size, PENALTY_WINDOW, *penalties))
        # Then the chain would only look for the largest, through a table of all candidates.
        self._largest = not (sampling.temperature or sampling.logit_bias or penalised)
        if sampling.temperature == 0:
            self._add(C.llama_sampler_init_greedy())
        else:
            seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            self._add(C.llama_sampler_init_top_k(sampling.top_k))
            self._add(C.llama_sampler_init_top_p(sampling.top_p, 1))
            self._add(C.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(C.llama_sampler_init_temp(sampling.temperature))
            self._add(C.llama_sampler_init_dist(seed))
        for token in history:
            C.llama_sampler_accept(self._chain, token)

    def _add(self, sampler: int) -> None:
        C.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Context, index: int) -> int:
        """The token chosen from the logits of the last batch's entry `index`."""
        if self._largest:
            row = C.llama_get_logits_ith(context.handle, index)
            return int(np.ctypeslib.as_array(row, (self._vocabulary_size,)).argmax())
        token: int = C.llama_sampler_sample(self._chain, context.handle, index)
        return token

    def close(self) -> None:
        C.llama_sampler_free(self._chain)
