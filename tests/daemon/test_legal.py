import pytest

from vistrald.engine.template import Message
from vistrald.legal.prompts import legal_messages
from vistrald.legal.saiga import parse_saiga_prompt

CONVERSATION = [
    Message("system", "Ты — Сайга."),
    Message("user", "Что такое\nкража?"),
    Message("assistant", "Хищение."),
    Message("user", "А <грабёж>?"),
]
TAGGED = (
    "<s><system>Ты — Сайга.</system><user>Что такое\nкража?</user>"
    "<bot>Хищение.</bot><user>А <грабёж>?</user><bot>"
)
TURNS = (
    "<s>system\nТы — Сайга.</s><s>user\nЧто такое\nкража?</s>"
    "<s>bot\nХищение.</s><s>user\nА <грабёж>?</s><s>bot\n"
)


@pytest.mark.parametrize(
    "prompt",
    [
        TAGGED,
        TAGGED.removeprefix("<s>"),
        TAGGED.removesuffix("<bot>"),
        TAGGED.replace("><", ">\n<"),
        TURNS,
        TURNS.removesuffix("\n"),
        TURNS.replace("</s><s>", "</s>\n<s>"),
    ],
)
def test_saiga_prompts_are_read_back(prompt: str) -> None:
    assert parse_saiga_prompt(prompt) == CONVERSATION


@pytest.mark.parametrize(
    "prompt",
    ["Что такое кража?", "", "<s>", "<bot>", "<user>без конца", "<user>a</user> ещё", TURNS + "x"],
)
def test_anything_else_is_not_saigas(prompt: str) -> None:
    assert parse_saiga_prompt(prompt) is None


def test_fixed_text_then_documents_then_history_the_question_last() -> None:
    history = [Message("user", "Первый"), Message("assistant", "Ответ")]
    system, *turns = legal_messages("Вопрос?", "Статья 158. Кража", history)
    assert system.role == "system"
    assert system.content.startswith("Ты — помощник юриста")
    assert system.content.endswith("Материалы:\nСтатья 158. Кража")
    assert turns == [*history, Message("user", "Вопрос?")]
    # Questions about the same documents share everything up to the history.
    assert legal_messages("Другой?", "Статья 158. Кража")[0] == system


def test_without_documents_there_is_no_heading() -> None:
    assert legal_messages("Вопрос?")[0] == legal_messages("Вопрос?", "  ")[0]
    assert "Материалы" not in legal_messages("Вопрос?")[0].content.rsplit("\n", 1)[-1]


def test_roles_alternate_whatever_the_history_is() -> None:
    history = [
        Message("assistant", "Здравствуйте!"),
        Message("user", "Один"),
        Message("user", "Два"),
    ]
    assert legal_messages("Три?", None, history)[1:] == [Message("user", "Один\n\nДва\n\nТри?")]


def test_a_dollar_in_documents_is_only_a_dollar() -> None:
    assert "$documents $5" in legal_messages("?", "$documents $5")[0].content
