"""Templates: found, refused, rendered as transformers renders them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.dataset.conversation_template import ChatTemplate, load_template, ready_templates
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.loading import load_tokenizer

CHAT = [Turn("user", "q"), Turn("assistant", "a")]


@pytest.fixture(scope="module")
def tokenizer(llama_tokenizer_dir: Path) -> Any:
    return load_tokenizer(llama_tokenizer_dir)


@pytest.mark.parametrize("name", ready_templates())
def test_a_ready_template_renders_as_transformers_does(tokenizer: Any, name: str) -> None:
    template = load_template(tokenizer, name, None)
    messages = [{"role": turn.role, "content": turn.content} for turn in CHAT]
    for turns, asking in ((CHAT, False), (CHAT[:1], True)):
        theirs = tokenizer.apply_chat_template(
            messages[: len(turns)], chat_template=template.text, tokenize=False, add_generation_prompt=asking
        )
        assert template.render([turns], asking)[0].text == theirs
        assert "q" in theirs


def test_llama2_and_colossal_are_spelled_as_their_models_know_them(tokenizer: Any) -> None:
    turns = [Turn("system", "s"), *CHAT, Turn("user", "r")]
    llama2, colossal = (
        load_template(tokenizer, name, None).render([turns], True)[0].text for name in ("llama2", "colossal")
    )
    assert llama2 == "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST]"
    assert colossal == "s\n\nHuman: <s>q</s>Assistant: <s>a</s>Human: <s>r</s>Assistant: <s>"


def test_the_folders_own_template_is_the_default(tokenizer: Any, llama_tokenizer_dir: Path, tmp_path: Path) -> None:
    assert load_template(tokenizer, "", None).render([CHAT])[0].text == "[user] q</s>[assistant] a</s>"
    folder = tmp_path / "several"
    shutil.copytree(llama_tokenizer_dir, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "rag", "template": "x"}, {"name": "default", "template": "y{{ eos_token }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_template(load_tokenizer(folder), "", None).text == "y{{ eos_token }}"


def test_a_file_wins_over_a_ready_template_of_its_name(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama2").write_text("mine{{ eos_token }}")
    assert load_template(tokenizer, "llama2", None).text == "mine{{ eos_token }}"


def test_what_is_no_template_is_refused(tokenizer: Any, byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template.*chatml, colossal, llama2"):
        load_template(load_tokenizer(byte_level_tokenizer_dir), "", None)
    with pytest.raises(InputError, match=r"cannot be read.*give a jinja file or one of"):
        load_template(tokenizer, "no_such", None)
    (tmp_path / "gbk.jinja").write_bytes("你".encode("gbk"))
    with pytest.raises(InputError, match="not UTF-8"):
        load_template(tokenizer, str(tmp_path / "gbk.jinja"), None)


def test_a_template_that_writes_today_needs_a_date(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "dated.jinja"
    path.write_text(
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}"
    )
    with pytest.raises(InputError, match=r"another one tomorrow.*--template_date"):
        load_template(tokenizer, str(path), None)
    assert load_template(tokenizer, str(path), "26 Jul 2024").render([CHAT])[0].text == "26 Jul 2024"
    path.write_text("{{ strftime_now('%d') }}")
    with pytest.raises(InputError, match="another one tomorrow"):
        load_template(tokenizer, str(path), "26 Jul 2024")


def test_one_conversation_that_is_refused_does_not_touch_the_others() -> None:
    text = "{% for t in messages %}{{ raise_exception('not that') if t.content == 'bad' else t.content }}{% endfor %}"
    rendered = ChatTemplate("test", text, {}).render([CHAT, [Turn("user", "bad")], CHAT])
    assert [one.text for one in rendered] == ["qa", "", "qa"]
    assert rendered[1].refusal == "the chat template refuses it (not that)"
    assert ChatTemplate("test", "{% for", {}).render([CHAT])[0].refusal is not None


def test_templates_run_in_a_sandbox() -> None:
    rendered = ChatTemplate("test", "{{ messages.__class__.__mro__[1].__subclasses__() }}", {}).render([CHAT])[0]
    assert rendered.text == ""
    assert rendered.refusal is not None


def test_generated_parts_are_those_inside_the_tags() -> None:
    text = "{% for t in messages %}<{% generation %}{{ t.content }}{% endgeneration %}>{% endfor %}"
    rendered = ChatTemplate("test", text, {}).render([CHAT])[0]
    assert (rendered.text, rendered.generated) == ("<q><a>", ((1, 2), (4, 5)))
    assert ChatTemplate("test", "{%- generation -%}", {}).has_generation_tags
    assert not ChatTemplate("test", "{{ add_generation_prompt }}", {}).has_generation_tags
