"""A template and what it shows -> one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deployer.report import words

TEMPLATES = Path(__file__).parent / "templates"
SHARED_STYLE = "page.css"


def render(template: str, *styles: str, **view: Any) -> str:
    """The page `template` in the shared style sheet and `styles`; all is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    css = "".join((TEMPLATES / name).read_text("utf-8") for name in (SHARED_STYLE, *styles))
    return environment.get_template(template).render(css=css, **view)
