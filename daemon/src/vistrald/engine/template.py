"""The model's own chat template, rendered so that contents stay apart from the template's text.

The template comes from the GGUF and runs in Jinja's sandbox. It never sees what people wrote: each
content is stood for by a placeholder, and the rendering is cut at the placeholders. Whatever text
the template produced is trusted to contain control tokens; contents never are.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Blanks no template writes by itself: where they are missing, the template stripped the content.
PADDING = "\v\f"
PLACEHOLDER = re.compile(rf"({PADDING})?VistralContent(\d+)End({PADDING})?")


class TemplateError(Exception):
    """The model has no usable chat template, or its template refuses these messages."""


class Message(NamedTuple):
    role: Literal["system", "user", "assistant"]
    content: str


class Part(NamedTuple):
    """A stretch of the prompt: the template's own text, or some message's content."""

    text: str
    is_content: bool


class ChatTemplate:
    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        """`bos` and `eos` are the tokens' texts. Raises TemplateError."""
        if not source:
            raise TemplateError(
                "the model file has no tokenizer.chat_template; guessing a format gives silently "
                "worse answers, so write the template into the GGUF (gguf-set-metadata) or use "
                "another file"
            )
        # The options and helpers are those that Hugging Face's tokenizers give templates.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            bos_token=bos,
            eos_token=eos,
        )
        self.source = source
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the model's chat template is not valid Jinja: {error}") from None

    def render(self, messages: Sequence[Message]) -> list[Part]:
        """The prompt up to where the assistant's answer begins. Contents come out in NFC.

        Raises TemplateError when the template refuses the messages or leaves one out.
        """
        rendered = self._render_placeholders(messages)
        parts: list[Part] = []
        missing = set(range(len(messages)))
        end = 0
        for match in PLACEHOLDER.finditer(rendered):
            index = int(match[2])
            # NFD Cyrillic tokenizes differently from what the model was trained on.
            content = unicodedata.normalize("NFC", messages[index].content)
            content = content if match[1] else content.lstrip()
            content = content if match[3] else content.rstrip()
            parts += [Part(rendered[end : match.start()], False), Part(content, True)]
            missing.discard(index)
            end = match.end()
        if missing:
            index = min(missing)
            raise TemplateError(
                f"the model's chat template leaves out messages[{index}] "
                f"(role {messages[index].role}); leave such messages out or use another order"
            )
        parts.append(Part(rendered[end:], False))
        return [part for part in parts if part.text]

    def _render_placeholders(self, messages: Sequence[Message]) -> str:
        stand_ins = [
            {"role": message.role, "content": f"{PADDING}VistralContent{index}End{PADDING}"}
            for index, message in enumerate(messages)
        ]
        try:
            return self._template.render(messages=stand_ins, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, LookupError) as error:
            raise TemplateError(
                f"the model's chat template refuses these messages: {error}"
            ) from None


@dataclass(frozen=True)
class Format:
    """A published prompt format, as a conversation and what it becomes."""

    bos: str
    eos: str
    rendered: str  # of PROBE


# No template of these formats adds a system text of its own where there is one.
PROBE = [
    Message("system", "sss"),
    Message("user", "uuu"),
    Message("assistant", "aaa"),
    Message("user", "vvv"),
]
FORMATS = {
    # The base family's model card: no spaces after the tags.
    "v7-tekken": Format(
        "<s>",
        "</s>",
        "<s>[SYSTEM_PROMPT]sss[/SYSTEM_PROMPT][INST]uuu[/INST]aaa</s>[INST]vvv[/INST]",
    ),
    "chatml": Format(
        "",
        "<|im_end|>",
        "<|im_start|>system\nsss<|im_end|>\n<|im_start|>user\nuuu<|im_end|>\n"
        "<|im_start|>assistant\naaa<|im_end|>\n<|im_start|>user\nvvv<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
}


def check_format(source: str | None, name: str) -> None:
    """Whether a template makes prompts of this format. Raises TemplateError with both shown.

    What it renders is compared, not its text: the same format is written in many ways.
    """
    expected = FORMATS[name]
    template = ChatTemplate(source, bos=expected.bos, eos=expected.eos)
    found = "".join(part.text for part in template.render(PROBE))
    if found != expected.rendered:
        raise TemplateError(
            f"the model's chat template makes {found!r} of a conversation, the format {name} is "
            f"{expected.rendered!r}; take the file of another publisher, or set model.format to "
            "the format that the model was trained with"
        )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML characters, which belong in no prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
