"""The Tekken vocabulary and the chat template of an MLX model, from its tokenizer's files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import TokenType

from vistrald.conversion.errors import ConversionError
from vistrald.engine.template import ChatTemplate, Message, TemplateError

# What GGUF's pre-tokenizer `tekken` splits text by.
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Of the template's tags; a vocabulary without them is of another generation.
REQUIRED_TOKENS = ("[INST]", "[/INST]")
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Vocabulary:
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]  # bos, eos, unk, pad -> id; bos and eos are always there
    template: str
    warnings: list[str] = field(default_factory=list)


def read_vocabulary(folder: Path, size: int, template_file: Path | None = None) -> Vocabulary:
    """The vocabulary, padded to `size` tokens. Raises ConversionError.

    A template given as a file is taken before the model's own.
    """
    file = folder / TOKENIZER
    tokenizer = _read(
        file, "fetch it from the MLX repository, or from that of the model it was made of"
    )
    config = _read(folder / TOKENIZER_CONFIG, "fetch it from the MLX repository")
    try:
        return _vocabulary(folder, tokenizer, config, size, template_file)
    except (LookupError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{file} or {TOKENIZER_CONFIG} is not what a tokenizer writes ({error!r}); fetch both "
            "again"
        ) from None


def _vocabulary(
    folder: Path,
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    size: int,
    template_file: Path | None,
) -> Vocabulary:
    file = folder / TOKENIZER
    tokens, types = _tokens(file, tokenizer, size)
    ids = {token: at for at, token in enumerate(tokens)}
    special = _special(folder, config, tokenizer, ids)
    for token in REQUIRED_TOKENS:
        if token not in ids or types[ids[token]] != TokenType.CONTROL:
            raise ConversionError(
                f"{file}: {token} is no control token, so this is not the Tekken vocabulary of a "
                "model with the V7 template; use llama.cpp's convert_hf_to_gguf.py for others"
            )
    template = _template(folder, config, template_file)
    _try_template(template_file or folder, template, tokens[special["bos"]], tokens[special["eos"]])
    merges = _merges(file, tokenizer)
    return Vocabulary(tokens, types, merges, special, template, _pattern_warnings(file, tokenizer))


def _read(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ConversionError(f"{file}: {error.strerror}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{file} is not valid JSON ({error}); {remedy} again") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{file} is no JSON object; {remedy} again")
    return content


def _tokens(file: Path, tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = model.get("type") if isinstance(model, dict) else model
        raise ConversionError(
            f"{file}: model.type is {kind}, a byte-level BPE can be converted; use llama.cpp's "
            "convert_hf_to_gguf.py for others"
        )
    tokens = [f"[PAD{at}]" for at in range(size)]
    types = [int(TokenType.UNUSED)] * size
    entries = [(at, token, TokenType.NORMAL) for token, at in model["vocab"].items()]
    entries += [
        (
            added["id"],
            added["content"],
            TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED,
        )
        for added in tokenizer.get("added_tokens", [])
    ]
    for at, token, kind in entries:
        if not 0 <= at < size:
            raise ConversionError(
                f"{file}: token {token!r} has id {at}, config.json's vocab_size is {size}; fetch "
                "both from one revision of the repository again"
            )
        tokens[at], types[at] = token, int(kind)
    if len(set(tokens)) != size:
        raise ConversionError(f"{file}: a token has two ids; fetch it again")
    return tokens, types


def _merges(file: Path, tokenizer: dict[str, Any]) -> list[str]:
    """`left right`; newer files have pairs instead."""
    merges = tokenizer["model"].get("merges") or []
    joined = [each if isinstance(each, str) else " ".join(each) for each in merges]
    wrong = next((each for each in joined if each.count(" ") != 1), None)
    if wrong is not None or not joined:
        raise ConversionError(
            f"{file}: model.merges has {len(joined)} entries, one of them {wrong!r}; two parts "
            "each are expected: fetch it again"
        )
    return joined


def _special(
    folder: Path, config: dict[str, Any], tokenizer: dict[str, Any], ids: dict[str, int]
) -> dict[str, int]:
    special = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = config.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if name == "unk" and token is None:
            token = tokenizer["model"].get("unk_token")
        if token in ids:
            special[name] = ids[token]
        elif token is not None or name in {"bos", "eos"}:
            raise ConversionError(
                f"{folder / TOKENIZER_CONFIG}: {name}_token is {token!r}, which {TOKENIZER} does "
                "not have; fetch both from one revision of the repository again"
            )
    return special


def _template(folder: Path, config: dict[str, Any], given: Path | None) -> str:
    """Its own file in newer repositories, a key of the tokenizer's configuration in older ones."""
    for file in (given, folder / "chat_template.jinja"):
        if file is not None and (file == given or file.exists()):
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConversionError(f"{file} cannot be read: {error}") from None
    source = config.get("chat_template")
    if (folder / "chat_template.json").exists():
        source = _read(folder / "chat_template.json", "fetch it").get("chat_template", source)
    if not isinstance(source, str) or not source.strip():
        raise ConversionError(
            f"{folder} has no chat template (chat_template.jinja, or chat_template in "
            f"{TOKENIZER_CONFIG}): without one the model's answers are silently worse; fetch it "
            "from the model's repository, or name a file with --chat-template"
        )
    return source


def _try_template(where: Path, source: str, bos: str, eos: str) -> None:
    """Renders a conversation as the daemon will."""
    messages = [Message("system", "s"), Message("user", "u")]
    try:
        ChatTemplate(source, bos=bos, eos=eos).render(messages)
    except TemplateError as error:
        raise ConversionError(f"{where}: {error}; name another with --chat-template") from None


def _pattern_warnings(file: Path, tokenizer: dict[str, Any]) -> list[str]:
    """Repositories of Mistral Small 3.1 and later were published with another pattern."""
    whole = tokenizer.get("pre_tokenizer") or {}
    steps = whole.get("pretokenizers", [whole])
    if [step["pattern"] for step in steps if "pattern" in step] == [{"Regex": TEKKEN_PATTERN}]:
        return []
    return [
        f"{file}: its pre_tokenizer splits text by another pattern than Tekken's, a known mistake "
        "of published files; the GGUF gets Tekken's own, which the model was trained with"
    ]
