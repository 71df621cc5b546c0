"""A model answers within its context, by its seed, and a draft changes nothing of what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from colossal_llama2.chat.generation import GenerationOptions
from colossal_llama2.chat.talk.chat_format import ChatFormat
from colossal_llama2.chat.talk.speaker import Speaker, load_draft, load_speaker
from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel, load_for_inference

ASKED = [Turn("user", "the quick brown fox")]


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> LoadedModel:
    return load_for_inference(tiny_model_dir, "cpu")


@pytest.fixture(scope="module")
def near_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Give a model that says nearly what the tiny one says: some of its drafts are right, some are not."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("near") / "model"
    shutil.copytree(tiny_model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    model.save_pretrained(folder)
    return folder


def speaker(loaded: LoadedModel, draft: LoadedModel | None = None, **options: object) -> Speaker:
    chosen = GenerationOptions(**options)  # type: ignore[arg-type]
    model = None if draft is None else draft.model
    return Speaker("tiny", loaded, ChatFormat(loaded, "transcript"), chosen, model)


def test_a_seed_and_an_attempt_decide_a_reply(loaded: LoadedModel) -> None:
    one = speaker(loaded, max_new_tokens=20, seed=5, top_k=0)
    fitted = one.fit(ASKED)
    texts = [one.reply(fitted, attempt).text for attempt in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_reply_leaves_half_of_a_short_context_to_what_was_said(loaded: LoadedModel) -> None:
    one = speaker(loaded, max_new_tokens=1000, do_sample=False)
    assert one.longest_reply == 64
    reply = one.reply(one.fit(ASKED))
    assert reply.num_tokens <= 64
    many = [Turn(role, "the quick brown fox jumps") for _ in range(6) for role in ("user", "assistant")] + ASKED
    assert one.fit(many).dropped
    assert len(one.fit(many).prompt_ids) <= 64


def test_parts_are_the_reply_and_the_lead_is_no_part_of_it(loaded: LoadedModel) -> None:
    one = speaker(loaded, max_new_tokens=20, do_sample=False)
    parts: list[str] = []
    reply = one.reply(one.fit(ASKED), emit=parts.append)
    assert "".join(parts) == reply.text
    assert not reply.text.startswith(" ")
    stopped = one.reply(one.fit(ASKED), cancelled=lambda: True)
    assert (stopped.finish, stopped.num_tokens) == ("cancelled", 1)


@pytest.mark.parametrize("stop", [(), ("the", "fo")])
def test_a_draft_changes_no_greedy_reply(loaded: LoadedModel, near_model_dir: Path, stop: tuple[str, ...]) -> None:
    draft = load_draft(near_model_dir, loaded)
    texts = ["fox", "seven wizards vex"]
    differing = 0
    for text in texts:
        alone, helped, by_draft = (
            one.reply(one.fit([Turn("user", text)]))
            for one in (
                speaker(loaded, do_sample=False, max_new_tokens=20, stop=stop),
                speaker(loaded, draft, do_sample=False, max_new_tokens=20, stop=stop),
                speaker(draft, do_sample=False, max_new_tokens=20, stop=stop),
            )
        )
        assert (alone.text, alone.finish, alone.num_tokens) == (helped.text, helped.finish, helped.num_tokens)
        differing += by_draft.text != alone.text
    assert differing > 0  # else nothing was checked


def test_a_draft_of_another_kind_is_refused(
    loaded: LoadedModel, tiny_model_dir: Path, tmp_path: Path, piece_model_bytes: object
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def made(name: str, rows: int, positions: int) -> Path:
        config = LlamaConfig(
            vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=positions,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        for path in tiny_model_dir.glob("token*"):
            shutil.copy(path, tmp_path / name)
        return tmp_path / name

    with pytest.raises(InputError, match="embedding rows"):
        load_draft(made("padded", 704, 128), loaded)
    with pytest.raises(InputError, match="takes 64 tokens"):
        load_draft(made("short", 640, 64), loaded)
    other = made("other", 640, 128)
    (other / "tokenizer.model").write_bytes(piece_model_bytes(vocab_size=450))  # type: ignore[operator]
    with pytest.raises(InputError, match="tokenizer is not"):
        load_draft(other, loaded)


def test_a_model_is_called_by_its_folder(tiny_model_dir: Path, tiny_adapter_dir: Path) -> None:
    assert load_speaker(tiny_model_dir)[0] == "model"
    assert load_speaker(tiny_model_dir, "cpu", tiny_adapter_dir)[0] == f"model+{tiny_adapter_dir.name}"
