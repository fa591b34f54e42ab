"""What a model's requests that have ended add up to, as reports tell it."""

from __future__ import annotations

from chiron.policy.snapshots import Traffic
from chiron.sim.ledger import Ledger
from chiron.sim.router import ModelRouter


class Finished:
    """What a model's requests that ended add up to since the simulation began."""

    def __init__(self) -> None:
        self._interactive = 0
        self._batch = 0
        self._output_tokens = 0
        self._prompt_tokens = 0
        self._service_s = 0.0
        self._output_tokens_sq = 0.0
        self._batch_output_tokens = 0
        self._batch_prompt_tokens = 0
        self._batch_service_s = 0.0
        self._batch_output_tokens_sq = 0.0

    def add(self, finished: list[int], ledger: Ledger) -> None:
        """Add requests that have finished."""
        all_outputs, all_prompts = ledger.output_tokens, ledger.prompt_tokens
        finish_s, submitted_s, is_batch = ledger.finish_s, ledger.submitted_s, ledger.is_batch
        outputs = [all_outputs[request_id] for request_id in finished]
        self._output_tokens += sum(outputs)
        self._output_tokens_sq += sum([tokens * tokens for tokens in outputs])
        self._prompt_tokens += sum([all_prompts[request_id] for request_id in finished])
        services = [finish_s[request_id] - submitted_s[request_id] for request_id in finished]
        self._service_s = sum(services, self._service_s)
        batch = 0
        if ledger.has_batch:
            for request_id, output_tokens, service_s in zip(finished, outputs, services, strict=True):
                if is_batch[request_id]:
                    batch += 1
                    self._batch_output_tokens += output_tokens
                    self._batch_output_tokens_sq += output_tokens * output_tokens
                    self._batch_prompt_tokens += all_prompts[request_id]
                    self._batch_service_s += service_s
        self._batch += batch
        self._interactive += len(finished) - batch

    def traffic(self, router: ModelRouter, now: float) -> Traffic:
        """The counts since the beginning."""
        return Traffic(
            interval_s=now,
            arrived_interactive=router.arrived_interactive,
            arrived_batch=router.arrived_batch,
            queued_interactive=len(router.interactive),
            finished_interactive=self._interactive,
            finished_batch=self._batch,
            finished_output_tokens=self._output_tokens,
            finished_prompt_tokens=self._prompt_tokens,
            finished_service_s=self._service_s,
            finished_output_tokens_sq=self._output_tokens_sq,
            finished_batch_output_tokens=self._batch_output_tokens,
            finished_batch_prompt_tokens=self._batch_prompt_tokens,
            finished_batch_service_s=self._batch_service_s,
            finished_batch_output_tokens_sq=self._batch_output_tokens_sq,
        )
