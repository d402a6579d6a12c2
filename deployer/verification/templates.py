"""Chat templates come from strangers: each is rendered once, where it can do no harm.

The rendering is done by `workers/render_template.py` in a process of its own, with limits of
processor time and memory, as no bound can be told from a template's text.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from deployer import process
from deployer.errors import CommandError, Fault
from deployer.toolchains.worker import WORKERS
from deployer.verification.contents import Template

MAX_TEMPLATES = 16
WALL_SECONDS = 20.0
"""For a machine that is busy; the processor time is bounded by the worker itself, at 2 s."""
Render = Callable[[str, bool], str | None]
"""(template, whether it must render a plain chat) -> why it is refused, None for a good one."""


def check_templates(templates: Sequence[Template], render: Render) -> list[Fault]:
    """Faults of the templates; one that stands in several files is rendered once."""
    kinds = {(each.text, each.default) for each in templates}
    if len(kinds) > MAX_TEMPLATES:
        return [Fault("", f"holds {len(kinds)} chat templates; at most {MAX_TEMPLATES} are used")]
    verdicts = {kind: render(*kind) for kind in kinds}
    return [
        Fault(each.file, f"has the chat template {each.name}, which {why}")
        for each in templates
        if (why := verdicts[each.text, each.default])
    ]


def render_apart(template: str, must_render: bool) -> str | None:
    """Render a probe chat in a process of its own; gives why the template is refused, or None."""
    with tempfile.TemporaryDirectory(prefix="deployer-template-") as folder:
        request, response = Path(folder, "request.json"), Path(folder, "response.json")
        request.write_text(
            json.dumps({"template": template, "must_render": must_render}), encoding="utf-8"
        )
        script = WORKERS / "render_template.py"
        try:
            process.run(
                [sys.executable, "-I", str(script), str(request), str(response)],
                env=process.clean_environment(),
                cwd=Path(folder),
                log_path=Path(folder, "log"),
                timeout=WALL_SECONDS,
            )
            why = json.loads(response.read_text(encoding="utf-8"))["refused"]
        except CommandError:
            return "uses more time or memory than a chat needs"
        except (OSError, ValueError):
            return "broke the program that renders it"
    return None if why is None else str(why)
