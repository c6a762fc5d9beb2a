"""Messages to token ids: control tokens come from the template alone, never from people's text."""

import itertools
import re
from collections.abc import Sequence
from typing import Protocol

from vistrald.engine.template import ChatTemplate, Message, Part, TemplateError

ZERO_WIDTH_NON_JOINER = "\u200c"
PROBES = (
    [Message("system", "s"), Message("user", "u")],
    [Message("user", "u")],
)


class Tokenizer(Protocol):
    """What of a vocabulary is needed here; engine.llama.Vocabulary is one."""

    bos: int
    adds_bos: bool
    control: frozenset[int]
    user_defined: frozenset[int]

    def text(self, token: int) -> str: ...
    def tokenize(self, text: str, *, special: bool) -> list[int]: ...


class PromptEncoder:
    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        # libllama recognises user-defined tokens in any text, even with special tokens off. Those
        # that the template is made of work as control tokens, so they are treated as such.
        structural = {
            token
            for token in tokenizer.user_defined
            if len(text := tokenizer.text(token)) > 1 and text.strip() and text in template.source
        }
        self._control = tokenizer.control | structural
        texts = {tokenizer.text(token) for token in self._control}
        longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._control_text = re.compile(f"({either})")  # the group makes split() keep them
        self._openers = self._find_openers()

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation; contents cannot become control tokens.

        Raises TemplateError.
        """
        ids: list[int] = []
        for part in self._template.render(messages):
            if part.is_content:
                ids += self._encode_content(part.text)
            else:
                ids += self._encode_trusted(part.text)
        return self._with_one_bos(ids)

    def encode_rendered(self, prompt: str) -> list[int]:
        """Token ids of a prompt in the model's own format, as render() makes it."""
        return self._with_one_bos(self._encode_trusted(prompt))

    def is_rendered(self, prompt: str) -> bool:
        """Whether the text begins as prompts in the model's own format do."""
        return prompt.startswith(self._openers)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as one string in the model's own format.

        Control-token text in contents is broken by a zero-width non-joiner, so that the string can
        be tokenized with special tokens on. Raises TemplateError.
        """
        parts = self._template.render(messages)
        prompt = "".join(
            self._neutralise(part.text) if part.is_content else part.text for part in parts
        )
        if self._control_ids(prompt) != self._control_ids_of(parts):
            raise TemplateError("the messages cannot be told from the template's own text")
        return prompt

    def _encode_content(self, text: str) -> list[int]:
        ids = self._tokenizer.tokenize(text, special=False)
        if self._control.isdisjoint(ids):
            return ids
        ids = self._tokenizer.tokenize(self._neutralise(text), special=False)
        if not self._control.isdisjoint(ids):
            raise TemplateError("the text contains a control token that cannot be made harmless")
        return ids

    def _encode_trusted(self, text: str) -> list[int]:
        """Control-token text becomes control tokens, everything between them plain tokens.

        Cut here rather than in libllama, so that what counts as control is decided in one place.
        """
        ids: list[int] = []
        for index, piece in enumerate(self._control_text.split(text)):
            ids += self._tokenizer.tokenize(piece, special=index % 2 == 1)
        return ids

    def _neutralise(self, text: str) -> str:
        while self._control_text.search(text):
            text = self._control_text.sub(
                lambda match: match[0][0] + ZERO_WIDTH_NON_JOINER + match[0][1:], text
            )
        return text

    def _control_ids(self, text: str) -> list[int]:
        return [token for token in self._encode_trusted(text) if token in self._control]

    def _control_ids_of(self, parts: Sequence[Part]) -> list[int]:
        own = [self._control_ids(part.text) for part in parts if not part.is_content]
        return [token for ids in own for token in ids]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """llama.cpp would add BOS before a template that already begins with it."""
        if not self._tokenizer.adds_bos:
            return ids
        bos = self._tokenizer.bos
        first = next((at for at, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[first:]]

    def _find_openers(self) -> tuple[str, ...]:
        """What stands before a system or user content, from its last control token on."""
        openers: set[str] = set()
        for messages in PROBES:
            try:
                parts = self._template.render(messages)
            except TemplateError:
                continue  # a template without system messages
            for before, part in itertools.pairwise(parts):
                if part.is_content:
                    controls = list(self._control_text.finditer(before.text))
                    openers.add(before.text[controls[-1].start() :] if controls else before.text)
        bos = self._tokenizer.text(self._tokenizer.bos)
        return tuple({*openers, *(bos + opener for opener in openers if bos)} - {""})
