"""What is refused before the first record of a set is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from transformers import PreTrainedTokenizerFast

from colossal_llama2.dataset.conversation_encoding import ChunkEncoder, EncodingJob, SetType
from colossal_llama2.dataset.conversation_files import first_chunk, recognise_file
from colossal_llama2.dataset.conversation_layouts import Layout
from colossal_llama2.dataset.inputs import InputFile
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.encoder import Encoder

# Layouts that can never be used for a set: they hold no answer, or no two of which one is better.
USELESS: Final[dict[SetType, tuple[Layout, ...]]] = {
    "sft": ("prompt",),
    "preference": ("instruction", "messages", "human_assistant", "prompt"),
    "prompt": (),
}
_SAMPLE_BYTES: Final = 1 << 15
_NO_LIMIT: Final = 1 << 40


def refuse_useless(max_length: int, longest: int, num_parts: int, most_parts: int) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: naming the flag.
    """
    if not 2 <= max_length <= longest:
        raise InputError(f"--max_length is {max_length}", remedy=f"give 2 (one token predicts the next) to {longest}")
    if not 1 <= num_parts <= most_parts:
        raise InputError(f"--num_spliced_dataset_bins is {num_parts}", remedy=f"give 1 to {most_parts}")


def refuse_nested(output: Path, entries: Sequence[str], tokenizer_dir: Path) -> None:
    """Refuse an output that something else lies in: it is replaced as a whole, with everything inside.

    Raises:
        InputError: an input or the tokenizer lies in the output, or the output in an input.
    """
    for other in [*map(Path, entries), tokenizer_dir]:
        if other.resolve().is_relative_to(output.resolve()):
            raise InputError(f"{other} lies in this output", path=output, remedy="name a folder of its own")
    for entry in map(Path, entries):
        if output.resolve().is_relative_to(entry.resolve()):
            raise InputError(f"lies in the input {entry}", path=output, remedy="name a folder outside the input")


def layouts_of(
    files: Sequence[InputFile], layout: Literal["auto"] | Layout, set_type: SetType, skip_bad_records: bool
) -> list[Layout | None]:
    """Tell the layout of each file: the one that is named, else what its first record says.

    Raises:
        InputError: a file cannot be read, or its layout is not known, or of no use for the set.
    """
    layouts: list[Layout | None] = []
    for file in files:
        found = recognise_file(file, skip_bad_records) if layout == "auto" else layout
        if found in USELESS[set_type]:
            lacks = "no answers" if set_type == "sft" else "no two answers of which one is better"
            raise InputError(
                f"holds {found} records, which have {lacks}",
                path=file.path,
                remedy="leave the file out, or another --type",
            )
        layouts.append(found)
    return layouts


def check_against_transformers(
    files: Sequence[InputFile],
    layouts: Sequence[Layout | None],
    job: EncodingJob,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Encode the first conversations of each file as transformers would, and compare.

    What is trained on must be what the tokenizer makes of the same chat later. A tokenizer that cuts the beginning of a
    text otherwise than what follows a special token is found out here.

    Raises:
        InputError: the ids differ.
    """
    sampling = ChunkEncoder(replace(job, max_length=_NO_LIMIT, skip_bad_records=True), encoder)
    for source, (file, layout) in enumerate(zip(files, layouts, strict=True)):
        if layout is None:
            continue
        chunk = first_chunk(file, source, layout, _SAMPLE_BYTES)
        for draft in sampling.encode(chunk)[0]:
            for located, encoded in zip(draft.located, draft.encoded, strict=True):
                if any(job.markers.stand_in(located.text[begin:end]) for begin, end in located.contents):
                    continue  # transformers would make tokens of it
                expected = tokenizer(located.text, add_special_tokens=False, verbose=False)["input_ids"]
                if encoded.ids.tolist() != expected:
                    raise InputError(
                        f"the tokenizer makes other tokens of a chat than of its parts ({file.name}:{draft.line})",
                        path=job.tokenizer_dir,
                        remedy="give a folder with tokenizer.model, or a tokenizer without a prefix for the first word",
                    )
