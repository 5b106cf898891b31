"""Runs vLLM for flashjob: vLLM's own offline path, `LLM.generate`, with its steps observed.

What a step computed is seen where the offline path receives it from the engine core's process, and told while that process computes:
nothing is asked of vLLM in addition.
"""

import dataclasses
import os
import time
from collections import deque

from flashjob_driver import Refused, parameters, parsed_arguments, refuse_version, serve, step_logprobs

# The attention that layers have chosen is known in the engine core's process, and a function that is sent there can tell it.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")

FIRST_VERSION, LAST_VERSION = (0, 25), (0, 33)

# Tokens of steps and log-probabilities that wait to be told; with more, telling them comes before the next step. Some tens of
# megabytes.
MOST_UNTOLD_TOKENS = 1 << 18


def describe_worker(worker):
    """Facts that only a worker's process knows."""
    import torch

    layers = worker.vllm_config.compilation_config.static_forward_context.values()
    kernels = {layer.get_attn_backend().get_name() for layer in layers if callable(getattr(layer, "get_attn_backend", None))}
    return {"kernels": ", ".join(sorted(kernels)) or None, "threads": torch.get_num_threads()}


def own_options(options):
    """Options beyond temperature, top-p and top-k under vLLM's names."""
    bias = options.get("logit_bias")
    own = {name: value for name, value in options.items() if name != "stop_token_ids"}
    if own.get("logprobs") is not None:
        # The front end's own copy, which nobody reads, in its smallest form.
        own["flat_logprobs"] = True
    # JSON has no numbers for names.
    return {**own, "logit_bias": {int(token): value for token, value in bias.items()}} if bias else own


class Engine:
    def __init__(self, settings, flashjob):
        self.flashjob = flashjob
        threads = settings["threads"]
        if threads is not None:
            # Before torch counts processors; as many as asked for, wherever the system puts them.
            os.environ["OMP_NUM_THREADS"] = str(threads)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        import vllm

        self.version = vllm.__version__
        refuse_version("vLLM", self.version, FIRST_VERSION, LAST_VERSION)
        import torch
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        if threads is not None:
            torch.set_num_threads(threads)
        self.device = "rocm" if current_platform.is_rocm() else current_platform.device_type
        self.device_name = current_platform.get_device_name()
        if settings["device"] != "auto" and settings["device"] != self.device:
            raise Refused(
                f"device={settings['device']} cannot be had: this image's vLLM {self.version} computes on {self.device} "
                "here; use an image whose vLLM is made for it, or device=auto"
            )
        on_gpus = self.device != "cpu"
        ranks = settings["tensor_parallel_size"] or (torch.accelerator.device_count() if on_gpus else 1)
        decided = {
            key: settings[key]
            for key in (
                "model",
                "tokenizer",
                "dtype",
                "max_model_len",
                "gpu_memory_utilization",
                "kv_cache_memory_bytes",
                "max_num_seqs",
                "max_num_batched_tokens",
                "enable_prefix_caching",
                "enforce_eager",
                "block_size",
                "seed",
            )
            if settings[key] is not None
        }
        given = parsed_arguments(
            EngineArgs.add_cli_args(FlexibleArgumentParser()), settings["arguments"], "vLLM", "vllm-args"
        )
        fields = {field.name for field in dataclasses.fields(EngineArgs)}
        arguments = {
            "skip_mm_profiling": True,
            "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
            **{name: value for name, value in given.items() if name in fields},
            **decided,
            "tensor_parallel_size": ranks,
        }
        self.llm = LLM.from_engine_args(EngineArgs(**arguments))
        self.config = self.llm.llm_engine.vllm_config
        self.gpus = self.config.parallel_config.world_size if on_gpus else 0
        self.arguments = settings["arguments"]
        self.observe()

    def report(self):
        config = self.config
        model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
        compiled = config.compilation_config
        return {
            "version": self.version,
            "parameters": parameters(model.model),
            "max_model_len": model.max_model_len,
            "gpus": self.gpus,
            "kv_blocks": cache.num_gpu_blocks,
            "block_tokens": cache.block_size,
            "engine": {
                "device": self.device,
                "device_name": self.device_name,
                "dtype": str(model.dtype).removeprefix("torch."),
                "quantization": model.quantization,
                "kv_cache_dtype": str(cache.cache_dtype),
                **self.llm.collective_rpc(describe_worker)[0],
                "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
                "kv_blocks": cache.num_gpu_blocks,
                "block_tokens": cache.block_size,
                "max_model_len": model.max_model_len,
                "max_num_seqs": scheduler.max_num_seqs,
                "max_num_batched_tokens": scheduler.max_num_batched_tokens,
                "prefix_caching": bool(cache.enable_prefix_caching),
                "enforce_eager": bool(model.enforce_eager),
                "compilation_mode": getattr(compiled.mode, "name", str(compiled.mode)),
                "cuda_graphs": getattr(compiled.cudagraph_mode, "name", str(compiled.cudagraph_mode)),
                "arguments": self.arguments,
            },
        }

    def observe(self):
        """Keeps what each step brings, and tells it in time that the front end would spend waiting."""
        engine = self.llm.llm_engine
        get_output, step = engine.engine_core.get_output, engine.step
        # Where the engine core has no process of its own there is nothing to wait for.
        arrived = getattr(engine.engine_core, "outputs_queue", None)
        self.untold, self.untold_tokens, self.output = deque(), 0, None

        def observed_get_output():
            while self.untold and (arrived is None or arrived.empty() or self.untold_tokens > MOST_UNTOLD_TOKENS):
                self.tell(*self.untold.popleft())
            self.output = get_output()
            return self.output

        def observed_step():
            finished = step()
            output, self.output = self.output, None
            if output is not None:
                size = len(output.outputs)
                if self.wanted:
                    size += sum(one.new_logprobs.logprobs.size for one in output.outputs if one.new_logprobs is not None)
                self.untold.append((output, time.monotonic_ns(), finished, size))
                self.untold_tokens += size
            return finished

        engine.engine_core.get_output, engine.step = observed_get_output, observed_step

    def take(self, requests):
        self.empty_prefix_cache()
        self.requests = requests

    def run(self):
        prompts, sampling = self.prompts_and_sampling(self.requests)
        self.begin()
        self.number(self.requests)
        self.requests = None
        self.llm.generate(prompts, sampling, use_tqdm=False)
        self.tell_all()

    def stream(self, commands):
        self.empty_prefix_cache()
        self.begin()
        engine, is_open = self.llm.llm_engine, True
        while is_open or engine.has_unfinished_requests():
            # Steps go on while nothing is told; an engine without requests waits for some.
            while is_open and not (engine.has_unfinished_requests() and commands.empty()):
                self.tell_all()
                command = commands.get()
                if command == "close":
                    is_open = False
                else:
                    self.number(command["take"])
                    self.llm.enqueue(*self.prompts_and_sampling(command["take"]), use_tqdm=False)
            if engine.has_unfinished_requests():
                engine.step()
        self.tell_all()

    def empty_prefix_cache(self):
        if self.config.cache_config.enable_prefix_caching and not self.llm.reset_prefix_cache():
            # What a warm-up computed must not be found by what is measured after it.
            raise RuntimeError("the prefix cache cannot be emptied between two regions")

    def prompts_and_sampling(self, requests):
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        sampling = [
            SamplingParams(
                max_tokens=request["max_tokens"],
                ignore_eos=request["ignore_eos"],
                stop_token_ids=request["stop_tokens"] + (request["options"] or {}).get("stop_token_ids", []),
                temperature=request["temperature"],
                top_p=request["top_p"],
                top_k=request["top_k"],
                seed=request["seed"],
                **own_options(request["options"] or {}),
                stop=request["stop"],
                include_stop_str_in_output=request["include_stop"],
                # Named as vLLM names them.
                structured_outputs=StructuredOutputsParams(**request["guided"]) if request["guided"] else None,
            )
            for request in requests
        ]
        return prompts, sampling

    def begin(self):
        # Of requests that have not ended: numbers by vLLM's counter, those that have had a place in a step, and likeliest tokens of
        # those that want log-probabilities.
        self.numbers, self.begun, self.wanted = {}, set(), {}
        self.levels = {"running": 0, "waiting": 0, "kv_blocks_used": 0}
        self.last = time.monotonic_ns()
        self.flashjob.say("running", self.last)

    def number(self, requests):
        """Notes the numbers of `requests`, which vLLM is handed next."""
        first = self.llm.request_counter.counter
        self.numbers.update((first + place, request["id"]) for place, request in enumerate(requests))
        wanted = ((request["id"], (request["options"] or {}).get("logprobs")) for request in requests)
        self.wanted.update((number, count) for number, count in wanted if count is not None)

    def number_of(self, name):
        """The number of a request by vLLM's name for it: the counter, and a few random letters within the engine core.

        None of one that a stop text has ended: the engine core may be steps ahead of the front end, which finds it.
        """
        return self.numbers.get(int(name.partition("-")[0]))

    def tell_all(self):
        while self.untold:
            self.tell(*self.untold.popleft())

    def tell(self, output, at, finished, size):
        """Says a step: its tokens with the engine core's time, which is of the same clock, and what ended with the front end's."""
        self.untold_tokens -= size
        computed = int(output.timestamp * 1e9)
        if output.outputs:
            outputs = [(self.number_of(one.request_id), one) for one in output.outputs]
            outputs = [(number, one) for number, one in outputs if number is not None]
            step = {
                "at": computed,
                "took": max(0, computed - self.last),
                "tokens": [(number, one.new_token_ids) for number, one in outputs],
                **self.levels_of(output.scheduler_stats),
                **self.events_of(outputs),
            }
            if self.wanted:
                step["logprobs"] = [self.logprobs_of(*entry) for entry in outputs if entry[1].new_logprobs is not None]
            self.flashjob.say("step", step)
        self.last = max(self.last, computed)
        for request in finished:
            [part] = request.outputs
            number = self.number_of(request.request_id)
            # `error` is the request's own; what vLLM has aborted unasked is not.
            if part.finish_reason not in ("length", "stop", "error"):
                raise RuntimeError(f"request {number} ended with `{part.finish_reason}`")
            # Otherwise it is a text that ended it, or none.
            by_token = part.finish_reason == "stop" and not isinstance(part.stop_reason, str)
            end = {"id": number, "at": at, "reason": part.finish_reason, "text": part.text, "by_token": by_token}
            self.flashjob.say("end", end)
            del self.numbers[int(request.request_id.partition("-")[0])]
            self.begun.discard(number)
            self.wanted.pop(number, None)

    def logprobs_of(self, number, one):
        """Those that a request wants: rows of a step have as many as any request does."""
        tokens, logprobs = (rows[:, : self.wanted[number] + 1].tolist() for rows in one.new_logprobs[:2])
        return step_logprobs(number, tokens, logprobs)

    def levels_of(self, stats):
        if stats is not None:
            self.levels = {
                "running": stats.num_running_reqs,
                "waiting": stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
                "kv_blocks_used": round(stats.kv_cache_usage * self.config.cache_config.num_gpu_blocks),
            }
        return self.levels

    def events_of(self, outputs):
        first, preempted = [], []
        for number, one in outputs:
            if not one.events and one.prefill_stats is None:
                continue
            scheduled = [event.timestamp for event in one.events or () if event.type.name == "SCHEDULED"]
            preempted += [number for event in one.events or () if event.type.name == "PREEMPTED"]
            if number not in self.begun:
                self.begun.add(number)
                cached = None
                if self.config.cache_config.enable_prefix_caching and one.prefill_stats is not None:
                    cached = one.prefill_stats.num_cached_tokens
                first.append({"id": number, "scheduled": int(scheduled[0] * 1e9) if scheduled else None, "cached": cached})
        return {"first": first, "preempted": preempted}


serve(Engine)
