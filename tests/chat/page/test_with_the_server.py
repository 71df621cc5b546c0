"""The page before the real server and two tiny models: one that chats, and one that only goes on with a text."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.long
_ROOT = Path(__file__).parents[3]
_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def _write_model(folder: Path, tokenizer_dir: Path, template: str | None) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=640, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copyfile(tokenizer_dir / "tokenizer.model", folder / "tokenizer.model")
    settings = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Iterator[str]:
    pytest.importorskip("fastapi")
    folder = tmp_path_factory.mktemp("models")
    _write_model(folder / "base", llama_tokenizer_dir, None)
    _write_model(folder / "chat", llama_tokenizer_dir, _TEMPLATE)
    models = [str(folder / "chat"), str(folder / "base")]
    command = [sys.executable, str(_ROOT / "tools" / "serve.py"), "--port", "0", "--device", "cpu", "--model", *models]
    environment = {**os.environ, "COLOSSAL_LLAMA2_API_KEY": "sesame"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            yield f"{found[0]}/"
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert found, "".join(said)


@pytest.fixture
def server(real_url: str) -> Any:
    return SimpleNamespace(url=real_url)


def test_the_page_talks_to_the_server(open_page: Callable[..., Any]) -> None:
    chat = open_page()
    chat.page.set_default_timeout(30_000)
    chat.page.locator("#notices").get_by_label("Key").fill("sesame")
    chat.page.keyboard.press("Enter")
    chat.page.locator("#model").wait_for()
    for setting, value in {"Tokens at most": "40", "Seed": "3"}.items():
        chat.page.get_by_role("button", name="Settings").click()
        chat.page.get_by_label(setting, exact=True).fill(value)
        chat.page.get_by_role("button", name="Save").click()
    chat.ask("Tell me of rivers")
    assert chat.page.locator(".trouble").count() == 0, chat.texts(".trouble")
    assert chat.answers()[0]
    assert "40" in chat.texts(".answer .meta")[0]
    [first] = chat.answers()
    chat.page.get_by_role("button", name="Answer again").click()
    chat.wait()
    chat.page.wait_for_function("() => document.querySelector('.answer .meta') !== null")
    assert chat.answers() == [first], "the same seed gives the same answer"
    for number in range(3):
        chat.ask(f"And then {number}? " + "hills, " * 40)
    assert "the server left out the oldest messages" in " ".join(chat.texts(".answer .note"))


def test_the_page_compares_a_chat_model_with_a_base_model(open_page: Callable[..., Any]) -> None:
    chat = open_page(before="sessionStorage.setItem('colossal-llama2-key', 'sesame')")
    chat.page.set_default_timeout(30_000)
    chat.page.get_by_role("button", name="Compare models").click()
    chat.ask("Once upon a time")
    assert chat.page.locator(".trouble").count() == 0, chat.texts(".trouble")
    assert all(chat.answers())
    assert len(chat.answers()) == 2
    assert any("as plain text" in note for note in chat.texts(".answer .note"))


def test_stop_reaches_the_server(open_page: Callable[..., Any]) -> None:
    chat = open_page(before="sessionStorage.setItem('colossal-llama2-key', 'sesame')")
    chat.page.set_default_timeout(30_000)
    chat.ask("Tell me everything", wait=False)
    chat.page.wait_for_function("() => document.querySelector('.markdown')?.innerText.length > 20")
    chat.page.click("#composer button")
    chat.wait()
    assert "Stopped." in chat.texts(".answer .note")
