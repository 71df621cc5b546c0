"""What tools/serve.py gives 1, 8 and 64 clients at a time, beside transformers' plain `generate` in a loop.

    python benchmarks/serve.py [--model DIR] [--tokens 64] [--output FILE.json]

The server is a process of its own; its clients are the official asynchronous client, each sending its next request when
its last one is answered, streamed. All ask for the same number of tokens after prompts of the same length, and no text
ends before. The loop answers the same prompts one after the other, in the order they would have come: what the k-th
client waits for is all that stood before it. Rounds alternate between the two, so that both see the same machine;
reported are medians over the rounds. Without --model a random Llama of 20 million parameters is used.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.byte_tokenizer import make_byte_tokenizer
from benchmarks.machine import describe_machine
from colossal_llama2 import cli

ROOT = Path(__file__).resolve().parents[1]
_SHAPE = {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}


@dataclass(frozen=True)
class ServeBenchmarkSettings:
    """Measure throughput and waiting of the server against a loop over `generate`."""

    model: Path | None = None
    """Model folder (default: a random one made for this)."""
    device: str = "auto"
    """Where to compute."""
    clients: tuple[int, ...] = (1, 8, 64)
    """How many at a time."""
    requests_per_client: int = 2
    """Requests of each client."""
    prompt_tokens: int = 32
    """Length of each prompt."""
    tokens: int = 64
    """Tokens of each answer."""
    rounds: int = 3
    """How often each is measured."""
    output: Path = ROOT / "benchmarks" / "results" / "serve.json"
    """Where the figures are written."""


@dataclass(frozen=True)
class Answered:
    """One request: seconds from its sending to its first text and to its end, and its tokens."""

    first: float
    whole: float
    tokens: int


def main(settings: ServeBenchmarkSettings) -> None:
    """Measure all levels and write the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        model_dir = settings.model or make_model(Path(scratch) / "random")
        loop = GenerateLoop(model_dir, settings)
        with serving(model_dir, settings) as base_url:
            figures: dict[int, list[dict[str, dict[str, float]]]] = {clients: [] for clients in settings.clients}
            for number in range(-1, settings.rounds):  # the first one warms up and is not counted
                for clients in settings.clients:
                    prompts = make_prompts(loop.num_tokens, settings, clients * settings.requests_per_client)
                    fields = loop.endless(settings.tokens)
                    server = summarise(*asyncio.run(ask_server(base_url, prompts, clients, fields)))
                    plain = summarise(*loop.answer(prompts, clients))
                    if number >= 0:
                        figures[clients].append({"server": server, "generate_loop": plain})
                        print(f"round {number}, {clients} clients: {server} / {plain}", flush=True)
    results = {
        "machine": describe_machine(),
        "settings": json.loads(json.dumps(asdict(settings), default=lambda path: path.name)),
        "clients": {str(clients): medians(rounds) for clients, rounds in figures.items()},
    }
    settings.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["clients"], indent=1))


def make_model(folder: Path) -> Path:
    """Make a random Llama with a tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_byte_tokenizer(folder, _SHAPE["vocab_size"])
    torch.manual_seed(0)
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 4096}
    LlamaForCausalLM(LlamaConfig(**_SHAPE, **heads, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    return folder


def make_prompts(num_tokens: int, settings: ServeBenchmarkSettings, number: int) -> list[list[int]]:
    """Return so many prompts of random tokens."""
    draw = random.Random(number)
    return [[draw.randrange(10, num_tokens) for _ in range(settings.prompt_tokens)] for _ in range(number)]


@contextmanager
def serving(model_dir: Path, settings: ServeBenchmarkSettings) -> Iterator[str]:
    """Run the server; give the address of its API."""
    limits = ["--max_running", str(max(settings.clients)), "--max_queue", str(max(settings.clients))]
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), "--model", str(model_dir), "--port", "0", *limits]
    with subprocess.Popen(
        [*command, "--device", settings.device], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        found = re.search(r"on (http://\S+)", process.stdout.readline())
        assert found, "the server did not start: run it by hand to see why"
        try:
            yield f"{found[1]}/v1"
        finally:
            process.terminate()


async def ask_server(
    base_url: str, prompts: Sequence[list[int]], clients: int, fields: dict[str, Any]
) -> tuple[list[Answered], float]:
    """Let so many clients ask for all prompts, with these fields beside them; return the answers, and the seconds."""
    import openai

    waiting, answers = list(reversed(prompts)), []
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=3600) as api:
        model = (await api.models.list()).data[0].id

        async def client() -> None:
            while waiting:
                answers.append(await _ask(api, {**fields, "model": model, "prompt": waiting.pop()}))

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return answers, time.perf_counter() - began


async def _ask(api: Any, fields: dict[str, Any]) -> Answered:
    began, first, tokens = time.perf_counter(), 0.0, 0
    chunks = await api.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    async for chunk in chunks:
        first = first or time.perf_counter() - began
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    assert tokens == fields["max_tokens"], "a text ended before"
    return Answered(first, time.perf_counter() - began, tokens)


class GenerateLoop:
    """Plain `generate`, one request after the other.

    Args:
        model_dir: the model.
        settings: how many tokens, and where.
    """

    def __init__(self, model_dir: Path, settings: ServeBenchmarkSettings) -> None:
        from colossal_llama2.model.inference import load_for_inference

        self._loaded, self._tokens = load_for_inference(model_dir, settings.device), settings.tokens
        self.num_tokens = self._loaded.encoder.num_tokens

    def endless(self, tokens: int) -> dict[str, Any]:
        """Return the fields of a request for so many tokens and no fewer."""
        bias = {str(token): -100 for token in sorted(self._loaded.end_token_ids)}
        return {"max_tokens": tokens, "temperature": 0, "logit_bias": bias}

    def answer(self, prompts: Sequence[list[int]], clients: int) -> tuple[list[Answered], float]:
        """Answer all prompts; so many of them are there from the beginning, each next one when one is answered."""
        import torch

        sent = [time.perf_counter()] * clients
        answers = []
        for number, prompt in enumerate(prompts):
            moments = _Moments()
            ids = torch.tensor([prompt], device=self._loaded.device)
            model: Any = self._loaded.model
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._tokens,
                min_new_tokens=self._tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=moments,
            )
            ended = time.perf_counter()
            began = sent[number]
            answers.append(Answered(moments.first - began, ended - began, output.shape[1] - len(prompt)))
            sent.append(ended)
        return answers, ended - sent[0]


class _Moments:
    """What `generate` calls with the prompt and with each token: remembers when the first one came."""

    def __init__(self) -> None:
        self.first, self._calls = 0.0, 0

    def put(self, value: Any) -> None:
        """Take the prompt, or a token."""
        self._calls += 1
        if self._calls == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        """Take the end."""


def summarise(answers: Sequence[Answered], seconds: float) -> dict[str, float]:
    """Return tokens a second of all together, seconds to the first one, and tokens a second of one request."""
    firsts = sorted(answer.first for answer in answers)
    return {
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / seconds, 1),
        "first_token_median_s": round(statistics.median(firsts), 4),
        "first_token_p95_s": round(firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))], 4),
        "tokens_per_second_of_a_request": round(statistics.median(a.tokens / a.whole for a in answers), 2),
    }


def medians(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the median over the rounds of every figure, and of the ratio of the throughputs."""
    result: dict[str, Any] = {
        who: {name: statistics.median(one[who][name] for one in rounds) for name in rounds[0][who]} for who in rounds[0]
    }
    ratios = [one["server"]["tokens_per_second"] / one["generate_loop"]["tokens_per_second"] for one in rounds]
    result["throughput_ratio"] = round(statistics.median(ratios), 2)
    result["throughput_ratios"] = [round(ratio, 2) for ratio in ratios]
    return result


if __name__ == "__main__":
    cli.run(ServeBenchmarkSettings, main)
