"""A tokenizer of bytes, for random models: nothing to train, and any size of vocabulary."""

from __future__ import annotations

import json
from pathlib import Path


def make_byte_tokenizer(folder: Path, vocabulary: int = 258) -> None:
    """Make the folder of a tokenizer of bytes, with pieces that no text has up to the size asked for.

    Its begin token is number 0, its end token number 1.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    special = ["<|begin|>", "<|end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"unused{number}" for number in range(vocabulary - len(tokens))]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
