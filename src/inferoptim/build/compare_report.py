"""A comparison as rows, as Markdown for a pull request, and as JUnit XML for a CI."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from inferoptim.build.compare import Comparison
from inferoptim.records.schema import Interval
from inferoptim.units import NOT_MEASURED


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both sides."""

    name: str
    a: str
    b: str
    difference: str


def rows(result: Comparison) -> list[Row]:
    """Every figure, measured or not."""
    ratio = result.perplexity_ratio
    table = [
        Row(
            "perplexity",
            f"{result.perplexity_a:.3f}",
            f"{result.perplexity_b:.3f}",
            f"{ratio.value - 1:+.2%} ({ratio.low - 1:+.2%} … {ratio.high - 1:+.2%}); "
            f"detectable: {result.detectable_perplexity_increase:.2%}",
        ),
        Row("KL divergence, nats", "", "", _interval(result.kl_nats, ".4f")),
        Row("top-1 agreement", "", "", _interval(result.top1_agreement, ".2%")),
        Row("top-5 overlap", "", "", _interval(result.top5_overlap, ".2%")),
    ]
    if result.accuracy is not None:
        acc = result.accuracy
        difference = Interval.model_validate(acc["difference"])
        table.append(
            Row(
                f"accuracy, {acc['n']} questions",
                f"{acc['accuracy_a']:.1%}",
                f"{acc['accuracy_b']:.1%}",
                f"{_interval(difference, '+.1%')}; McNemar p = {acc['p_value']:.2g}; detectable loss: "
                f"{acc['detectable_loss']:.1%}",
            )
        )
    table.append(
        Row(
            "output tokens/s",
            _interval(result.output_tokens_per_s_a, ".1f"),
            _interval(result.output_tokens_per_s_b, ".1f"),
            NOT_MEASURED if result.speedup is None else f"× {_interval(result.speedup, '.2f')}",
        )
    )
    if result.cost_a is not None and result.cost_b is not None:
        unit = f"{result.currency} per million output tokens"
        table.append(
            Row(
                unit,
                f"{result.cost_a:.4g}",
                f"{result.cost_b:.4g}",
                f"{result.cost_b / result.cost_a - 1:+.1%}",
            )
        )
    return table


def markdown_table(result: Comparison) -> str:
    """For a pull request: the verdict first."""
    verdict = "passed" if result.passed else "**failed**"
    lines = [
        f"### Model comparison: {verdict}",
        "",
        f"A = `{result.a}` · B = `{result.b}` · {result.tokens} tokens of text",
        "",
        "| | A | B | B against A |",
        "|---|---|---|---|",
        *(f"| {r.name} | {r.a} | {r.b} | {r.difference} |" for r in rows(result)),
        "",
        *(f"- {'passed' if c.passed else '**failed**'}: {c.name}: {c.detail}" for c in result.checks),
        *(f"- {note}" for note in result.notes),
        "",
    ]
    return "\n".join(lines)


def junit_xml(result: Comparison) -> str:
    """One test case a check."""
    failures = sum(not check.passed for check in result.checks)
    suite = ElementTree.Element(
        "testsuite", name="inferoptim compare", tests=str(len(result.checks)), failures=str(failures)
    )
    for check in result.checks:
        case = ElementTree.SubElement(suite, "testcase", name=check.name, classname="inferoptim.compare")
        if check.passed:
            ElementTree.SubElement(case, "system-out").text = check.detail
        else:
            message = f"{check.name}: {check.detail}"
            ElementTree.SubElement(case, "failure", message=message).text = f"limit {check.limit:g}"
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _interval(interval: Interval | None, spec: str) -> str:
    if interval is None:
        return NOT_MEASURED
    return f"{interval.value:{spec}} ({interval.low:{spec}} … {interval.high:{spec}})"
