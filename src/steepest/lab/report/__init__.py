"""The report's door: the page, the verdict in words, and the recommendation."""

from steepest.lab.report.page import render, write_report
from steepest.lab.report.recommend import choose, recommendation, recommended_yaml, snippet
from steepest.lab.report.run_page import render_run, write_run_page
from steepest.lab.report.run_story import is_run, read_story
from steepest.lab.report.words import headline, verdict

__all__ = [
    "choose",
    "headline",
    "is_run",
    "read_story",
    "recommendation",
    "recommended_yaml",
    "render",
    "render_run",
    "snippet",
    "verdict",
    "write_report",
    "write_run_page",
]
