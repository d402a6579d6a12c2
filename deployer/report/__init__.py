"""Stored results -> a page, a summary and a table. Pure: no file is read but our own templates.

html(result, samples)              one self-contained page, no script, no request
quality_html(record, …)            the same of a quality record
summary_markdown(result, samples)  the short form
table(result)                      columns and rows for a terminal
comparison_html, _csv, _markdown, _table, _lines    of a comparison of formats
comparison_pictures                what the worker `draw_figures` draws of it
"""

from __future__ import annotations

from deployer.report.comparison import comparison_lines, comparison_table
from deployer.report.comparison_documents import comparison_csv, comparison_markdown
from deployer.report.comparison_page import comparison_html
from deployer.report.comparison_pictures import comparison_pictures
from deployer.report.loadtest import PAGES, html, summary_markdown, table, verdict
from deployer.report.quality import quality_html

__all__ = [
    "PAGES", "comparison_csv", "comparison_html", "comparison_lines", "comparison_markdown",
    "comparison_pictures", "comparison_table", "html", "quality_html", "summary_markdown", "table",
    "verdict",
]  # fmt: skip
