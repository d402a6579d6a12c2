"""Chat templates, rendered by the worker's own code in a child that is watched."""

from __future__ import annotations

import os
import random
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import bundle_files
from fuzzing import Target, Wrong
from mutating import mutate_bytes

from deployer.toolchains.worker import WORKERS

TEMPLATES = (
    bundle_files.CHAT,
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
    "{% endif %}{% for m in messages %}{{ '<' ~ m['role'] ~ '>' + m['content'] }}{% endfor %}",
    "{% macro say(m) %}{{ m.content }}{% endmacro %}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ say(m) }}{{ ns.n }}{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}",
)
PIECES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch escaped') }}", "{{ self.__init__ }}",
    "{{ lipsum.__globals__ }}", "{{ messages | attr('__class__') }}", "{{ ('__cla' ~ 'ss__') }}",
    "{{ (messages | map(attribute='__class__') | list) }}", "{% include '/etc/passwd' %}",
    "{{ '%s' | format(messages) }}", "{{ '{0.__class__}'.format(messages) }}",
    "{{ 'a' * 10**9 }}", "{{ range(10**9) | list }}", "{{ 2 ** (2 ** 30) }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{{ strftime_now(messages) }}",
    "{% set x = messages.append(1) %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ joiner() }}", "{{ namespace(a=1).__dict__ }}", "{% break %}", "{{ '\ud800' }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ messages|groupby('x') }}",
    "{{ tools[0].__class__ }}", "{{ messages|random }}", "{{ ''|xmlattr }}", "{{ x.y.z }}",
    "{% generation %}{% endgeneration %}", "{{ 'x'|center(10**9) }}", "{{ 'x'|indent(10**9) }}",
    "{{ 'a b'|wordwrap(1, wrapstring='x' * 10**8) }}", "{{ messages|tojson(indent=10**8) }}",
)  # fmt: skip


def _template(rng: random.Random) -> bytes:
    text = rng.choice(TEMPLATES)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 1))):  # many pieces use up the two seconds
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at:]
    if rng.random() < 0.8:
        return mutate_bytes(rng, text.encode("utf-8", "surrogatepass"))
    return text.encode("utf-8", "surrogatepass")


ESCAPED = 99
REFUSED_BY_IT = 1
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.",
             "os.remove", "os.rename", "os.mkdir", "ctypes.", "shutil.")  # fmt: skip


def _check_template(data: bytes, folder: Path) -> bool:
    """Render in a forked child under the worker's own limits, watched by an audit hook."""
    text = data.decode("utf-8", "replace")
    module = _render_module()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.chdir(folder)
            signal.setitimer(signal.ITIMER_REAL, 0)
            module.confine()
            sys.addaudithook(_watch)
            module.check(text, True)
            code = 0
        except module.Refused:
            code = REFUSED_BY_IT
        except MemoryError:
            code = REFUSED_BY_IT
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == ESCAPED or list(folder.iterdir()):
        raise Wrong("the template left its sandbox")
    if code in (0, REFUSED_BY_IT) or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return code == 0
    raise Wrong(f"the renderer ended with {code}")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if writes or event.startswith(FORBIDDEN):
        os._exit(ESCAPED)


@cache
def _render_module() -> Any:
    sys.path.insert(0, str(WORKERS))
    import render_template

    return render_template


TEMPLATE = (
    Target(
        "template",
        "workers/render_template.py (chat template sandbox)",
        _template,
        _check_template,
        (),
    ),
)
