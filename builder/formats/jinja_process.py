"""Run as a program: a chat template rendered over several conversations, within limits of time and memory.

    python -P jinja_process.py < {"source", "tokens", "date", "conversations": [{"messages", "answer"}, ...]}

writes {"parts", "answers": [{"text"} or {"error"}, ...]}. ``parts``: the template wants a content to be a list of
{"type": "text", "text"}; where it writes nothing of a content that is a string, it gets such lists.

Jinja's setting is transformers' (https://huggingface.co/docs/transformers/chat_templating): a sandbox, blocks trimmed,
``raise_exception``, ``tojson``, ``{% generation %}`` around an answer; but ``strftime_now`` always gives the same date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from typing import Any

CPU_SECONDS = 2.0  # a template of 20 kB compiles and renders ten conversations in 0.1 s
MEMORY_BYTES = 512 << 20  # of addresses; Python with Jinja takes 60 MB
TEXT_CHARACTERS = 1 << 20
DATE_NAME = "strftime_now"
_PROBE = "xqAsked"


def limit() -> None:
    """Beyond them the process is killed, or a MemoryError is raised. macOS refuses the limit of addresses."""
    import resource
    import signal

    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process, whatever C code is in


def compile_template(source: str) -> Any:
    """A jinja2.Template."""
    import jinja2
    from jinja2 import nodes, utils
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # type: ignore[misc]
        """{% generation %} marks an answer for training; a prompt has it as it is, in a scope of its own."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Namespace(utils.Namespace):  # type: ignore[misc]
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.TemplateError(f"a namespace holds no {name}")
            super().__setitem__(name, value)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(f"the template refuses: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=refuse, namespace=Namespace)
    return environment.from_string(source)


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def render(template: Any, request: dict[str, Any], conversation: dict[str, Any]) -> dict[str, Any]:
    import jinja2

    day = date.fromisoformat(request["date"])
    values = {"tools": None, "documents": None, **request["tokens"], DATE_NAME: day.strftime}
    values |= {"messages": conversation["messages"], "add_generation_prompt": conversation["answer"]}
    try:
        text = template.render(values)
    except jinja2.TemplateError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"the template takes more than {MEMORY_BYTES >> 20} MB"}
    except Exception as error:  # whatever a template's own code raises: 1/0, a missing key
        return {"error": f"the template fails: {type(error).__name__}: {error}"}
    if len(text) > TEXT_CHARACTERS:
        return {"error": f"the template writes more than {TEXT_CHARACTERS:,} characters"}
    return {"text": text}


def in_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each content as a list of one part."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def wants_parts(template: Any, request: dict[str, Any]) -> bool:
    asked = [{"role": "user", "content": _PROBE}]
    texts = [render(template, request, {"messages": form, "answer": True}) for form in (asked, in_parts(asked))]
    return [_PROBE in text.get("text", "") for text in texts] == [False, True]


def answer_all(request: dict[str, Any]) -> dict[str, Any]:
    import jinja2

    try:
        template = compile_template(request["source"])
    except (jinja2.TemplateError, RecursionError, MemoryError, ValueError) as error:
        failure = {"error": f"the template cannot be read: {error or type(error).__name__}"}
        return {"parts": False, "answers": [failure] * len(request["conversations"])}
    parts = wants_parts(template, request)
    answers = []
    for conversation in request["conversations"]:
        messages = conversation["messages"]
        given = {**conversation, "messages": in_parts(messages) if parts else messages}
        answers.append(render(template, request, given))
    return {"parts": parts, "answers": answers}


def main() -> None:
    request = json.load(sys.stdin)
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401  (what is loaded counts against the limit of memory, not of time)

    limit()
    json.dump(answer_all(request), sys.stdout)


if __name__ == "__main__":
    main()
