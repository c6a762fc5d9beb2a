"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from vistrald.sizing import catalogue, rates
from vistrald.sizing.plan import Plan, Variant
from vistrald.sizing.words import Language, say

ITEMS = ("weights", "repacked", "kv_cache", "compute", "output", "process", "peak", "reserve")


def tables(plan: Plan, language: Language) -> Iterator[RenderableType]:
    """The account, the verdict with remedies, the quantizations, the rates."""
    chosen = plan.chosen
    yield _account(plan, language)
    if chosen.fits:
        yield say(language, "fits", room=_gb(-chosen.missing))
    else:
        yield say(language, "fits not", missing=_gb(chosen.missing))
        yield _remedies(plan, language) if plan.remedies else say(language, "no remedy")
    yield say(language, "exact" if chosen.model.exact else "estimate")
    if plan.published:
        yield say(language, "published", size=_gb(plan.published))
    yield say(language, "disk", free=_gb(plan.host.disk_free))
    yield _variants(plan, language)
    yield say(language, "source of loss", source=catalogue.read().kl_source)
    yield _rates(plan, language)
    yield say(language, "between", least=rates.LEAST, most=rates.MOST)


def comparison(variants: list[Variant], language: Language) -> Iterator[RenderableType]:
    """One line for each."""
    columns = (
        "model", "quantization", "file", "needed", "room", "loss", "load", "prefill", "decode",
        "short",
    )  # fmt: skip
    table = _table(say(language, "comparison"), *(say(language, column) for column in columns))
    for each in variants:
        table.add_row(
            each.model.name,
            each.model.quantization,
            _gb(each.model.file_size),
            _gb(each.account.total),
            _signed(-each.missing),
            _loss(each),
            f"{each.rates.load_seconds:.0f}",
            f"{each.rates.prefill:.1f}",
            f"{each.rates.decode:.1f}",
            str(each.rates.answer_tokens(rates.PROMPTS[0])),
        )
    yield table
    yield say(language, "prompt", prompt=rates.PROMPTS[0])
    yield say(language, "old")
    yield say(language, "between", least=rates.LEAST, most=rates.MOST)


def _account(plan: Plan, language: Language) -> Table:
    chosen, use = plan.chosen, plan.use
    name = f"{chosen.model.name} {chosen.model.quantization}"
    title = say(
        language, "title",
        name=name, context=use.context_tokens, users=use.users, kv=use.kv_type,
    )  # fmt: skip
    table = _table(title, say(language, "item"), say(language, "bytes"))
    for item in ITEMS:
        table.add_row(say(language, item), _gb(getattr(chosen.account, item)))
    table.add_row(say(language, "total"), _gb(chosen.account.total), style="bold")
    table.add_row(say(language, "cap"), _gb(chosen.cap))
    return table


def _remedies(plan: Plan, language: Language) -> Table:
    table = _table(
        say(language, "remedies"), say(language, "change"), say(language, "needed"),
        say(language, "look"),
    )  # fmt: skip
    for remedy in plan.remedies:
        options = " ".join(remedy.options)
        change = f"{remedy.variable}: {remedy.value}"
        table.add_row(change, _gb(remedy.total), f"vistrald plan … {options}")
    return table


def _variants(plan: Plan, language: Language) -> Table:
    columns = ("quantization", "file", "needed", "room", "loss", "fitting")
    table = _table(say(language, "variants"), *(say(language, column) for column in columns))
    best = next((each for each in plan.variants if each.fits), None)
    for each in plan.variants:
        verdict = "best" if each is best else "yes" if each.fits else "no"
        table.add_row(
            each.model.quantization,
            _gb(each.model.file_size),
            _gb(each.account.total),
            _signed(-each.missing),
            _loss(each),
            say(language, verdict),
            style="bold" if each is best else None,
        )
    return table


def _rates(plan: Plan, language: Language) -> Table:
    host, found = plan.host, plan.chosen.rates
    bandwidth = f"{host.bandwidth / 1e9:.1f}" if host.bandwidth else "?"
    title = say(language, "rates", cores=host.cores, bandwidth=bandwidth)
    table = _table(title, say(language, "item"), "")
    table.add_row(say(language, "prefill"), f"{found.prefill:.1f}")
    table.add_row(say(language, "decode"), f"{found.decode:.1f}")
    table.add_row(say(language, "load"), f"{found.load_seconds:.0f}")
    for prompt in rates.PROMPTS:
        answer = say(language, "tokens", count=found.answer_tokens(prompt))
        table.add_row(say(language, "answer", prompt=prompt), answer)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _signed(size: int) -> str:
    return f"{size / 1e9:+.2f}"


def _loss(variant: Variant) -> str:
    return "" if variant.loss is None else f"{variant.loss:.4f}"
