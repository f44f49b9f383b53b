"""What is known of a data folder after its validation: for people a table, for programs a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SHOWN = 3  # items of a finding in the table


@dataclass(frozen=True)
class Finding:
    """One kind of trouble and where it is."""

    level: Literal["error", "warning"]  # an error must be mended
    name: str
    unit: str  # what the items are: utterances, speakers, recordings
    text: str  # what is the matter with them, and what follows or what to do; in report.json and in the table
    items: Sequence[str]  # all of them; the name comes first in each


@dataclass(frozen=True)
class TrainingPart:
    """What is left of a data folder for training with a config."""

    num_utts: int
    num_spks: int
    num_classes: int  # speakers, times speeds where each speed is a speaker of its own
    hours: float
    shortest_sec: float  # shorter utterances are left out


@dataclass(frozen=True)
class Report:
    """Figures of a data folder and what is the matter with it; lengths are of the readable utterances."""

    data_dir: str
    num_utts: int
    num_spks: int
    hours: float
    duration_sec: dict[str, float]  # min, p01, median, p99, max
    utts_per_spk: dict[str, float]  # the same quantiles
    sample_rates: dict[int, int]  # Hz to utterances
    channels: dict[int, int]  # to utterances
    training: TrainingPart | None  # None without a config
    findings: list[Finding]  # only what was found

    @property
    def errors(self) -> list[Finding]:
        """What must be mended."""
        return [finding for finding in self.findings if finding.level == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return all figures and, for each finding, its count and the whole list."""
        findings = {
            f.name: {"level": f.level, "unit": f.unit, "text": f.text, "count": len(f.items), "items": list(f.items)}
            for f in self.findings
        }
        return {**asdict(self), "findings": findings}


def report_table(report: Report) -> str:
    """Lay out a report for reading: figures, then errors, then warnings, each with its first few items."""
    rows = {
        "utterances": f"{report.num_utts:,}",
        "speakers": f"{report.num_spks:,}",
        "per speaker": _quantiles(report.utts_per_spk, "g"),
        "hours": f"{report.hours:.2f}",
        "seconds": _quantiles(report.duration_sec, ".2f"),
        "sample rates": ", ".join(f"{rate} Hz {count:,}" for rate, count in report.sample_rates.items()),
        "channels": ", ".join(f"{number}: {count:,}" for number, count in report.channels.items()),
    }
    if (left := report.training) is not None:
        rows["for training"] = (
            f"{left.num_utts:,} utterances of {left.num_spks:,} speakers, {left.hours:.2f} hours; "
            f"{left.num_classes:,} classes"
        )
    lines = [report.data_dir, *(f"  {name:<14}{value or '-'}" for name, value in rows.items()), ""]
    if not report.findings:
        return "\n".join([*lines, "nothing to mend"])
    lines.append(f"{'level':<9}{'finding':<18}{'count':>8}{'share':>9}  what it is")
    for finding in sorted(report.findings, key=lambda finding: finding.level):  # "error" before "warning"
        count = len(finding.items)
        share = f"{count / report.num_utts:.2%}" if finding.unit == "utterances" else ""
        lines.append(f"{finding.level:<9}{finding.name:<18}{count:>8,}{share:>9}  {finding.text}")
        lines += [f"  {item}" for item in finding.items[:SHOWN]]
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN:,} more")
    return "\n".join(lines)


def _quantiles(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())
