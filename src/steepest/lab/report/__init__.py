"""The report's door: the page, the verdict in words, and the recommendation."""

from steepest.lab.report.page import render, write_report
from steepest.lab.report.recommend import choose, recommendation, recommended_yaml, snippet
from steepest.lab.report.words import headline, verdict

__all__ = [
    "choose",
    "headline",
    "recommendation",
    "recommended_yaml",
    "render",
    "snippet",
    "verdict",
    "write_report",
]
