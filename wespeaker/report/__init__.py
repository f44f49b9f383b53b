"""A page that compares runs: `write_report`."""

from wespeaker.report.lists import Compare
from wespeaker.report.page import write_report

__all__ = ["Compare", "write_report"]
