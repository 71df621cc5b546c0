"""A tokenizer folder as its files say it: settings, special and added tokens, chat template."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from colossal_llama2.errors import InputError

MODEL_FILE: Final = "tokenizer.model"
JSON_FILE: Final = "tokenizer.json"
CONFIG_FILE: Final = "tokenizer_config.json"
SPECIAL_TOKENS_FILE: Final = "special_tokens_map.json"
ADDED_TOKENS_FILE: Final = "added_tokens.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
EXPANSION_FILE: Final = "expansion.json"
# vocab.json and merges.txt are the older half of a byte-level tokenizer; tokenizer.json holds the same.
TOKENIZER_FILES: Final = (
    MODEL_FILE,
    JSON_FILE,
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    TEMPLATE_FILE,
    EXPANSION_FILE,
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)
SPECIAL_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class MarkerToken:
    """A token that stands outside the learned vocabulary: its id, its text, and how it is found in a text."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFolder:
    """What the files of a tokenizer folder say.

    Attributes:
        path: the folder.
        model_file: its ``tokenizer.model``, if any.
        json_file: its ``tokenizer.json``, if any.
        settings: ``tokenizer_config.json`` as it stands (empty without one).
        special_tokens: name (``bos_token`` ...) to text, of those that are set.
        extra_special_tokens: further texts named special.
        added_tokens: every added token with an id, by id.
        chat_template: the template, if any.
    """

    path: Path
    model_file: Path | None
    json_file: Path | None
    settings: dict[str, Any]
    special_tokens: dict[str, str]
    extra_special_tokens: tuple[str, ...]
    added_tokens: dict[int, MarkerToken]
    chat_template: Any

    @property
    def markers(self) -> set[str]:
        """The texts of all tokens called special."""
        named = {*self.special_tokens.values(), *self.extra_special_tokens}
        return named | {token.content for token in self.added_tokens.values() if token.special}

    def adds(self, name: str) -> bool:
        """Tell whether ``bos`` or ``eos`` is put around a text; where nothing is said, bos alone, as Llama does."""
        value = self.settings.get(f"add_{name}_token")
        return bool(value) if value is not None else name == "bos"


def read_folder(path: Path) -> TokenizerFolder:
    """Read a tokenizer folder, or a model folder with a tokenizer inside.

    Raises:
        InputError: the folder is missing, holds no tokenizer, or a file in it is not what its name says.
    """
    if not path.is_dir():
        raise InputError("no such folder", path=path, remedy="give the folder that holds the tokenizer")
    model_file, json_file = path / MODEL_FILE, path / JSON_FILE
    if not model_file.is_file() and not json_file.is_file():
        raise InputError(f"holds neither {MODEL_FILE} nor {JSON_FILE}", path=path, remedy="give a tokenizer's folder")
    settings = _read_object(path / CONFIG_FILE)
    special = {**_read_object(path / SPECIAL_TOKENS_FILE), **{k: v for k, v in settings.items() if v is not None}}
    named = {name: _content(special[name]) for name in SPECIAL_NAMES if special.get(name)}
    extra = special.get("extra_special_tokens") or special.get("additional_special_tokens") or []
    extra = tuple(_content(token) for token in (extra.values() if isinstance(extra, dict) else extra))
    return TokenizerFolder(
        path=path,
        model_file=model_file if model_file.is_file() else None,
        json_file=json_file if json_file.is_file() else None,
        settings=settings,
        special_tokens=named,
        extra_special_tokens=extra,
        added_tokens=_added_tokens(path, settings, {*named.values(), *extra}),
        chat_template=_chat_template(path, settings),
    )


def copy_tokenizer_files(source: Path, target: Path) -> list[str]:
    """Copy every tokenizer file of one folder into another, byte for byte, and return their names.

    A tokenizer file that the target has and the source lacks is removed: half of each would be a third tokenizer.
    transformers' ``save_pretrained`` is no substitute, it drops ``tokenizer.model``.
    """
    copied = []
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            copied.append(name)
        else:
            (target / name).unlink(missing_ok=True)
    return copied


def with_chat_template(folder: Path, template: str) -> dict[str, str]:
    """Return the texts of the files of a tokenizer folder that must change for it to have another chat template.

    Args:
        folder: as it is.
        template: the template, in jinja.
    """
    files = {TEMPLATE_FILE: template}
    for name in (CONFIG_FILE, "chat_template.json"):  # older readers look there
        if name == CONFIG_FILE or (folder / name).is_file():
            changed = {**_read_object(folder / name), "chat_template": template}
            files[name] = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    return files


def _added_tokens(path: Path, settings: dict[str, Any], markers: set[str]) -> dict[int, MarkerToken]:
    added: dict[int, MarkerToken] = {}
    if (path / JSON_FILE).is_file():
        for entry in _read_object(path / JSON_FILE).get("added_tokens") or []:
            added[int(entry["id"])] = _marker(int(entry["id"]), entry, markers)
    for content, index in _read_object(path / ADDED_TOKENS_FILE).items():
        added[int(index)] = _marker(int(index), content, markers)
    for index, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[int(index)] = _marker(int(index), entry, markers)
    return dict(sorted(added.items()))


def _marker(index: int, entry: Any, markers: set[str]) -> MarkerToken:
    content = _content(entry)
    flags = entry if isinstance(entry, dict) else {}
    return MarkerToken(
        id=index,
        content=content,
        special=bool(flags.get("special", False)) or content in markers,
        lstrip=bool(flags.get("lstrip", False)),
        rstrip=bool(flags.get("rstrip", False)),
        single_word=bool(flags.get("single_word", False)),
        normalized=bool(flags.get("normalized", False)),
    )


def _parse(raw: bytes) -> Any:
    """Parse JSON, with a byte order mark or without; orjson reads a vocabulary five times as fast, json reads more."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw.decode("utf-8-sig"))


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _chat_template(path: Path, settings: dict[str, Any]) -> Any:
    template = path / TEMPLATE_FILE
    if template.is_file():
        return template.read_text(encoding="utf-8")
    return settings.get("chat_template") or _read_object(path / "chat_template.json").get("chat_template")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = _parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except ValueError as error:
        raise InputError(f"not JSON ({error})", path=path, remedy="restore the file from its source") from None
    if not isinstance(value, dict):
        raise InputError("not a JSON object", path=path, remedy="restore the file from its source")
    return value
