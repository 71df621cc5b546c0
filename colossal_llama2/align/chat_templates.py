"""The chat template that a set was written by, and the tokenizer that the finished model leaves with."""

from __future__ import annotations

from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.folder import read_folder, with_chat_template
from colossal_llama2.train.settings import StageSettings


def check_templates(
    settings: StageSettings, data: PreparedCorpus, evaluated: PreparedCorpus | None, weights_dir: Path
) -> None:
    """Refuse sets of several chat templates, and say when the tokenizer has another one.

    Args:
        settings: of the run.
        data: what is learned from.
        evaluated: what is evaluated on, if anything.
        weights_dir: where the model comes from.

    Raises:
        InputError: there is more than one: the model could be used with one of them alone.
    """
    if len(data.chat_templates) > 1:
        raise InputError(
            "was written by another chat template than a set before it",
            path=settings.data.dataset[-1],
            remedy="prepare all sets with the same --chat_template",
        )
    if evaluated is not None and evaluated.chat_templates != data.chat_templates:
        raise InputError(
            "was written by another chat template than the set that is learned from",
            path=settings.evaluation.eval_dataset[0],
            remedy="prepare both with the same --chat_template",
        )
    own = read_folder(weights_dir).chat_template
    if data.chat_templates and own != data.chat_templates[0]:
        has = "has no chat template" if own is None else "has another chat template"
        cli.say(f"the tokenizer of {weights_dir} {has}: what is saved gets the one that the set was written by")


def template_files(settings: StageSettings, data: PreparedCorpus) -> dict[str, str]:
    """Return the tokenizer files that must change for --pretrained's tokenizer to have the set's chat template."""
    if not data.chat_templates:
        return {}
    return with_chat_template(settings.model.pretrained, data.chat_templates[0])
