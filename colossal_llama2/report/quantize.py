"""The command `tools/quantize.py`: a model folder in 8 or 4 bits, and what that costs in bits per byte."""

from __future__ import annotations

import time

import torch

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.inference import choose_device
from colossal_llama2.model.quantizing import DEFAULT_GROUP_SIZE, Outcome, Plan, check_model, quantize
from colossal_llama2.model.quantizing_writing import take_rest_along
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.report.calibration import calibration_rows, read_documents, refuse_shared
from colossal_llama2.report.evaluation import Text
from colossal_llama2.report.quantize_measures import Measured, measure, peak_memory
from colossal_llama2.report.quantize_record import Cost, Made, lines, unusual_group_sizes, write_record
from colossal_llama2.report.quantize_settings import QuantizeSettings
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer

_LONGEST_ROW = 2048


def main(settings: QuantizeSettings) -> None:
    """Check everything, quantise, measure before and after, and write the folder whole."""
    plan = _check(settings)
    texts, rows = _texts(settings)
    with whole_directory(settings.output, overwrite=settings.overwrite) as work:
        started = time.perf_counter()
        outcome = quantize(settings.model, plan, rows, work, cli.say)
        cost = Cost(time.perf_counter() - started, peak_memory(plan.device))
        _say_group_sizes(settings, outcome)
        if not texts:
            cli.say("bits per byte were not measured: no --evaluation")
        before, after = (measure(folder, texts, settings.device) for folder in (settings.model, work))
        made = Made(settings, plan, outcome, cost, before, after, None if rows is None else tuple(rows.shape))
        write_record(made, work)
        take_rest_along(settings.model, work)
    for line in lines(made):
        cli.say(line)
    _warn_of_nothing_gained(settings, before, after)


def _check(settings: QuantizeSettings) -> Plan:
    """Refuse what would fail in the middle.

    Raises:
        InputError: a flag or a folder, or two that do not fit.
    """
    model, output, is_gptq = settings.model, settings.output, settings.method == "int4-gptq"
    refuse_existing(output, settings.overwrite)
    if model.resolve().is_relative_to(output.resolve()):
        raise InputError(f"the output would replace {model}", path=output, remedy="choose another --output")
    if is_gptq and settings.calibration is None:
        raise InputError("--method int4-gptq rounds by a text", remedy="give --calibration FILE")
    if not is_gptq and settings.group_size is not None:
        raise InputError(f"--group_size is for int4-gptq, and {settings.method} has groups of its own")
    if settings.calibration_samples < 1:
        raise InputError(f"--calibration_samples is {settings.calibration_samples}", remedy="give 1 or more")
    device = choose_device(settings.device)
    check_belongs(model)
    group_size = DEFAULT_GROUP_SIZE if settings.group_size is None else settings.group_size
    plan = Plan(settings.method, group_size, settings.quantize_head, device)
    check_model(model, plan)
    if not is_gptq and settings.calibration is not None:
        cli.warn(f"{settings.method} rounds without a text; --calibration is read only to keep --evaluation apart")
    return plan


def _texts(settings: QuantizeSettings) -> tuple[list[Text], torch.Tensor | None]:
    """Read what is measured on, and cut what is rounded by into rows."""
    calibration = [] if settings.calibration is None else read_documents(settings.calibration)
    evaluation = [] if settings.evaluation is None else read_documents(settings.evaluation)
    if settings.evaluation is not None:
        refuse_shared(calibration, evaluation, settings.evaluation)
    if settings.method != "int4-gptq":
        return evaluation, None
    encoder, tokenizer = load_encoder(settings.model), load_tokenizer(settings.model)
    start = encoder.bos_token_id if encoder.bos_token_id is not None else encoder.eos_token_id
    if start is None:
        raise InputError("the tokenizer has neither a bos nor an eos token", path=tokenizer.name_or_path)
    length = _row_length(settings)
    rows = calibration_rows(calibration, encoder, start, settings.calibration_samples, length, settings.seed)
    return evaluation, rows


def _row_length(settings: QuantizeSettings) -> int:
    config = build_without_memory(settings.model).config.get_text_config()
    context = int(getattr(config, "max_position_embeddings", None) or _LONGEST_ROW)
    length = settings.calibration_length or min(_LONGEST_ROW, context)
    if not 2 <= length <= context:
        raise InputError(
            f"--calibration_length is {length} and the model's context {context} tokens",
            remedy=f"give 2 to {context}",
        )
    return length


def _say_group_sizes(settings: QuantizeSettings, outcome: Outcome) -> None:
    if settings.method != "int4-gptq":
        return
    wanted = settings.group_size or DEFAULT_GROUP_SIZE
    other = {size: count for size, count in outcome.group_sizes.items() if size != wanted}
    if other:
        found = ", ".join(f"{size} in {count}" for size, count in sorted(other.items()))
        cli.warn(f"groups of {wanted} do not divide every matrix; groups of {found} matrices instead")
    unusual = unusual_group_sizes(outcome)
    if unusual:
        cli.warn(f"vLLM has no kernels for groups of {', '.join(map(str, unusual))}; transformers reads them")


def _warn_of_nothing_gained(settings: QuantizeSettings, before: Measured, after: Measured) -> None:
    if after.weight_bytes >= before.weight_bytes:
        cli.warn(f"{settings.output} is not smaller than {settings.model}")


if __name__ == "__main__":
    cli.run(QuantizeSettings, main)
