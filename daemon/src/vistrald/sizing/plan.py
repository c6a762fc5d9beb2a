"""The verdict against a cap, and what else would fit; each remedy is computed beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vistrald.settings import EngineSection
from vistrald.sizing import catalogue, rates
from vistrald.sizing.account import KV_PADDING, Account, Use, account
from vistrald.sizing.host import Host
from vistrald.sizing.rates import Rates
from vistrald.sizing.shape import Model
from vistrald.sizing.source import Subject

CAP = 14 * 10**9  # bytes, the product's
LEAST_CONTEXT = 1024  # tokens: below, no document and answer fit
LEAST_BATCH = 128  # engine.batch_tokens' own limit
SERVER = "No single change is enough: a server with more memory is needed."
SYSTEM = 1_500_000_000  # bytes that the rest of a host needs


class DoesNotFitError(Exception):
    """The configured model needs more than the process may have; the message lists remedies."""


@dataclass(frozen=True)
class Variant:
    """The model in one quantization, as it would be served."""

    model: Model
    account: Account
    rates: Rates
    loss: float | None  # KL divergence to f16
    cap: int

    @property
    def fits(self) -> bool:
        return self.account.total <= self.cap

    @property
    def missing(self) -> int:
        """Bytes above the cap; below zero: room."""
        return self.account.total - self.cap


@dataclass(frozen=True)
class Remedy:
    """One change by which it fits."""

    kind: str  # quantization, load_mode, kv_type, context, users, batch, cap
    value: str | int
    variable: str  # of the inventory
    options: tuple[str, ...]  # of `vistrald plan`, which show it
    total: int  # bytes afterwards

    def __str__(self) -> str:
        return (
            f"{self.variable}: {self.value} ({self.total / 1e9:.2f} GB; vistrald plan "
            f"{' '.join(self.options)})"
        )


@dataclass(frozen=True)
class Plan:
    chosen: Variant
    use: Use
    host: Host
    variants: list[Variant]  # every quantization, the least loss first
    remedies: list[Remedy]  # none where it fits
    published: int | None  # bytes of the files as they are


def make(
    subject: Subject, use: Use, host: Host, cap: int = CAP, quantization: str | None = None
) -> Plan:
    """The file that the subject names, or the quantization, or the best one that fits."""

    def variant(model: Model, use: Use = use) -> Variant:
        return evaluate(model, use, host, cap)

    variants = [variant(subject.of(kind)) for kind in catalogue.read().quantizations]
    if quantization:
        chosen = variant(subject.of(quantization))
    elif subject.file:
        chosen = variant(subject.file)
    else:
        fitting = [each for each in variants if each.fits]
        chosen = fitting[0] if fitting else min(variants, key=lambda each: each.account.total)
    remedies = [] if chosen.fits else remedies_for(chosen.model, use, host, cap)
    return Plan(chosen, use, host, variants, remedies, subject.published)


def evaluate(model: Model, use: Use, host: Host, cap: int) -> Variant:
    expected = rates.expected(model, host)
    bytes_of = account(model, use, host.repacked_types, expected.largest_batch)
    return Variant(model, bytes_of, expected, catalogue.read().loss(model.quantization), cap)


def remedies_for(model: Model, use: Use, host: Host, cap: int) -> list[Remedy]:
    """The gentlest change of each kind that is enough by itself."""

    def fits(model: Model, use: Use) -> int:
        """Bytes if it fits, else 0."""
        found = evaluate(model, use, host, cap)
        return found.account.total if found.fits else 0

    found = [
        replace(remedy, total=total)
        for remedy, changed, used in _changes(model, use)
        if (total := fits(changed, used))
    ]
    best: dict[str, Remedy] = {}
    for remedy in found:
        best.setdefault(remedy.kind, remedy)
    needed = evaluate(model, use, host, cap).account.total
    if needed + SYSTEM <= host.memory:
        best["cap"] = Remedy(
            "cap", needed, "daemon_memory_max_bytes", ("--cap", str(needed)), needed
        )
    return list(best.values())


def check(model: Model, engine: EngineSection, host: Host) -> Account:
    """For the daemon's start: the account. Raises DoesNotFitError if the peak is above the limit.

    The reserve is not asked for: what is tight has been planned, and may run.
    """
    use, limit = Use.of(engine), host.available
    found = evaluate(model, use, host, limit)
    if found.account.peak > limit:
        raise DoesNotFitError(refusal(found, remedies_for(model, use, host, limit)))
    return found.account


def refusal(variant: Variant, remedies: list[Remedy]) -> str:
    """Why it does not fit, and what to do, a remedy on each line."""
    lines = [f"{needs(variant)}, {variant.cap / 1e9:.2f} GB may be used."]
    if remedies:
        lines += ["Each of these changes is enough:", *(f"  {remedy}" for remedy in remedies)]
    else:
        lines.append(SERVER)
    return "\n".join(lines)


def needs(variant: Variant) -> str:
    model, needed = variant.model, variant.account
    return (
        f"{model.name} ({model.quantization}) needs {needed.peak / 1e9:.2f} GB and a reserve of "
        f"{needed.reserve / 1e9:.2f} GB ({describe(needed)})"
    )


def describe(account: Account) -> str:
    """On one line, in GB; items of nothing are left out."""
    items = {name: size for name, size in vars(account).items() if size}
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in items.items())


def _changes(model: Model, use: Use) -> Iterator[tuple[Remedy, Model, Use]]:
    """Of each kind the gentlest change first."""

    def remedy(kind: str, value: str | int, variable: str, *options: str) -> Remedy:
        return Remedy(kind, value, variable, options, 0)

    for kind in catalogue.read().quantizations:
        smaller = catalogue.requantized(model, kind)
        if smaller.file_size < model.file_size:
            made = remedy("quantization", kind, "model_source", "--quantization", kind)
            yield made, smaller, use
    engine = "daemon_engine."
    if use.load_mode == "mmap" and use.repack:
        made = remedy("load_mode", "none", engine + "load_mode", "--load-mode", "none")
        yield made, model, replace(use, load_mode="none")
    if use.kv_type != "q8_0":
        made = remedy("kv_type", "q8_0", engine + "kv_type", "--kv-type", "q8_0")
        yield made, model, replace(use, kv_type="q8_0")
    for tokens in range(use.context_tokens - KV_PADDING, LEAST_CONTEXT - 1, -KV_PADDING):
        made = remedy("context", tokens, engine + "context_tokens", "--context", str(tokens))
        yield made, model, replace(use, context_tokens=tokens)
    for users in range(use.users - 1, 0, -1):
        made = remedy("users", users, engine + "parallel_sequences", "--users", str(users))
        yield made, model, replace(use, users=users)
    batch = use.batch_tokens // 2
    while batch >= LEAST_BATCH:
        made = remedy("batch", batch, engine + "batch_tokens", "--batch", str(batch))
        yield made, model, replace(use, batch_tokens=batch)
        batch //= 2


def as_dict(plan: Plan) -> dict[str, Any]:
    """For playbooks."""
    return {
        "ok": plan.chosen.fits,
        "cap": plan.chosen.cap,
        "use": vars(plan.use),
        "host": {
            "memory": plan.host.memory,
            "limit": plan.host.limit,
            "cores": plan.host.cores,
            "bandwidth": plan.host.bandwidth,
            "disk_free": plan.host.disk_free,
            "repacked_types": sorted(plan.host.repacked_types),
        },
        "published_bytes": plan.published,
        "chosen": variant_as_dict(plan.chosen),
        "variants": [variant_as_dict(each) for each in plan.variants],
        "kl_source": catalogue.read().kl_source,
        "remedies": [vars(each) for each in plan.remedies],
        "needs": needs(plan.chosen),
        "remedy": "; ".join(map(str, plan.remedies)) or SERVER,
    }


def variant_as_dict(variant: Variant) -> dict[str, Any]:
    found = variant.rates
    return {
        "name": variant.model.name,
        "quantization": variant.model.quantization,
        "exact": variant.model.exact,
        "file_bytes": variant.model.file_size,
        "bytes": vars(variant.account)
        | {name: getattr(variant.account, name) for name in ("peak", "reserve", "total")},
        "fits": variant.fits,
        "missing_bytes": variant.missing,
        "kl": variant.loss,
        "prefill": found.prefill,
        "decode": found.decode,
        "rates_between": [rates.LEAST, rates.MOST],
        "load_seconds": found.load_seconds,
        "answer_tokens_in_30_s": {
            str(prompt): found.answer_tokens(prompt) for prompt in rates.PROMPTS
        },
    }
