"""What a user already has and the demo must make: a base tokenizer, a model of random weights, a list of pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

ENGLISH_PIECES = 1024
CHINESE_PIECES = 1500


def texts(path: Path) -> list[str]:
    """Return the texts of a file of records, line by line: no piece reaches over a line's end."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [line for record in records for line in (record["source"] + record["target"]).splitlines()]


def make_base_tokenizer(english: list[str], folder: Path) -> None:
    """Train a SentencePiece BPE tokenizer on English, with Llama's settings."""
    folder.mkdir()
    learn_pieces(english, folder / "tokenizer", ENGLISH_PIECES, byte_fallback=True, split_digits=True)
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def learn_pieces(lines: list[str], prefix: Path, size: int, **options: Any) -> None:
    """Let SentencePiece learn `size` BPE pieces, and write them to ``PREFIX.model``."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=size,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
    )


def make_random_model(tokenizer: Path, context: int, folder: Path) -> None:
    """Make a Llama of random weights for a tokenizer: 4 layers of 160, embedding and head apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ENGLISH_PIECES,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def learn_chinese_pieces(chinese: list[str], path: Path) -> None:
    """Learn pieces from the Chinese texts, and list those made of Chinese characters and punctuation only."""
    from sentencepiece import SentencePieceProcessor

    prefix = path.with_suffix("")
    learn_pieces(chinese, prefix, CHINESE_PIECES, max_sentencepiece_length=4)
    processor = SentencePieceProcessor(model_file=f"{prefix}.model")
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size()) if not processor.is_control(i)]
    # Latin letters, digits and the space mark stay the base vocabulary's business: its old texts keep their tokens.
    chosen = [piece for piece in pieces if min(piece) > "\u2581" or piece in "“”"]
    lines = (json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in chosen)
    path.write_text("".join(lines), encoding="utf-8")
