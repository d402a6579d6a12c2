"""Chat templates as the worker judges them; those that never end are tried in a real process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_files import CHAT

WORKER = Path(__file__).parents[2] / "deployer" / "workers" / "render_template.py"
MISTRAL_LIKE = """
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}"""
QWEN_LIKE = """
{%- set ns = namespace(last=messages | length - 1) %}
{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{%- for message in messages[::-1] %}{% if loop.index0 > 3 %}{% break %}{% endif %}
{%- set ns.last = loop.index0 %}
{%- if message.content is string %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}
{%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}
{%- endfor %}{{ strftime_now('%d %b %Y') }}{{ '<|im_start|>' if add_generation_prompt }}"""
GOOD = {"plain": CHAT, "mistral": MISTRAL_LIKE, "qwen": QWEN_LIKE, "fixed": "Say something."}


@pytest.fixture(scope="module")
def worker() -> Any:
    """The script as a module; its limits are set only where it is run."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location(WORKER.stem, WORKER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def refused(worker: Any, text: str, must_render: bool = True) -> str | None:
    answer: str | None = worker.main({"template": text, "must_render": must_render})["refused"]
    return answer


@pytest.mark.parametrize("name", GOOD)
def test_usual_templates_are_good(worker: Any, name: str) -> None:
    assert refused(worker, GOOD[name]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ messages.__class__ }}", "reaches for __class__"),
        ("{{ ''['__class__'] }}", "reaches for __class__"),
        ("{{ '' | attr('__class__') }}", "reaches for __class__"),
        ("{{ '' | attr('__cl' ~ 'ass__') }}", "reaches for __class__"),
        ("{{ ''['__cl' ~ 'ass__'] }}", "reaches for __class__"),
        ("{{ messages | map(attribute='__class__') | list }}", "reaches for __class__"),
        ("{{ '{0.__class__}'.format(messages) }}", "reaches for __class__"),
        ("{{ ('{0.__cla' ~ 'ss__}').format(messages) }}", "reaches for __class__"),
        ("{% if messages[0].never %}{{ x.__globals__ }}{% endif %}", "reaches for __globals__"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "reaches for __globals__"),
        ("{{ messages._private }}", None),  # a list has no such attribute: nothing is reached
        ("{{ messages.append({}) }}", "does what a template must not"),
        ("{% include 'etc/passwd' %}", "loads another template"),
        ("{% import 'x' as y %}", "loads another template"),
        ("{% extends 'x' %}", "loads another template"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", "asks for more than a chat needs"),
        ("{{ 'x' * 2000000 }}", "to over 1048576 characters"),
        ("{% for a in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "to over 1048576 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "asks for more than a chat needs"),
        ("{% for %}", "is no valid template"),
        ("{{ messages | no_such_filter }}", "is no valid template"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "cannot be compiled|is no valid template"),
        ("{{ messages[0].content.nothing.more }}", "renders no plain chat: UndefinedError"),
        ("{{ raise_exception('never') }}", "renders no plain chat: TemplateError: never"),
        ("{{ 1 // 0 }}", "renders no plain chat: ZeroDivisionError"),
    ],
)
def test_templates_that_are_refused(worker: Any, text: str, words: str | None) -> None:
    why = refused(worker, text)
    if words is None:
        assert why is None
        return
    assert why is not None
    assert any(each in why for each in words.split("|")), why


def test_only_the_default_template_must_render_a_plain_chat(worker: Any) -> None:
    text = "{% for each in documents %}{{ each.title }}{% endfor %}{{ messages[9].content.x.y }}"
    assert refused(worker, text) is not None
    assert refused(worker, text, must_render=False) is None
    assert refused(worker, "{{ x.__class__ }}", must_render=False) is not None


def test_a_reason_is_short(worker: Any) -> None:
    why = refused(worker, "{{ raise_exception('x' * 100000) }}")
    assert why is not None
    assert len(why) <= 300
