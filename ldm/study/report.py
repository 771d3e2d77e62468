"""A study's report from files alone: differences seed by seed, as HTML, JSON and Markdown. No torch."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from basicsr.utils.errors import FieldError, did_you_mean
from basicsr.utils.files import write_whole
from ldm.evaluation.report import charts
from ldm.evaluation.report.charts import Series, in_words
from ldm.evaluation.report.statistics import CONFIDENCE, Interval, student_mean
from ldm.study.plan import CONFIRM, VALIDATION, Question, Study
from ldm.study.results import METRICS, STOPS, RunResult, metrics_of, read_json, read_results


@dataclass(frozen=True)
class Difference:
    """One metric's answer to a question at one stop."""

    metric: str
    interval: Interval  # of first minus second, over seeds that both have
    better: bool | None  # whether the first is; None where the interval holds 0, or nothing is better or worse

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.interval.pictures < 2:
            return "one seed" if self.interval.pictures else "no pair yet"
        if METRICS[self.metric].higher_is_better is None:
            return "differs" if self.interval.low > 0 or self.interval.high < 0 else "not told apart"
        return {True: "better", False: "worse", None: "not told apart"}[self.better]


@dataclass(frozen=True)
class Answer:
    """A question's differences at one stop on one set of pictures."""

    question: Question
    part: str
    stop: str
    steps: tuple[int, int]  # of the first and the second arm
    differences: tuple[Difference, ...]


def write_report(study: Study, out: Path, *, confirm: Sequence[str] | None = None) -> Path:
    """Write report.html, report.json and report.md into `out`; returns the first.

    confirm: the arms to judge on the pictures that are looked at once; None for those chosen before, if any.

    Raises:
        FieldError: no such arm, or others were chosen before.
    """
    chosen = _confirmed(study, out, confirm)
    results = read_results(out, VALIDATION, study)
    answers = _answers(study, study.questions, VALIDATION, results)
    if chosen:
        asked = [question for question in study.questions if question.first in chosen]
        answers += _answers(study, asked, CONFIRM, read_results(out, CONFIRM, study))
    content = _content(study, out, results, answers)
    write_whole(out / "report.json", json.dumps(content, indent=1))
    write_whole(out / "report.md", _markdown(study, content, answers))
    write_whole(out / "report.html", _html(study, content, results, answers))
    return out / "report.html"


def difference(metric: str, first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Of a metric, given by seed, over the seeds that both have."""
    interval = student_mean([value - second[seed] for seed, value in first.items() if seed in second])
    higher = METRICS[metric].higher_is_better
    outside = interval.pictures > 1 and (interval.low > 0 or interval.high < 0)
    return Difference(metric, interval, (interval.mean > 0) == higher if outside and higher is not None else None)


def by_seed(results: Sequence[RunResult], arm: str, stop: str, metric: str) -> dict[int, float]:
    """An arm's values."""
    return {each.seed: each.stops[stop].means[metric] for each in results if each.arm == arm and stop in each.stops}


def _answers(study: Study, questions: Sequence[Question], part: str, results: Sequence[RunResult]) -> list[Answer]:
    stops = [stop for stop in STOPS if any(stop in each.stops for each in results)]
    return [
        Answer(
            question,
            part,
            stop,
            (_steps(results, question.first, stop), _steps(results, question.second, stop)),
            tuple(
                difference(
                    metric,
                    by_seed(results, question.first, stop, metric),
                    by_seed(results, question.second, stop, metric),
                )
                for metric in metrics_of(study)
            ),
        )
        for question in questions
        for stop in stops
    ]


def _steps(results: Sequence[RunResult], arm: str, stop: str) -> int:
    return next((each.stops[stop].steps for each in results if each.arm == arm and stop in each.stops), 0)


def _confirmed(study: Study, out: Path, asked: Sequence[str] | None) -> list[str]:
    """The arms that the pictures looked at once decide about."""
    file = out / "confirmed.json"
    before = (read_json(file) or {}).get("arms")
    if asked is None:
        return before or []
    for name in asked:
        if name not in study.arms:
            raise FieldError("confirm", f"{name!r} is not an arm{did_you_mean(name, list(study.arms))}")
    if before is not None and sorted(before) != sorted(asked):
        raise FieldError("confirm", f"these pictures have been looked at already, for {', '.join(before)} ({file})")
    if before is None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_whole(file, json.dumps({"arms": list(asked), "at": now}))
    return list(asked)


def _content(study: Study, out: Path, results: Sequence[RunResult], answers: Sequence[Answer]) -> dict[str, Any]:
    """All figures, as plain values."""
    stops = [stop for stop in STOPS if any(stop in each.stops for each in results)]
    seconds, metrics = read_json(out / "timing.json") or {}, metrics_of(study)
    arms = [
        {
            "arm": name,
            "stop": stop,
            "steps": _steps(results, name, stop),
            "seconds_per_step": seconds.get(name),
            "seeds": len(by_seed(results, name, stop, next(iter(metrics)))),
            "means": {metric: student_mean([*by_seed(results, name, stop, metric).values()]) for metric in metrics},
        }
        for stop in stops
        for name in study.arms
    ]
    found = [
        {
            **asdict(answer.question),
            "pictures": answer.part,
            "stop": answer.stop,
            "steps": answer.steps,
            "differences": {
                each.metric: {**each.interval._asdict(), "verdict": each.verdict} for each in answer.differences
            },
        }
        for answer in answers
    ]
    for answer in found:
        for figures in answer["differences"].values():
            figures["seeds"] = figures.pop("pictures")
    missing = len(study.runs) - len(results)
    return {
        "title": study.title,
        "notes": study.notes,
        "runs": len(results),
        "missing": missing,
        "sampling": f"{study.sampling_steps} {study.sampler.upper()} step{'' if study.sampling_steps == 1 else 's'}",
        "machines": sorted({each.machine for each in results}),
        "told_apart": _told_apart(answers),
        "arms": arms,
        "answers": found,
    }


def _told_apart(answers: Sequence[Answer]) -> str:
    """How many intervals leave 0 out, beside how many would by chance."""
    all_of_them = [each for answer in answers for each in answer.differences if each.interval.pictures > 1]
    outside = sum(each.interval.low > 0 or each.interval.high < 0 for each in all_of_them)
    chance = len(all_of_them) * (100 - CONFIDENCE) / 100
    return f"{outside} of {len(all_of_them)} intervals leave 0 out, where {chance:.1f} would by chance alone"


def _markdown(study: Study, content: Mapping[str, Any], answers: Sequence[Answer]) -> str:
    lines, metrics = [f"# {study.title}", "", *_facts(study, content)], metrics_of(study)
    labels = [metric.label for metric in metrics.values()]
    for stop in dict.fromkeys(row["stop"] for row in content["arms"]):
        lines += ["", f"## Arms, {STOPS[stop]}", "", _row("arm", "seeds", "steps", "s/step", *labels)]
        lines += [_row(*["---"] * (4 + len(metrics)))]
        for row in (row for row in content["arms"] if row["stop"] == stop and row["seeds"]):
            cells = [_plus_minus(row["means"][metric], metrics[metric].decimals, "") for metric in metrics]
            seconds = "" if row["seconds_per_step"] is None else f"{row['seconds_per_step']:.2f}"
            lines += [_row(row["arm"], row["seeds"], row["steps"], seconds, *cells)]
    for part in dict.fromkeys(answer.part for answer in answers):
        lines += ["", f"## Differences on the {part} pictures", "", _row("question", "", *labels)]
        lines += [_row(*["---"] * (2 + len(metrics)))]
        for answer in (answer for answer in answers if answer.part == part):
            cells = [
                _plus_minus(e.interval, metrics[e.metric].decimals, "+", mark=e.better) for e in answer.differences
            ]
            what = f"{answer.question.first} − {answer.question.second}, {STOPS[answer.stop]}"
            lines += [_row(answer.question.ask, what, *cells)]
    return "\n".join(lines) + "\n"


def _facts(study: Study, content: Mapping[str, Any]) -> list[str]:
    missing = f", {content['missing']} of the study's still missing" if content["missing"] else ""
    lines = [
        f"{content['runs']} runs{missing}; results are sampled with {content['sampling']}. Mean ± half of the "
        f"{CONFIDENCE} % interval (Student's t over seeds; differences seed by seed); ✓ better, ✗ worse.",
        f"{content['told_apart']}.",
    ]
    return [*lines, *([study.notes] if study.notes else [])]


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _plus_minus(interval: Interval, decimals: int, sign: str, *, mark: bool | None = None) -> str:
    if not interval.pictures:
        return "–"
    words = f"{interval.mean:{sign}.{decimals}f}".replace("-", "−")
    if interval.pictures > 1:
        words += f" ± {interval.high - interval.mean:.{decimals}f}"
    return words + {True: " ✓", False: " ✗", None: ""}[mark]


def page_environment() -> Environment:
    """Where the templates of this room's pages are, and those that evaluation's reports share with them."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("ldm.study"), PackageLoader("ldm.evaluation.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys stay in their order
    return environment


def _html(study: Study, content: Mapping[str, Any], results: Sequence[RunResult], answers: Sequence[Answer]) -> str:
    tables = [
        (answer, [_shown(each) for each in answer.differences if each.interval.pictures], STOPS[answer.stop])
        for answer in answers
    ]
    return (
        page_environment()
        .get_template("study.html")
        .render(
            study=study,
            facts=_facts(study, content),
            parts={part: [each for each in tables if each[0].part == part] for part in (VALIDATION, CONFIRM)},
            metrics=metrics_of(study),
            arms={
                STOPS[stop]: [row for row in content["arms"] if row["stop"] == stop and row["seeds"]]
                for stop in dict.fromkeys(row["stop"] for row in content["arms"])
            },
            in_words=in_words,
            losses=_losses(study, results),
            colours={name: charts.colour(index) for index, name in enumerate(study.arms)},
        )
    )


def _shown(each: Difference) -> tuple[str, str, charts.Bar, str]:
    """Label, interval in words and as a bar, verdict."""
    info, interval = METRICS[each.metric], each.interval
    bar = charts.interval_bar(interval, max(abs(interval.low), abs(interval.high)), better=each.better)
    return info.label, in_words(interval, info.decimals, "+"), bar, each.verdict


def _losses(study: Study, results: Sequence[RunResult]) -> charts.Plot | None:
    """The main loss of every arm over its steps, with the interval over seeds: has the training come to rest?"""
    series = []
    for index, name in enumerate(study.arms):
        runs = [each.losses for each in results if each.arm == name and each.losses]
        if runs:
            points = [
                (float(points[0][0]), student_mean([value for _, value in points]))
                for points in zip(*runs, strict=False)
            ]
            series.append(Series(name, charts.colour(index), tuple(points)))
    return charts.curves(series, "step", 3) if series else None
