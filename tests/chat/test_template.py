"""Where contents lie in a rendered conversation, and what a template that alters them is told."""

from __future__ import annotations

import pytest

from engine.chat.template import ChatTemplate
from engine.corpus.document import Message
from schemas.errors import BadDocument, RunFileError
from tests.support.chats import CHATML, GEMMA, LLAMA2, LLAMA3, TEMPLATES

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    Message("user", "  Hé?\n"),
    Message("assistant", "\n one <|im_end|> two "),
    Message("user", "{{ 3 }}"),
    Message("assistant", ""),
]
ECHO = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def made(template: str) -> ChatTemplate:
    return ChatTemplate(template, VARIABLES, "[teacher]")


def said(template: str, messages: list[Message]) -> list[str]:
    rendering = made(template).render(messages)
    contents = [m.content[a:b] for m, (a, b) in zip(messages, rendering.spans, strict=True)]
    together = "".join(f + c for f, c in zip(rendering.frames, [*contents, ""], strict=True))
    assert together == rendering.text
    return contents


def test_a_template_that_keeps_contents_keeps_every_letter() -> None:
    assert said(CHATML, TALK) == [m.content for m in TALK]
    rendering = made(CHATML).render(TALK)
    assert rendering.frames[0].startswith("<|im_start|>system\nYou are Qwen") and rendering.frames[-1] == "<|im_end|>\n"
    assert rendering.frames[1] == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [LLAMA3, GEMMA, LLAMA2])
def test_a_template_that_trims_is_seen_to_trim(template: str) -> None:
    assert said(template, TALK) == [m.content.strip() for m in TALK]


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_history_does_not_depend_on_what_follows(template: str) -> None:
    chat = made(template)
    rendering = chat.render(TALK)
    for i in range(len(TALK)):
        chat.check_history(TALK, i, rendering)


def test_only_one_end_is_trimmed() -> None:
    template = "{% for m in messages %}<{{ m.content.lstrip() }}>{% endfor %}"
    assert said(template, TALK) == [m.content.lstrip() for m in TALK]
    template = "{% for m in messages %}\t\n {{ m.content.rstrip() }} \t{% endfor %}"
    assert said(template, TALK) == [m.content.rstrip() for m in TALK]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "message 1"),
        ("{% for m in messages %}{{ m.content | e }}{% endfor %}", "message 2"),
        ("{% for m in messages %}{{ m.content.replace('one', '1') }}.{% endfor %}", "message 2"),
        ("{% for m in messages %}{{ m.content.lstrip('\n') }}.{% endfor %}", "message 2"),
        ("{{ messages[0].content }}", "drops message 2"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats message 1"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "reorders"),
        ("{% for m in messages %}{{ m.content or 'nothing' }}{% endfor %}", "message 4"),
    ],
)
def test_a_template_that_alters_contents_is_told_where(template: str, told: str) -> None:
    with pytest.raises(BadDocument, match=told) as caught:
        made(template).render(TALK)
    assert caught.value.reason == "template_alters_content" and "[teacher]" in caught.value.detail


def test_a_template_that_forgets_earlier_thoughts_rewrites_history() -> None:
    old = "{{ '(old)' if m.role == 'assistant' and not loop.last }}"
    template = "{% for m in messages %}" + old + "{{ m.role }}:{{ m.content }};{% endfor %}"
    chat = made(template)
    rendering = chat.render(TALK)
    chat.check_history(TALK, 3, rendering)
    with pytest.raises(BadDocument, match="later messages") as caught:
        chat.check_history(TALK, 1, rendering)
    assert caught.value.reason == "template_rewrites_history"
    chat = made(ECHO + "{% if add_generation_prompt %}[model]{% endif %}")
    with pytest.raises(BadDocument, match="add_generation_prompt"):
        chat.check_history(TALK, 1, chat.render(TALK))


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(BadDocument, match="System role not supported") as caught:
        made(GEMMA).render([Message("system", "s"), *TALK])
    assert caught.value.reason == "template_error"


@pytest.mark.parametrize(
    ("template", "told"),
    [("{% for", "jinja"), ("{{ strftime_now('%d') }}" + ECHO, "strftime_now"), ("{{ raise_exception('no') }}", "no")],
)
def test_an_unusable_template_is_refused_before_any_work(template: str, told: str) -> None:
    with pytest.raises(RunFileError, match=told):
        made(template).check()


def test_a_template_is_given_what_the_run_file_says() -> None:
    talk = TALK[:2]
    asked = "{% if add_generation_prompt %}[go]{% endif %}"
    chat = ChatTemplate(
        "{{ mood }}" + ECHO + asked, VARIABLES, "[teacher]", given={"mood": "calm", "add_generation_prompt": True}
    )
    assert chat.written(talk).startswith("calm[user]") and chat.written(talk).endswith("[go]")


@pytest.mark.parametrize(
    ("template", "given", "starts"),
    [
        ("{{ strftime_now('%d') }}" + ECHO, {"strftime_now": "1 May"}, "1 May["),
        (
            "{% if not date is defined %}{% set date = strftime_now('%d') %}{% endif %}{{ date }}" + ECHO,
            {"date": "2 May"},
            "2 May[",
        ),
        ("{% if tools %}{{ strftime_now('%d') }}{% endif %}" + ECHO, {}, "[user]"),
    ],
)
def test_a_template_that_writes_the_date_may_be_given_one(template: str, given: dict[str, str], starts: str) -> None:
    chat = ChatTemplate(template, VARIABLES, "[teacher]", given=given)
    chat.check()
    assert chat.written(TALK).startswith(starts)


def test_a_date_that_only_some_conversations_ask_for_is_found_there() -> None:
    chat = ChatTemplate(
        "{% if tools %}{{ strftime_now('%d') }}{% endif %}" + ECHO, VARIABLES, "[teacher]", tools='[{"a": 1}]'
    )
    with pytest.raises(BadDocument, match="today's date"):
        chat.render(TALK)
