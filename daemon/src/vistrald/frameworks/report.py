"""The report in Russian or English, as Markdown; and the summary as rows for a table."""

import tomllib
from importlib.resources import files
from typing import Any

from vistrald.frameworks import packages
from vistrald.frameworks.findings import Finding, Obstacle, Survey
from vistrald.frameworks.needs import CONTEXT, needs
from vistrald.frameworks.scaling import Range
from vistrald.frameworks.verdict import (
    ANSWER_SECONDS,
    LEAST_TOKENS,
    TOO_SLOW,
    Verdict,
    mlx_against_llama,
)
from vistrald.sizing import catalogue

TITLES = {each.key: each.title for each in packages.CANDIDATES}
LARGEST = 3  # packages that are named
SAID = 400  # characters quoted of what a failed step said


class Report:
    def __init__(self, survey: Survey, verdicts: list[Verdict], cap: int, language: str) -> None:
        self._survey = survey
        self._verdicts = verdicts
        self._cap = cap
        text = files("vistrald.frameworks").joinpath(f"texts/{language}.toml").read_text("utf-8")
        self._texts: dict[str, Any] = tomllib.loads(text)

    def markdown(self) -> str:
        texts = self._texts
        parts = [
            f"# {texts['title']}",
            texts["written"].format(date=self._survey.host.date),
            f"## {texts['host']['heading']}",
            self._host(),
            f"## {texts['result']['heading']}",
            self.recommendation(),
            _table(*self.summary()),
            texts["result"]["scaled_from"],
            f"## {texts['mlx']['heading']}",
            *self._mlx(),
            f"## {texts['memory']['heading']}",
            *self._memory(),
            f"## {texts['rates']['heading']}",
            *self._rates(),
            f"## {texts['evidence']['heading']}",
            *(part for each in self._survey.findings for part in self._evidence(each)),
            f"## {texts['method']['heading']}",
            texts["method"]["text"].strip(),
        ]
        return "\n\n".join(parts) + "\n"

    def recommendation(self) -> str:
        """One sentence, in Markdown."""
        result = self._texts["result"]
        best = next((each for each in self._verdicts if each.recommended), None)
        if best and best.fit and best.estimate:
            return str(
                result["recommended"].format(
                    title=TITLES[best.finding.framework],
                    format=best.fit.format.name,
                    total=self._gb(best.fit.total),
                    cap=self._gb(self._cap),
                    decode=self._number(best.estimate.decode.likely),
                    tokens=self._number(best.answer_tokens or 0, 0),
                    seconds=f"{ANSWER_SECONDS:.0f}",
                )
            )
        tried = [each for each in self._verdicts if each.answer_tokens is not None]
        if not tried:
            return str(result["nothing_ran"])
        nearest = min(tried, key=lambda each: (len(each.reasons), -(each.answer_tokens or 0)))
        return str(result["nothing"].format(title=TITLES[nearest.finding.framework]))

    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the table that answers which one and why."""
        texts = self._texts
        columns = [
            each.format(seconds=f"{ANSWER_SECONDS:.0f}") for each in texts["result"]["columns"]
        ]
        return columns, [self._summary_row(each) for each in self._verdicts]

    def _summary_row(self, each: Verdict) -> list[str]:
        texts = self._texts
        finding = each.finding
        installed = texts["yes"] if finding.install_seconds is not None else texts["no"]
        if finding.framework == packages.LLAMA.key:
            installed = texts["result"]["own"]
        fit = f"{each.fit.format.name}, {self._gb(each.fit.total)}" if each.fit else texts["none"]
        estimate = each.estimate
        return [
            TITLES[finding.framework],
            fit,
            installed,
            texts["yes"] if finding.answer else texts["no"],
            self._range(estimate.prefill) if estimate else texts["none"],
            self._range(estimate.decode) if estimate else texts["none"],
            texts["none"] if each.answer_tokens is None else self._number(each.answer_tokens, 0),
            self._verdict(each),
        ]

    def _verdict(self, each: Verdict) -> str:
        texts = self._texts["verdict"]
        if not each.reasons:
            return str(texts[each.kind])
        obstacle = each.finding.obstacle
        return "; ".join(
            texts[reason].format(
                cap=self._gb(each.smallest.cap),
                smallest=each.smallest.format.name,
                total=self._gb(each.smallest.total),
                least=LEAST_TOKENS,
                seconds=f"{ANSWER_SECONDS:.0f}",
                obstacle=self._texts["obstacle"][obstacle.kind] if obstacle else "",
            )
            for reason in each.reasons
        )

    def _host(self) -> str:
        host = self._survey.host
        fields = host.model_dump() | {
            "instruction_sets": ", ".join(host.instruction_sets),
            "memory": self._gb(host.memory),
            "nvidia": self._texts["yes" if host.nvidia else "no"],
        }
        return str(self._texts["host"]["line"].format(**fields))

    def _mlx(self) -> list[str]:
        texts = self._texts["mlx"]
        verdict = next((v for v in self._verdicts if v.finding.framework == "mlx"), None)
        if verdict is None:
            return [texts["not_tried"], texts["plain"]]
        if verdict.finding.obstacle or not verdict.estimate:
            return [self._obstacle(texts["fails"], verdict.finding.obstacle), texts["plain"]]
        rows = [
            [
                self._texts["rates"][each.model],
                each.variant,
                f"×{self._number(each.prefill, 0)}",
                f"×{self._number(each.decode, 0)}",
            ]
            for each in mlx_against_llama(self._survey)
        ]
        decode = verdict.estimate.decode
        token = texts["token"].format(
            seconds=self._number(1 / decode.likely),
            low=self._number(1 / decode.high),
            high=self._number(1 / decode.low),
        )
        if not rows:
            return [texts["runs_alone"], token, texts["plain"]]
        opening = texts["runs_slow" if TOO_SLOW in verdict.reasons else "runs"]
        return [opening, _table(texts["columns"], rows), token, texts["plain"]]

    def _memory(self) -> list[str]:
        texts = self._texts["memory"]
        line = texts["line"].format(
            parameters=self._number(catalogue.vistral().parameters / 1e9, 2),
            context=CONTEXT,
            kv=int(catalogue.vistral().kv_elements * 2) // 1024,
            cap=self._gb(self._cap),
        )
        rows = [
            [
                TITLES[each.framework],
                need.format.name,
                self._gb(need.weights),
                self._gb(need.kv),
                self._gb(need.beside),
                self._gb(need.total),
                self._texts["yes" if need.fits else "no"],
                need.format.source,
            ]
            for each in self._survey.findings
            for need in needs(each.framework, self._cap)
        ]
        return [line, _table(texts["columns"], rows), texts["formula"]]

    def _rates(self) -> list[str]:
        texts = self._texts["rates"]
        model = self._survey.model
        file_type = {"file_type": model.file_type}
        line = texts["line"].format(
            name=model.name,
            parameters=self._number(model.parameters / 1e6, 0),
            wide=self._number(model.wide_multiplied / 1e6, 0),
            **file_type,
        )
        rows = [
            [
                TITLES[finding.framework],
                texts[name],
                texts["file"].format(**file_type) if variant == "file" else variant,
                self._number(rates.load_seconds),
                self._number(rates.prefill, 2),
                self._number(rates.decode, 2),
                self._number(rates.cores),
                self._gb(trial.peak_bytes),
            ]
            for finding in self._survey.findings
            for name, trial in (("small", finding.small), ("wide", finding.wide))
            if trial
            for variant, rates in trial.variants.items()
        ]
        answers = [
            f"- {TITLES[each.framework]}: «{each.answer.strip()}»"
            for each in self._survey.findings
            if each.answer
        ]
        if not answers:
            return [line]
        heading = texts["answers"].format(prompt=self._survey.prompt)
        return [
            line,
            _table(texts["columns"], rows),
            heading,
            "\n".join(answers),
            self._agreement(),
        ]

    def _agreement(self) -> str:
        """Of the first answers of all frameworks, as far as the shortest goes."""
        firsts = [
            next((r.answer for r in each.small.variants.values() if r.answer), [])
            for each in self._survey.findings
            if each.small
        ]
        firsts = [each for each in firsts if each]
        length = min(map(len, firsts))
        same = all(each[:length] == firsts[0][:length] for each in firsts)
        return str(self._texts["rates"]["same" if same else "differ"].format(tokens=length))

    def _evidence(self, each: Finding) -> list[str]:
        texts = self._texts["evidence"]
        lines = [f"### {TITLES[each.framework]}"]
        candidate = next(c for c in packages.CANDIDATES if c.key == each.framework)
        if candidate.requirements:
            lines.append(texts["pins"].format(pins=", ".join(candidate.requirements)))
        else:
            lines.append(texts["own"])
        if each.download_bytes is not None:
            done = "download" if each.install_seconds is not None else "download_only"
            lines.append(
                texts[done].format(
                    bytes=self._number(each.download_bytes / 1e6, 0),
                    count=len(each.packages),
                    largest=", ".join(each.packages[:LARGEST]),
                    seconds=self._number(each.install_seconds or 0, 0),
                )
            )
        if each.small:
            megabytes = self._number(each.small.process_bytes / 1e6, 0)
            lines.append(texts["process"].format(bytes=megabytes))
        if each.framework == packages.VLLM.key and not self._survey.host.nvidia:
            lines.append(texts["nvidia"])
        if each.obstacle:
            advice = self._texts["obstacle_advice"][each.obstacle.kind]
            kind = self._texts["obstacle"][each.obstacle.kind]
            lines.append(f"{kind[0].upper()}{kind[1:]}. {advice}")
            lines.append(_quoted(each.obstacle))
        if each.wide_obstacle:
            lines.append(self._obstacle(texts["wide_obstacle"], each.wide_obstacle))
            lines.append(_quoted(each.wide_obstacle))
        return lines

    def _obstacle(self, template: str, obstacle: Obstacle | None) -> str:
        kind = self._texts["obstacle"][obstacle.kind] if obstacle else self._texts["none"]
        return template.format(obstacle=kind, detail=obstacle.detail if obstacle else "").strip()

    def _range(self, each: Range) -> str:
        low, likely, high = (self._number(x, 2) for x in (each.low, each.likely, each.high))
        return f"{likely} ({low}–{high})"

    def _gb(self, size: float) -> str:
        return self._number(size / 1e9)

    def _number(self, value: float, digits: int = 1) -> str:
        return f"{value:.{digits}f}".replace(".", self._texts["decimal"])


def _quoted(obstacle: Obstacle) -> str:
    return "\n".join(f"    {line}" for line in obstacle.detail[-SAID:].splitlines())


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
