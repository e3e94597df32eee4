"""Reports: runs of `eco evaluate` side by side, as Markdown, HTML, CSV, JSON and pictures. Nothing is measured here."""

from evaluation.report.load import ReportError
from evaluation.report.write import DEFAULT_TITLE, write_report

__all__ = ["DEFAULT_TITLE", "ReportError", "write_report"]
