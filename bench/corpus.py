"""What is asked: a fixed system text, what retrieval found as the document, the question last."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"
SECOND_PART = "\n2."
# Of the texts, which are shortened, in a document: some 700 tokens, what retrieval gives at least.
FRAGMENTS = 2
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Corpus:
    system: str
    sections: list[str]
    questions: list[str]
    quote: str  # what asks for the document itself

    def messages(self, section: int, question: str, mark: str = "") -> Messages:
        """A conversation about a section and the one after it.

        A mark at its very beginning makes it begin like no other one.
        """
        document = "\n\n".join(
            self.sections[(section + each) % len(self.sections)] for each in range(FRAGMENTS)
        )
        return [
            {"role": "system", "content": f"{mark}{self.system}"},
            {"role": "user", "content": f"{document}\n\n{question}"},
        ]

    def quoting(self, section: int) -> Messages:
        """A conversation in which the first part of a section was quoted, and another's is to be.

        The example is what makes small models quote as large ones do when asked.
        """
        example, wanted = (self._first_part(each) for each in (section + 1, section))
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": f"{self.quote}\n\n{example}"},
            {"role": "assistant", "content": example},
            {"role": "user", "content": f"{self.quote}\n\n{wanted}"},
        ]

    def _first_part(self, section: int) -> str:
        text = self.sections[section % len(self.sections)]
        title, _, parts = text.partition("\n")
        return f"{title}\n{parts.partition(SECOND_PART)[0]}"

    def question(self, number: int) -> str:
        return self.questions[number % len(self.questions)]


def read(language: str) -> Corpus:
    """The texts of a language: the name of a file in texts/."""
    data = tomllib.loads((TEXTS / f"{language}.toml").read_text(encoding="utf-8"))
    return Corpus(
        system=data["system"].strip(),
        sections=[f"{each['title']}\n{each['text'].strip()}" for each in data["sections"]],
        questions=data["questions"],
        quote=data["quote"],
    )
