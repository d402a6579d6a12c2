"""Render a chat template with a probe chat, and say whether engines may be given it.

Request: {template, must_render}. Response: {refused: str | null}, the end of a sentence about the
template. It is refused where it does not compile, reaches for the interpreter behind it
(`__class__`), loads other templates, asks for more than a chat needs, or, with `must_render`, where
it renders no plain chat at all. A template may refuse a chat by `raise_exception`.

Runs with deployer's own Python, which has jinja2. The process may use 2 s of processor time and
512 MiB of memory; a template that uses them up ends it, which is an answer too.
"""

import json
import re
import resource
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _protocol import run
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment, is_internal_attribute

CPU_SECONDS = 2
MEMORY = 512 << 20
MAX_OUTPUT = 1 << 20
MAX_REASON = 300
INTERPRETER = re.compile(
    r"__(class|mro|base|bases|subclasses|globals|builtins|init|import|dict|code|closure|self|func"
    r"|getattribute|getattr|reduce|reduce_ex|module|loader|spec|wrapped)__"
)
"""Names that lead from a value to the interpreter; a text may hold one to be put together."""
USER = {"role": "user", "content": "Name a fruit."}
ANSWER = {"role": "assistant", "content": "An apple."}
SYSTEM = {"role": "system", "content": "Answer in one word."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Name a fruit."}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "fruits",
        "description": "Fruits of a month.",
        "parameters": {"type": "object", "properties": {"month": {"type": "string"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call00001", "type": "function",
         "function": {"name": "fruits", "arguments": {"month": "May"}}},
    ],
}  # fmt: skip
RESULT = {"role": "tool", "name": "fruits", "tool_call_id": "call00001", "content": "cherries"}
PLAIN = ([USER], [SYSTEM, USER], [USER, ANSWER, USER], [PARTS])
"""A template must render one of these; many refuse a system message, or take content in parts."""
WITH_TOOLS = ([USER], [USER, CALL, RESULT])


class Refused(Exception):
    """Why a template must not be used, as the end of a sentence about it."""


class _Generation(Extension):
    """The block `{% generation %}`, which marks an answer for training and renders as it is."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, where the attempt alone to reach the interpreter is an error."""

    def unsafe_undefined(self, obj, attribute):
        if attribute.startswith("_") or is_internal_attribute(obj, attribute):
            raise SecurityError(f"reaches for {attribute}")
        return super().unsafe_undefined(obj, attribute)


def main(request):
    try:
        check(request["template"], request["must_render"])
    except Refused as refused:
        return {"refused": str(refused)[:MAX_REASON]}
    return {"refused": None}


def check(text, must_render):
    """Raise Refused unless the template is fit for use."""
    environment = _environment()
    try:
        _check_tree(environment.parse(text))
        template = environment.from_string(text)
    except TemplateSyntaxError as error:
        raise Refused(f"is no valid template: {error.message} (line {error.lineno})") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, TypeError) as error:
        raise Refused(f"cannot be compiled: {type(error).__name__}") from error
    told = [_render(template, chat) for chat in PLAIN]
    for chat in WITH_TOOLS:
        _render(template, chat, tools=[TOOL])
    if must_render and all(told):
        raise Refused(f"renders no plain chat: {told[0]}")


def _environment():
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message):
    raise TemplateError(message)


def _check_tree(tree):
    """Refuse what no chat template needs, in branches that the probe does not reach too."""
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise Refused(f"loads another template (line {node.lineno})")
    for node in tree.find_all(nodes.Getattr):
        if node.attr.startswith("__"):
            raise Refused(f"reaches for {node.attr} (line {node.lineno})")
    for node in tree.find_all(nodes.Const):
        found = INTERPRETER.search(node.value) if isinstance(node.value, str) else None
        if found:
            raise Refused(f"reaches for {found[0]} (line {node.lineno})")


def _render(template, messages, tools=None):
    """Why a chat could not be rendered, None where it was; Refused where none should be tried."""
    length = 0
    try:
        for piece in template.generate(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        ):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise Refused(f"renders a chat of two lines to over {MAX_OUTPUT} characters")
    except SecurityError as error:
        raise Refused(f"does what a template must not: {error}") from error
    except (OverflowError, MemoryError, RecursionError) as error:
        raise Refused(f"asks for more than a chat needs: {type(error).__name__}") from error
    except Refused:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def confine():
    """Bound time, memory and output of this process for good."""
    for what, soft, hard in (
        (resource.RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 1),
        (resource.RLIMIT_AS, MEMORY, MEMORY),
        (resource.RLIMIT_FSIZE, MAX_OUTPUT, MAX_OUTPUT),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


if __name__ == "__main__":
    confine()
    run(main)
