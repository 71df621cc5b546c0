"""One door to every tokenizer folder: for people (`load_tokenizer`), for corpora (`load_encoder`), for ledgers."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tokenizers import Tokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder, Vocabulary, set_parallelism
from colossal_llama2.tokenizer.fast import set_boundaries, to_fast
from colossal_llama2.tokenizer.folder import MarkerToken, TokenizerFolder, read_folder
from colossal_llama2.tokenizer.gigatoken_model import UnfitError, from_fast, from_piece_model
from colossal_llama2.tokenizer.piece_model import CONTROL, PieceModel, demote_markers, piece_ids, read_piece_model
from colossal_llama2.tokenizer.proved_gigatoken import UnprovedError, load_gigatoken, say_fallback
from colossal_llama2.tokenizer.reference_encoders import FastEncoder, PieceEncoder

if TYPE_CHECKING:  # takes two seconds to import, and brings torch: only for those who ask for its tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["EncodedTexts", "Encoder", "EncoderKind", "load_encoder", "load_tokenizer", "tokenizer_fingerprint"]

EncoderKind = Literal["reference", "auto", "gigatoken"]

_KEPT_SETTINGS: Final = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")


def load_tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer folder, or the tokenizer of a model folder, as a transformers tokenizer.

    Where ``tokenizer.model`` is present the tokenizer is converted from it here, so that its ids are SentencePiece's;
    otherwise ``tokenizer.json`` is taken as it stands. Special tokens, added tokens and the chat template are kept;
    ``tok(text)`` puts bos and eos around a text as the folder's settings say (Llama's default: bos alone).

    Raises:
        InputError: no tokenizer there, or one that cannot be converted exactly.
    """
    folder = read_folder(Path(tokenizer_dir))
    if folder.model_file is None:
        return _load_json_tokenizer(folder)
    model = read_model(folder)
    return as_transformers(folder, build_fast(folder, model), special_tokens(folder, model))


def tokenizer_fingerprint(tokenizer_dir: Path) -> str:
    """Return the sha256 (hex) of what decides a tokenizer's ids.

    That is the bytes of ``tokenizer.model`` where there is one, else the model, normalizer, pre-tokenizer and added
    tokens of ``tokenizer.json`` in one canonical spelling.

    Raises:
        InputError: no tokenizer there.
    """
    return _fingerprint(read_folder(Path(tokenizer_dir)))


def load_encoder(
    tokenizer_dir: Path,
    num_threads: int = 1,
    kind: EncoderKind = "reference",
    proof: str | None = None,
    may_prove: bool = True,
) -> Encoder:
    """Load the encoder of plain text.

    The reference is SentencePiece where there is a ``tokenizer.model``, else `tokenizers`. A command that encodes a
    corpus asks for ``auto``: gigatoken, several times as fast, where it is proved to give the reference's ids for this
    very tokenizer, else the reference and a line saying why. Loading gigatoken costs a second, and the proof, once a
    user and tokenizer, some seconds, which pays from some tens of megabytes on.

    Args:
        tokenizer_dir: a tokenizer folder or a model folder with a tokenizer inside.
        num_threads: threads that one call may use.
        kind: ``reference``, ``auto``, or ``gigatoken`` to have that or an error.
        proof: `Encoder.proof` of this tokenizer's encoder in another process: what is proved there, by the same
            versions, is not proved again.
        may_prove: with ``auto``, whether it is worth the time to make a proof that nobody has made yet.

    Raises:
        InputError: no tokenizer there, or gigatoken was asked for and is not equal to the reference.
    """
    folder = read_folder(Path(tokenizer_dir))
    again = (load_encoder, (folder.path, num_threads))
    if folder.model_file is not None:
        model = read_model(folder)
        reference: Encoder = PieceEncoder(model, _vocabulary_of(folder, model), num_threads, again)
        write, identity = partial(from_piece_model, model, folder.path), model.SerializeToString()
    else:
        set_parallelism(num_threads)
        tokenizer = read_fast(folder)
        ids = tokenizer.get_vocab(with_added_tokens=True)
        vocabulary = _vocabulary(folder, ids, folder.special_tokens, max(ids.values()) + 1)
        reference = FastEncoder(tokenizer, vocabulary, again)
        write, identity = partial(from_fast, tokenizer), tokenizer.to_str().encode()
    if kind == "reference":
        return reference
    try:
        return load_gigatoken(write, reference, identity, num_threads, proof, may_prove or kind == "gigatoken")
    except UnprovedError:
        return reference
    except UnfitError as error:
        if kind == "gigatoken":
            what = f"gigatoken cannot encode with this tokenizer: {error}"
            raise InputError(what, path=folder.path, remedy="use the reference") from None
        say_fallback(folder.path, reference.kind, str(error))
        return reference


def read_model(folder: TokenizerFolder) -> PieceModel:
    """Read the folder's SentencePiece model; pieces its settings call special never come out of a text."""
    assert folder.model_file is not None
    model = read_piece_model(folder.model_file)
    demote_markers(model, folder.markers)
    return model


def read_fast(folder: TokenizerFolder) -> Tokenizer:
    """Read the folder's ``tokenizer.json``.

    Raises:
        InputError: the file is not a tokenizer.
    """
    assert folder.json_file is not None
    try:
        return Tokenizer.from_file(str(folder.json_file))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"not a tokenizer ({error})", path=folder.json_file, remedy="restore the file") from None


def special_tokens(folder: TokenizerFolder, model: PieceModel) -> dict[str, str]:
    """Name the special tokens of a folder with a SentencePiece model: what the settings say, else what the model says.

    A padding token is never invented.
    """
    spec = model.trainer_spec
    named = {}
    for name, index in (("bos_token", spec.bos_id), ("eos_token", spec.eos_id), ("unk_token", spec.unk_id)):
        if 0 <= index < len(model.pieces) and (name == "unk_token" or model.pieces[index].type == CONTROL):
            named[name] = model.pieces[index].piece
    return {**named, **folder.special_tokens}


def tokens_beyond(folder: TokenizerFolder, model: PieceModel) -> list[MarkerToken]:
    """Return the tokens that stand behind the model's pieces, by id.

    A special token that is named but has an id nowhere gets the next free one, as transformers would give it.
    """
    size = len(model.pieces)
    beyond = [token for token in folder.added_tokens.values() if token.id >= size]
    known = {entry.piece for entry in model.pieces} | {token.content for token in folder.added_tokens.values()}
    free = max([size, *(token.id + 1 for token in beyond)])
    for content in dict.fromkeys((*special_tokens(folder, model).values(), *folder.extra_special_tokens)):
        if content not in known:
            beyond.append(MarkerToken(free, content))
            free += 1
    return beyond


def build_fast(folder: TokenizerFolder, model: PieceModel) -> Tokenizer:
    """Convert a folder's model to `tokenizers`, with its added tokens and with bos and eos as its settings say."""
    inside = [token for token in folder.added_tokens.values() if token.id < len(model.pieces)]
    fast = to_fast(model, [*inside, *tokens_beyond(folder, model)], folder.path)
    named = special_tokens(folder, model)
    bos, eos = (named.get(f"{name}_token") if folder.adds(name) else None for name in ("bos", "eos"))
    set_boundaries(fast, bos, eos)
    return fast


def as_transformers(folder: TokenizerFolder, fast: Tokenizer, named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Wrap a `tokenizers` tokenizer with the folder's settings, special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    settings: dict[str, Any] = {name: folder.settings[name] for name in _KEPT_SETTINGS if name in folder.settings}
    settings.setdefault("clean_up_tokenization_spaces", False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        model_input_names=["input_ids", "attention_mask"],
        add_bos_token=folder.adds("bos") and "bos_token" in named,
        add_eos_token=folder.adds("eos") and "eos_token" in named,
        extra_special_tokens=list(folder.extra_special_tokens),
        **settings,
        **named,
    )
    tokenizer.chat_template = folder.chat_template
    tokenizer.name_or_path = str(folder.path)
    return tokenizer


def _load_json_tokenizer(folder: TokenizerFolder) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    read_fast(folder)  # for its complaint: transformers' own names no file
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder.path))
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _vocabulary_of(folder: TokenizerFolder, model: PieceModel) -> Vocabulary:
    beyond = tokens_beyond(folder, model)
    ids = {**piece_ids(model), **{token.content: token.id for token in beyond}}
    num_tokens = max(len(model.pieces), *(token.id + 1 for token in beyond), 0)
    return _vocabulary(folder, ids, special_tokens(folder, model), num_tokens)


def _vocabulary(folder: TokenizerFolder, ids: dict[str, int], named: dict[str, str], num_tokens: int) -> Vocabulary:
    bos, eos, pad = (ids.get(named.get(name, "")) for name in ("bos_token", "eos_token", "pad_token"))
    return Vocabulary(num_tokens, bos, eos, pad, _fingerprint(folder))


def _fingerprint(folder: TokenizerFolder) -> str:
    if folder.model_file is not None:
        return hashlib.sha256(folder.model_file.read_bytes()).hexdigest()
    # tokenizers' own spelling: files differ in how they write the same merges
    content = json.loads(read_fast(folder).to_str())
    deciding = {name: content.get(name) for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
