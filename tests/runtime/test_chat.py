"""Chat templates: the same text as transformers', and a template that means harm reaches nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgewise.assets import asset_path
from edgewise.errors import BundleError, InputError, MissingExtraError
from edgewise.runtime.chat import render

CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""  # noqa: E501
LLAMA_2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501
LLAMA_3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""  # noqa: E501
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""  # noqa: E501
ZEPHYR = """{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"""  # noqa: E501
QWEN_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson(indent=2, sort_keys=True) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
MARKED = """
    {%- set ns = namespace(seen=0) %}
    {% for message in messages %}
        {% if message.role == 'tool' %}
            {% continue %}
        {% endif %}
        {% set ns.seen = ns.seen + 1 %}
        {% if ns.seen > 4 %}{% break %}{% endif %}
        <|{{ message.role }}|>
        {% if message.role == 'assistant' %}
            {% set inner = 'a' %}
            {% generation %}{% set inner = 'b' %}{{ message.content }}{{ eos_token }}{% endgeneration %}{{ inner }}
        {% else %}
{{ message.content | upper }} {{ message | tojson }}
        {% endif %}
    {% endfor %}
    {# a comment #}
Today: {{ strftime_now('%Y-%m') }}{{ sep_token }}{{ pad_token }}{{ additional_special_tokens }}
"""
TEMPLATES = {
    "ChatML": CHATML,
    "Llama 2": LLAMA_2,
    "Llama 3": LLAMA_3,
    "Gemma": GEMMA,
    "Zephyr": ZEPHYR,
    "Qwen": QWEN_TOOLS,
    "generation tag": MARKED,
}
CHAT = [
    {"role": "user", "content": "  What is 3 < 5 & 'so' \"on\"? "},
    {"role": "assistant", "content": "Größer – 大きい 😀 \\n"},
    {"role": "user", "content": "<|im_end|> </s>\n\n{{ 7 * 7 }} {% raw %}"},
]
SYSTEM = [{"role": "system", "content": "You answer in rhymes."}, *CHAT]
TOOLS = [{"type": "function", "function": {"name": "wetter", "parameters": {"type": "object", "ort": "Zürich"}}}]
CALLS = [
    CHAT[0],
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "w", "arguments": {"b": "ü", "a": 1}}}],
    },
    {"role": "tool", "content": "3"},
    CHAT[2],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tokenizer of SmolLM2-135M-Instruct, to be given other templates."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(asset_path("smollm2") / name, tmp_path / name)
    return tmp_path


def set_template(folder: Path, template: Any) -> None:
    """Put it into the config, or take it out with None."""
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), "chat_template": template}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def peer(source: Any, messages: Any, prompt: bool = True, **more: Any) -> str:
    """source: a folder, or the tokenizer read from it."""
    tokenizer = AutoTokenizer.from_pretrained(source) if isinstance(source, Path) else source
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **more)
    return text


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return AutoTokenizer.from_pretrained(asset_path("smollm2"))


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", [CHAT[:1], CHAT, SYSTEM, CALLS])
def test_the_template_of_smollm2(smollm2: Any, chat: Any, prompt: bool) -> None:
    folder = asset_path("smollm2")
    assert render(folder, chat, prompt) == peer(smollm2, chat, prompt)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("saved", [True, False])
def test_templates_of_the_world(folder: Path, name: str, saved: bool) -> None:
    set_template(folder, TEMPLATES[name])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if saved:  # as transformers writes it now, in a file of its own
        tokenizer.add_special_tokens({"sep_token": "<sep>", "additional_special_tokens": ["<a>", "<b>"]})
        folder /= "saved"
        tokenizer.save_pretrained(folder)
        assert (folder / "chat_template.jinja").is_file()
    answered = 0
    for chat in (CHAT[:1], CHAT, SYSTEM, SYSTEM * 2, CALLS):
        for prompt in (True, False):
            for more in ({}, {"tools": TOOLS}, {"enable_thinking": False}):
                try:
                    expected = peer(tokenizer, chat, prompt, **more)
                except Exception as refused:  # what Jinja raises
                    with pytest.raises(InputError, match="does not take these messages") as caught:
                        render(folder, chat, prompt, variables=more)
                    assert str(refused) in str(caught.value)
                    continue
                assert render(folder, chat, prompt, variables=more) == expected
                answered += 1
    assert answered >= 12


@given(
    chat=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_words_in_a_chat(chat: Any, smollm2: Any) -> None:
    assert render(asset_path("smollm2"), chat) == smollm2.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("name", ["ChatML", "Llama 3", "Zephyr", "Gemma"])
def test_the_last_message_is_gone_on_with(folder: Path, name: str) -> None:
    set_template(folder, TEMPLATES[name])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for final in ("Sure, it is", "Sure: ", "  a\n", ""):
        chat = [CHAT[0], {"role": "assistant", "content": final}]
        expected = peer(tokenizer, chat, False, continue_final_message=True)
        assert render(folder, chat, False, continue_final_message=True) == expected
        assert chat[1]["content"] == final
    with pytest.raises(InputError, match="set add_generation_prompt=False"):
        render(folder, CHAT, continue_final_message=True)
    with pytest.raises(InputError, match="the text to go on with"):
        render(folder, [{"role": "user"}], False, continue_final_message=True)
    set_template(folder, "nothing of it")
    with pytest.raises(InputError, match="cannot be continued"):
        render(folder, CHAT, False, continue_final_message=True)


def test_several_templates(folder: Path) -> None:
    both = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools{{ tools | length }}"}]
    set_template(folder, both)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder / "saved")
    for place in (folder, folder / "saved"):
        assert (render(place, CHAT), peer(place, CHAT)) == ("plain", "plain")
        assert (render(place, CHAT, variables={"tools": TOOLS}), peer(place, CHAT, tools=TOOLS)) == ("tools1", "tools1")
    (folder / "saved" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="tool_use, and none that is called default"):
        render(folder / "saved", CHAT)


def test_the_file_goes_before_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert render(folder, CHAT) == peer(folder, CHAT) == "file"


def test_special_tokens_of_older_files(folder: Path) -> None:
    set_template(folder, "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ cls_token }}|{{ image_token }}")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<|im_end|>", "lstrip": False}, "cls_token": "<repo_name>"})
    )
    assert render(folder, CHAT) == peer(folder, CHAT) == "<|im_end|>|<|im_end|>|<|endoftext|>|<repo_name>|"


def test_the_exporter_keeps_the_template(folder: Path, tmp_path: Path) -> None:
    from edgewise.exporter.preprocessing import write_tokenizer

    write_tokenizer(folder, tmp_path / "one", "text-generation")
    assert render(tmp_path / "one", SYSTEM) == peer(folder, SYSTEM)
    set_template(folder, [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    write_tokenizer(folder, tmp_path / "two", "text-generation")
    assert (render(tmp_path / "two", CHAT), render(tmp_path / "two", CHAT, variables={"tools": TOOLS})) == ("a", "b")


# ---- what cannot be


@pytest.mark.parametrize("bad", [[], "hello", None, 3, [1], [{"content": "x"}], [{"role": 3}], [CHAT], {"role": ""}])
def test_what_is_no_chat_is_one_clear_error(bad: Any) -> None:
    with pytest.raises(InputError, match="expected a list of messages") as caught:
        render(asset_path("smollm2"), bad)
    assert "\n" not in str(caught.value)


def test_messages_that_the_template_cannot_join() -> None:
    for content in (None, 3, ["a"], {}):
        with pytest.raises(InputError, match="fails on these messages, with TypeError"):
            render(asset_path("smollm2"), [{"role": "user", "content": content}])
    with pytest.raises(InputError, match="no attribute 'content'"):
        render(asset_path("smollm2"), [{"role": "user"}])


def test_no_template(folder: Path, minilm: Path) -> None:
    set_template(folder, None)
    for place in (folder, minilm, folder / "nowhere"):
        with pytest.raises(InputError, match="has no chat template"):
            render(place, CHAT)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "is broken"),
        ("{{ 1 + }}", "is broken"),
        ({"a": 1}, "neither a template nor"),
        (3, "neither a template nor"),
        ([{"name": "default"}], "neither a template nor"),
    ],
)
def test_a_broken_template(folder: Path, template: Any, message: str) -> None:
    set_template(folder, template)
    with pytest.raises(BundleError, match=message):
        render(folder, CHAT)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=r"tokenizer_config\.json"):
        render(folder, CHAT)


MARK = "EDGEWISE_WAS_HERE"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch ' + '@') }}",
        "{{ lipsum.__globals__['os'].popen('touch @').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ strftime_now.__code__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ ''['__class__'] }}{{ (''|attr('__class__')).mro() }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ messages[0].pop('content') }}",
        "{{ messages.clear() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch @') }}",
        "{% extends '/etc/passwd' %}",
        "{% from 'subprocess' import run %}{{ run('touch @') }}",
        "{% for i in range(99999999999) %}{% endfor %}",
        "{{ open('@', 'w') }}",
        "{{ __import__('os') }}",
        "{% macro m() %}{{ m.__globals__ }}{% endmacro %}{{ m() }}",
        "{% call(x) m() %}{% endcall %}",
        "{{ (messages | map('attr', '__class__') | list)[0].mro() }}",
        "{{ messages | sort(attribute='__class__.__mro__') }}{{ ''.join.__self__ }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ raise_exception('no\n\nchat') }}",
    ],
)
def test_a_template_that_means_harm_reaches_nothing(folder: Path, attack: str, monkeypatch: Any) -> None:
    target = folder / MARK
    monkeypatch.chdir(folder)
    set_template(folder, attack.replace("@", MARK))
    chat = [dict(m) for m in CHAT]
    try:
        text = render(folder, chat)
    except (BundleError, InputError):
        pass
    else:
        for word in ("class", "root:", "<module", "function", "Environment"):
            assert word not in text
    assert chat == CHAT
    assert not target.exists()


def test_jinja_is_imported_by_the_first_chat_only() -> None:
    code = "import sys, edgewise.runtime.chat; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "False"


def test_without_jinja_the_pip_command_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "jinja2.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgewise\[chat\]'"):
        render(asset_path("smollm2"), CHAT)
