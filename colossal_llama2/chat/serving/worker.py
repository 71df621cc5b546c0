"""The thread that computes: takes requests from a bounded queue, batches them, and posts what they are waiting for."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence

from colossal_llama2.chat.serving.api_errors import ApiError
from colossal_llama2.chat.serving.batching import Batch, Writing
from colossal_llama2.chat.serving.metrics import Metrics
from colossal_llama2.chat.serving.settings import LimitOptions
from colossal_llama2.chat.serving.tickets import Job, Part
from colossal_llama2.model.inference import LoadedModel


class Worker:
    """Writes the texts of one model.

    Args:
        name: the model's.
        loaded: the model; this thread alone may use it from now on.
        limits: see `LimitOptions`.
        metrics: where it counts.
    """

    def __init__(self, name: str, loaded: LoadedModel, limits: LimitOptions, metrics: Metrics) -> None:
        self.name, self._limits, self._metrics = name, limits, metrics
        self._batch = Batch(loaded, limits.prefill_tokens)
        self._changed = threading.Condition()
        self._waiting: deque[list[Job]] = deque()
        self._running: dict[Writing, Job] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"worker {name}", daemon=True)
        self._thread.start()

    def submit(self, groups: Sequence[list[Job]], num_blocked: int = 0) -> None:
        """Queue the jobs of a request, those of one prompt in a group; all of them or none.

        Args:
            groups: the jobs.
            num_blocked: texts of the request that are not written, their prompts being filtered; they are counted.

        Raises:
            ApiError: the queue is full, or the server is ending.
        """
        number = sum(map(len, groups))
        with self._changed:
            if self._stopping:
                raise shutting_down()
            waiting = sum(map(len, self._waiting))
            room = self._limits.max_running + self._limits.max_queue
            if number + len(self._running) + waiting > room:
                raise ApiError(
                    429,
                    f"The queue of model {self.name} is full ({waiting} texts are waiting). Try again later.",
                    "queue_full",
                    retry_after=1,
                )
            self._waiting.extend(groups)
            self._metrics.waiting.labels(self.name).set(waiting + number)
            self._changed.notify()
        self._metrics.endings.labels(self.name, "content_filter").inc(num_blocked)

    def wake(self) -> None:
        """Have the thread see that a ticket was cancelled."""
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; what still waits or runs fails with 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._show_load()
                # Deadlines of what waits need no clock here: it waits only while something runs.
                while not (self._stopping or self._waiting or self._running):
                    self._changed.wait()
                if self._stopping:
                    break
            try:
                with self._changed:
                    self._drop_cancelled()
                    self._admit()
                    self._show_load()
                self._advance()
            except Exception:
                traceback.print_exc()
                self._fail(ApiError(500, "The model failed while this was computed.", "model_failed"))
        self._fail(shutting_down(), waiting_too=True)

    def _advance(self) -> None:
        self._deliver(self._batch.read())
        steps = self._batch.steps
        self._deliver(self._batch.step())
        self._metrics.steps.labels(self.name).inc(self._batch.steps - steps)

    def _drop_cancelled(self) -> None:
        now = time.monotonic()
        for job in list(self._running.values()):
            if job.ticket.cancelled:
                self._leave(job, "cancelled")
            elif now > job.ticket.deadline:
                text, reason = job.text.finish("length")
                self._leave(job, "timed_out")
                job.ticket.post([Part(job.index, text, len(job.writing.written), reason)])
        for group in list(self._waiting):
            ticket = group[0].ticket
            if ticket.cancelled or now > ticket.deadline:
                self._waiting.remove(group)
                reason = "cancelled" if ticket.cancelled else "timed_out"
                self._metrics.endings.labels(self.name, reason).inc(len(group))
                if not ticket.cancelled:
                    ticket.post([ApiError(503, "The request waited too long.", "timed_out", retry_after=5)])

    def _admit(self) -> None:
        while self._waiting and len(self._running) + len(self._waiting[0]) <= self._limits.max_running:
            group = self._waiting.popleft()
            self._running.update({job.writing: job for job in group})
            self._batch.add([job.writing for job in group])
            self._metrics.prompt_tokens.labels(self.name).inc(len(group[0].writing.prompt_ids))

    def _deliver(self, tokens: Sequence[tuple[Writing, int]]) -> None:
        now = time.monotonic()
        self._metrics.tokens.labels(self.name).inc(len(tokens))
        for writing, token in tokens:
            job = self._running[writing]
            if job.first_token is None:
                job.first_token = now
                self._metrics.first_token.labels(self.name).observe(now - job.ticket.began)
            text, reason = job.text.put(token)
            if reason is None and len(writing.written) >= job.max_tokens:
                rest, reason = job.text.finish("length")
                text += rest
            if reason:
                self._leave(job, reason)  # before it is told: who has heard of an end finds it counted
            if text or reason:
                job.ticket.post([Part(job.index, text, len(writing.written), reason)])

    def _leave(self, job: Job, reason: str) -> None:
        del self._running[job.writing]
        self._batch.remove(job.writing)
        now, number = time.monotonic(), len(job.writing.written)
        self._metrics.endings.labels(self.name, reason).inc()
        if reason != "cancelled":
            self._metrics.seconds.labels(self.name).observe(now - job.ticket.began)
        if job.first_token is not None and number > 1 and now > job.first_token:
            self._metrics.speed.labels(self.name).observe((number - 1) / (now - job.first_token))

    def _fail(self, error: ApiError, waiting_too: bool = False) -> None:
        """Answer everything that runs with an error, and begin with an empty batch."""
        with self._changed:
            jobs = list(self._running.values())
            if waiting_too:
                jobs += [job for group in self._waiting for job in group]
                self._waiting.clear()
            self._running.clear()
        self._batch.clear()
        self._metrics.endings.labels(self.name, "failed").inc(len(jobs))
        for ticket in {job.ticket for job in jobs}:
            ticket.post([error])
        self._show_load()

    def _show_load(self) -> None:
        self._metrics.waiting.labels(self.name).set(sum(map(len, self._waiting)))
        self._metrics.running.labels(self.name).set(len(self._running))


def shutting_down() -> ApiError:
    """Return the error for requests that come, or are cut off, while the server ends."""
    return ApiError(503, "The server is shutting down.", "shutting_down", retry_after=10)
