"""Chat messages to the text that a model was trained on, by the template that its folder carries.

A template is a program that comes with a model. It runs in Jinja's sandbox: it reaches no file, no module and no
private attribute, and cannot change the messages. Nothing keeps it from taking time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from edgewise.errors import BundleError, InputError, need_extra

TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
CONFIG = "tokenizer_config.json"
_SPECIAL = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens",
)  # fmt: skip
"""What a template sees of the tokenizer, by these names."""
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "

Message = Mapping[str, Any]
"""{'role': 'user', 'content': 'a question'}, and what else the template reads."""


def render(
    folder: Path,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The messages as one text, equal to `tokenizer.apply_chat_template(messages, tokenize=False)` of transformers.

    The text holds its special tokens: tokenize it without adding others.

    folder: with tokenizer_config.json, and the template in it or in chat_template.jinja.
    messages: in order, each with a 'role'.
    add_generation_prompt: end with what opens the answer.
    continue_final_message: end within the last message, which the model is to go on with; not both.
    variables: more of what this template reads, such as tools (JSON schemas), documents, or enable_thinking.

    Raises InputError for a folder without a template, for messages that are none or that the template refuses;
    BundleError for a template or a config that is broken; MissingExtraError without Jinja2.
    """
    _check(messages)
    if continue_final_message and add_generation_prompt:
        raise InputError("continue_final_message goes on with the last message: set add_generation_prompt=False")
    chat = _marked(messages) if continue_final_message else list(messages)
    more = dict(variables or {})
    config = _read_json(folder / CONFIG)
    source = _choose(folder, _templates(folder, config), tools=more.get("tools") is not None)
    names = {
        "messages": chat, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt,
        **_special_tokens(folder, config), **more,
    }  # fmt: skip
    try:
        from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
    except ImportError as error:
        raise need_extra("chat", error) from error

    try:
        text: str = _compile(source).render(**names)
    except (TemplateSyntaxError, SecurityError) as error:
        wrong = "is broken" if isinstance(error, TemplateSyntaxError) else "does what no template may"
        raise BundleError(f"the chat template of {folder} {wrong}: {error}") from error
    except TemplateError as error:
        raise InputError(f"the chat template of {folder} does not take these messages: {error.message}") from error
    except Exception as error:  # whatever the template's own lines raise
        raise InputError(
            f"the chat template of {folder} fails on these messages, with {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return _cut(folder, text, messages[-1]["content"]) if continue_final_message else text


def _marked(messages: Sequence[Message]) -> list[Message]:
    """With a mark at the end of the last message, to find it again by."""
    content = messages[-1].get("content")
    if not isinstance(content, str):
        raise InputError(f"the last message has the content {_short(content)}; expected the text to go on with")
    return [*messages[:-1], {**messages[-1], "content": content + _MARK}]


def _cut(folder: Path, text: str, final: str) -> str:
    """The text up to the mark. A template that trims the message trimmed the mark's space, and what stands before."""
    at = text.rfind(_MARK.strip())
    if at < 0 or final.strip() not in text:
        raise InputError(f"the chat template of {folder} changes the last message: it cannot be continued")
    return text[:at] if text.startswith(_MARK, at) else text[:at].rstrip()


def _check(messages: object) -> None:
    """Raise InputError for what is no chat."""
    told = "expected a list of messages such as {'role': 'user', 'content': 'a question'}"
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise InputError(f"a chat is {_short(messages)}; {told}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {number} of a chat is {_short(message)}; {told}")


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# ---- what the folder says


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """By name; the one that is used unless tools are given is called 'default'."""
    files = {"default": folder / TEMPLATE, **{f.stem: f for f in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}}
    if found := {name: _read(file) for name, file in files.items() if file.is_file()}:
        return found
    told = config.get("chat_template")
    if isinstance(told, str):
        return {"default": told}
    try:
        return {str(one["name"]): str(one["template"]) for one in told or ()}
    except (TypeError, KeyError) as error:
        raise BundleError(f"{folder / CONFIG}: its chat_template is neither a template nor a list of them") from error


def _choose(folder: Path, templates: Mapping[str, str], *, tools: bool) -> str:
    if not templates:
        raise InputError(
            f"{folder} has no chat template ({TEMPLATE}, or chat_template in {CONFIG}), so it takes plain text: this "
            "model was not trained on chats, or its template was not exported with it"
        )
    for name in ("tool_use", "default") if tools else ("default",):
        if name in templates:
            return templates[name]
    raise InputError(f"{folder} has the chat templates {', '.join(templates)}, and none that is called default")


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> token, those that are set. As in transformers, a file of older days has the last word on a config of
    that time."""
    told = dict(config)
    if "added_tokens_decoder" not in config:
        told |= _read_json(folder / "special_tokens_map.json")
    extra = told.get("extra_special_tokens")
    names = (*_SPECIAL, *(extra if isinstance(extra, Mapping) else ()))
    return {name: _content(told[name]) for name in names if told.get(name)}


def _content(token: Any) -> Any:
    if isinstance(token, list):
        return [_content(one) for one in token]
    return token.get("content") if isinstance(token, Mapping) else token


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(_read(file))
    except ValueError as error:
        raise BundleError(f"{file} is no JSON: {error}; export the bundle again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{file} holds no JSON object: export the bundle again")
    return found


# ---- Jinja, as transformers sets it up


@lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """Compiling takes longer than rendering; raises TemplateSyntaxError."""
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}, which marks for a training what the model said; here its text is as any other."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own form

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A call block, as in transformers: what is set inside of it is not seen behind it.
            return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Callable[[], str]) -> str:
            return caller()

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what HTML would trip over."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
