"""A plugin of SGLang's: what each step computed, told where it is known, and what has ended where its text is known.

SGLang loads it in each of its processes. A scheduler writes a line of JSON a step to the driver's socket, from a thread of its own, so
that it never waits for the reader. Requests are not streamed: SGLang then sends and detokenises as it does by itself.
"""

import json
import os
import queue
import socket
import threading
import time

SOCKET = "FLASHJOB_STEPS"

# Both are set in the driver's process: what is called with name, finish reason, text and number of tokens of each request that has
# ended, and what is called when a process of SGLang's has failed.
on_end = on_failure = None


def failed(*_):
    """Handler of SIGQUIT. A function that has a name, since SGLang hands its settings on to its processes."""
    if on_failure is not None:
        on_failure()


def platform():
    """Entry point: the platform, where there is no GPU."""
    import torch

    return None if torch.cuda.is_available() else "flashjob_sglang:Processor"


def __getattr__(name):
    """A processor as a platform. SGLang's own one wants kernels that PyPI does not have; this one does without.

    Made where it is asked for: SGLang cannot be imported yet when this module is.
    """
    if name != "Processor":
        raise AttributeError(name)
    from sglang.srt.platforms.cpu import CpuDeviceMixin
    from sglang.srt.platforms.device_mixin import PlatformEnum
    from sglang.srt.platforms.interface import SRTPlatform

    class Processor(CpuDeviceMixin, SRTPlatform):
        _enum = PlatformEnum.OOT

        def get_device(self, device_id=0):
            return "cpu"

        def get_default_attention_backend(self):
            return "torch_native"

    globals()[name] = Processor
    return Processor


def hooks():
    """Entry point: what is observed."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    managers = "sglang.srt.managers"
    HookRegistry.register(
        f"{managers}.scheduler.Scheduler.process_batch_result", observed_step, HookType.AROUND
    )
    HookRegistry.register(
        f"{managers}.tokenizer_manager.TokenizerManager._handle_batch_output", observed_output, HookType.AROUND
    )


class Steps:
    """The way from a scheduler to the driver."""

    def __init__(self):
        self.last = 0
        self.lines = queue.SimpleQueue()
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(os.environ[SOCKET])
        threading.Thread(target=self.send, daemon=True).start()

    def send(self):
        while True:
            self.connection.sendall(json.dumps(self.lines.get(), separators=(",", ":")).encode() + b"\n")


steps = None


def observed_step(process, scheduler, batch, result):
    process(scheduler, batch, result)
    at = time.monotonic_ns()
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    # All ranks of a model know the same.
    if parallel.attn_tp_rank != 0 or parallel.pp_rank != 0:
        return
    global steps
    if steps is None:
        steps = Steps()
    launched = int(batch.launch_ts * 1e9) if batch.launch_ts else at
    tokens, logprobs, first, retracted = [], [], [], []
    for request in batch.reqs:
        told = getattr(request, "flashjob_told", None)
        if told is None:
            # Its first place in a step; of a long prompt this may be one of several.
            told = request.flashjob_told = 0
            request.flashjob_retractions = 0
            first.append((request.rid, launched, request.cached_tokens))
        ids = request.output_ids
        if len(ids) > told:
            tokens.append((request.rid, ids[told:].tolist()))
            if request.return_logprob:
                logprobs.append((request.rid, *logprobs_of(request.logprob, told, tokens[-1][1])))
            request.flashjob_told = len(ids)
        if request.retraction_count > request.flashjob_retractions:
            retracted += [request.rid] * (request.retraction_count - request.flashjob_retractions)
            request.flashjob_retractions = request.retraction_count
    step = {
        "at": at,
        "took": at - max(steps.last, launched),
        "tokens": tokens,
        "first": first,
        "preempted": retracted,
        "rank": parallel.dp_rank or 0,
        "running": len(scheduler.running_batch.reqs),
        "waiting": len(scheduler.waiting_queue),
        "tokens_used": scheduler.max_total_num_tokens
        - scheduler.token_to_kv_pool_allocator.available_size()
        - scheduler.tree_cache.evictable_size(),
    }
    if logprobs:
        step["logprobs"] = logprobs
    steps.last = at
    steps.lines.put(step)


def logprobs_of(logprob, told, tokens):
    """Rows of tokens and of their log-probabilities: for each of `tokens` itself and the likeliest ones."""
    chosen, top, top_tokens = (
        values[told : told + len(tokens)]
        for values in (logprob.output_token_logprobs_val, logprob.output_top_logprobs_val, logprob.output_top_logprobs_idx)
    )
    if logprob.top_logprobs_num == 0:
        top = top_tokens = [[]] * len(tokens)
    return (
        [[token, *others] for token, others in zip(tokens, top_tokens)],
        [[value, *others] for value, others in zip(chosen, top)],
    )


async def observed_output(handle, manager, output):
    states = [manager.rid_to_state.get(name) for name in output.rids]
    await handle(manager, output)
    if on_end is None:
        return
    for name, state, reason in zip(output.rids, states, output.finished_reasons):
        if reason is not None and state is not None:
            on_end(name, reason, state.get_text(), len(state.output_ids))
