"""From findings to a verdict on each framework, and to one recommendation."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from vistrald.frameworks.findings import Finding, Model, Survey, Trial
from vistrald.frameworks.needs import CAP, Need, best_fit, needs
from vistrald.frameworks.scaling import Estimate, estimate

# What the least useful answer is: one sentence in the time that an answer may take, to a question
# whose documents are computed already. What is below it even at the upper end of the estimate's
# range is too slow.
ANSWER_SECONDS = 30.0
QUESTION_TOKENS = 32
LEAST_TOKENS = 10

RECOMMENDED, SUITABLE = "recommended", "suitable"
TOO_LARGE, TOO_SLOW, OBSTACLE = "too_large", "too_slow", "obstacle"


@dataclass(frozen=True)
class Verdict:
    """`reasons` speak against it, `fit` is the largest format that fits, None if none does."""

    finding: Finding
    smallest: Need
    fit: Need | None
    variant: str | None  # whose rates are scaled
    estimate: Estimate | None
    answer_tokens: float | None  # in ANSWER_SECONDS
    reasons: tuple[str, ...]
    recommended: bool = False

    @property
    def kind(self) -> str:
        if self.reasons:
            return self.reasons[0]
        return RECOMMENDED if self.recommended else SUITABLE

    def as_dict(self) -> dict[str, Any]:
        return {
            "framework": self.finding.framework,
            "verdict": self.kind,
            "reasons": list(self.reasons),
            "fit": self.fit and {"format": self.fit.format.name, "bytes": self.fit.total},
            "variant": self.variant,
            "rates_24b": self.estimate and asdict(self.estimate),
            "answer_tokens": self.answer_tokens,
        }


@dataclass(frozen=True)
class Slower:
    """How many times slower an MLX variant is than llama.cpp with Q8_0, on the same weights."""

    model: str  # small, wide
    variant: str
    prefill: float
    decode: float


def verdicts(survey: Survey, cap: int = CAP) -> list[Verdict]:
    """In the survey's order. At most one is recommended: the fastest of those that suit."""
    found = [_verdict(each, survey.model, cap) for each in survey.findings]
    suited = [each for each in found if not each.reasons]
    best = max(suited, key=lambda each: each.answer_tokens or 0, default=None)
    return [replace(each, recommended=each is best) for each in found]


def mlx_against_llama(survey: Survey) -> list[Slower]:
    """Empty where one of the two did not run."""
    by_key = {each.framework: each for each in survey.findings}
    mlx, llama = by_key.get("mlx"), by_key.get("llama.cpp")
    if mlx is None or llama is None:
        return []
    found = []
    for model in ("small", "wide"):
        slow: Trial | None = getattr(mlx, model)
        fast: Trial | None = getattr(llama, model)
        if slow and fast:
            base = fast.variants["Q8_0"]
            found += [
                Slower(model, name, base.prefill / rates.prefill, base.decode / rates.decode)
                for name, rates in slow.variants.items()
                if name.startswith("8-bit")
            ]
    return found


def _verdict(finding: Finding, model: Model, cap: int) -> Verdict:
    needed = needs(finding.framework, cap)
    fit = best_fit(needed)
    variant, scaled = _estimate(finding, model, fit)
    tokens = scaled.answer_tokens(ANSWER_SECONDS, QUESTION_TOKENS) if scaled else None
    reasons = []
    if fit is None:
        reasons.append(TOO_LARGE)
    if scaled and scaled.most_answer_tokens(ANSWER_SECONDS, QUESTION_TOKENS) < LEAST_TOKENS:
        reasons.append(TOO_SLOW)
    if finding.obstacle:
        reasons.append(OBSTACLE)
    return Verdict(finding, needed[-1], fit, variant, scaled, tokens, tuple(reasons))


def _estimate(
    finding: Finding, model: Model, fit: Need | None
) -> tuple[str | None, Estimate | None]:
    """By the format that would be served where it was tried, else by the fastest that was."""
    if finding.small is None:
        return None, None
    trial = finding.wide or finding.small
    variant = _fastest(trial)
    if fit and fit.format.name in trial.variants:
        variant = fit.format.name
    small = finding.small.variants.get(variant) or finding.small.variants[_fastest(finding.small)]
    wide = model.measured_wide(finding.wide.variants[variant]) if finding.wide else None
    return variant, estimate(model.measured(small), wide)


def _fastest(trial: Trial) -> str:
    return max(trial.variants, key=lambda name: trial.variants[name].decode)
