"""Runs vLLM for flashjob: settings and orders come as lines of JSON on standard input, answers go to standard output.

Both sides of the talk are described in protocol.rs. Everything that vLLM or its libraries print goes to standard error. When
standard input closes, flashjob is gone: the whole process group ends then, whatever it is doing.
"""

import json
import os
import queue
import signal
import sys
import threading
import time

# A folder that happens to be called `vllm` in the working directory is not vLLM.
sys.path[:] = [path for path in sys.path if path]


class Refused(Exception):
    """What was asked for cannot be had here."""


class Flashjob:
    """The other side."""

    def __init__(self):
        # vLLM and what it starts print where they like: the pipe is kept to ourselves.
        self.output = os.dup(1)
        os.set_inheritable(self.output, False)
        os.dup2(2, 1)
        self.orders = queue.SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        # Unbuffered: Python's own reader would be locked when this process ends in the middle of a read.
        rest = b""
        while read := os.read(0, 1 << 20):
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                self.orders.put(json.loads(line))
        os.killpg(0, signal.SIGKILL)

    def say(self, what, value=None):
        message = what if value is None else {what: value}
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self.output, line) :]


def last_sentence(error):
    """What an exception comes to, without the call that it came from."""
    # pydantic wraps what went wrong in a list of what it had been given.
    if hasattr(error, "errors") and callable(error.errors):
        try:
            return "; ".join(entry["msg"] for entry in error.errors())[:1000]
        except Exception:
            pass
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000] if text else type(error).__name__


def parameters(folder):
    """Numbers in the checkpoint's safetensors, a tied head not twice; None where it has none."""
    with open(os.path.join(folder, "config.json")) as file:
        tied = json.load(file).get("tie_word_embeddings", False)
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index) as file:
            names = set(json.load(file)["weight_map"].values())
    else:
        names = {name for name in os.listdir(folder) if name.endswith(".safetensors")}
    total = 0
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for tensor, described in header.items():
            if tensor != "__metadata__" and not (tied and tensor == "lm_head.weight"):
                count = 1
                for length in described["shape"]:
                    count *= length
                total += count
    return total if names else None


class Stats:
    """What vLLM's scheduler says of its last step."""

    def __init__(self):
        self.last = None
        self.preempted = 0

    def logger(self):
        from vllm.v1.metrics.loggers import StatLoggerBase

        stats = self

        class Logger(StatLoggerBase):
            def __init__(self, vllm_config, engine_index=0):
                pass

            def record(self, scheduler_stats=None, iteration_stats=None, *_, **__):
                stats.last = scheduler_stats or stats.last
                if iteration_stats is not None:
                    stats.preempted += iteration_stats.num_preempted_reqs

            def log_engine_initialized(self):
                pass

        return Logger


class Engine:
    """vLLM's engine, in this process."""

    def __init__(self, settings):
        threads = settings["threads"]
        if threads is not None:
            # Before torch counts processors; as many as asked for, wherever the system puts them.
            os.environ["OMP_NUM_THREADS"] = str(threads)
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        import torch

        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        if threads is not None:
            torch.set_num_threads(threads)
        self.device = "rocm" if current_platform.is_rocm() else current_platform.device_type
        if settings["device"] != "auto" and settings["device"] != self.device:
            raise Refused(
                f"device={settings['device']} cannot be had: this image's vLLM {vllm.__version__} computes on {self.device} "
                "here; use an image whose vLLM is made for it, or device=auto"
            )
        on_gpus = self.device != "cpu"
        ranks = settings["tensor_parallel_size"] or (torch.accelerator.device_count() if on_gpus else 1)
        asked = {
            key: settings[key]
            for key in (
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
        arguments = EngineArgs(
            model=settings["model"],
            tokenizer=settings["tokenizer"],
            tensor_parallel_size=ranks,
            skip_mm_profiling=True,
            limit_mm_per_prompt={"image": 0, "video": 0, "audio": 0},
            **asked,
        )
        self.stats = Stats()
        self.engine = LLMEngine.from_engine_args(arguments, stat_loggers=[self.stats.logger()])
        # In this process, as VLLM_ENABLE_V1_MULTIPROCESSING=0 has it: its requests tell which of them were preempted.
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.gpus = ranks if on_gpus else 0
        self.folder = settings["model"]
        self.version = vllm.__version__
        self.threads = torch.get_num_threads()

    def facts(self):
        config = self.engine.vllm_config
        model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
        compiled = config.compilation_config
        return {
            "version": self.version,
            "parameters": parameters(self.folder),
            "max_model_len": model.max_model_len,
            "gpus": self.gpus,
            "kv_blocks": cache.num_gpu_blocks,
            "block_tokens": cache.block_size,
            "engine": {
                "device": self.device,
                "device_name": self.device_name(),
                "dtype": str(model.dtype).removeprefix("torch."),
                "quantization": model.quantization,
                "kv_cache_dtype": str(cache.cache_dtype),
                "kernels": self.attention(),
                "threads": self.threads,
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
            },
        }

    def device_name(self):
        from vllm.platforms import current_platform

        return current_platform.get_device_name()

    def attention(self):
        """What the layers chose; several where they differ."""
        layers = self.engine.vllm_config.compilation_config.static_forward_context.values()
        found = {
            layer.get_attn_backend().get_name() for layer in layers if callable(getattr(layer, "get_attn_backend", None))
        }
        return ", ".join(sorted(found)) or None

    def run(self, taken, flashjob):
        """Hands over all of `taken` and says what becomes of it, step by step."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self.engine.vllm_config.cache_config.enable_prefix_caching:
            # What a warm-up computed must not be found by what is measured after it.
            if not self.engine.reset_prefix_cache():
                raise RuntimeError("the prefix cache cannot be emptied between two regions")
        for request in taken:
            parameters = SamplingParams(
                max_tokens=request["max_tokens"],
                ignore_eos=request["ignore_eos"],
                stop_token_ids=request["stop_tokens"],
                temperature=request["temperature"],
                top_p=request["top_p"],
                top_k=request["top_k"],
                seed=request["seed"],
                output_kind=RequestOutputKind.DELTA,
            )
            prompt = {"prompt_token_ids": request["prompt"]}
            self.engine.add_request(str(request["id"]), prompt, parameters)
        texts = {request["id"]: [] for request in taken}
        begun, preemptions, known = set(), {}, self.stats.preempted
        while self.engine.has_unfinished_requests():
            started = time.monotonic_ns()
            outputs = self.engine.step()
            at = time.monotonic_ns()
            # What is in the way of the next step from here on is told after it is known.
            requests = [self.progress(output, texts, begun) for output in outputs]
            step = {"at": at, "took": at - started, "requests": requests, **self.levels()}
            if self.stats.preempted != known:
                known = self.stats.preempted
                step["preempted"] = self.preempted(preemptions)
            flashjob.say("step", step)
        flashjob.say("done")

    def progress(self, output, texts, begun):
        request, [part] = int(output.request_id), output.outputs
        told = {"id": request, "new": list(part.token_ids)}
        texts[request].append(part.text)
        if request not in begun and told["new"]:
            begun.add(request)
            if output.metrics is not None and output.metrics.scheduled_ts > 0:
                told["scheduled"] = int(output.metrics.scheduled_ts * 1e9)
            if self.engine.vllm_config.cache_config.enable_prefix_caching:
                told["cached"] = output.num_cached_tokens or 0
        if output.finished:
            # `error` is the request's own; what vLLM has aborted unasked is not.
            if part.finish_reason not in ("length", "stop", "error"):
                raise RuntimeError(f"request {request} ended with `{part.finish_reason}`")
            told["end"] = [part.finish_reason, "".join(texts.pop(request))]
        return told

    def levels(self):
        last = self.stats.last
        if last is None:
            return {"running": 0, "waiting": 0, "kv_blocks_used": 0}
        blocks = self.engine.vllm_config.cache_config.num_gpu_blocks
        return {
            "running": last.num_running_reqs,
            "waiting": last.num_waiting_reqs,
            "kv_blocks_used": round(last.kv_cache_usage * blocks),
        }

    def preempted(self, known):
        """Requests that lost their blocks since this was asked last, once for each time."""
        found = []
        for name, request in self.scheduler.requests.items():
            times = request.num_preemptions
            # vLLM adds a few random letters to the names that it is given.
            found += [int(name.partition("-")[0])] * (times - known.get(name, 0))
            known[name] = times
        return found


def main():
    flashjob = Flashjob()
    # So that what vLLM has started is shut down on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        engine = Engine(flashjob.orders.get())
        flashjob.say("loaded", engine.facts())
        taken = []
        while True:
            order = flashjob.orders.get()
            if order == "run":
                engine.run(taken, flashjob)
                taken = []
            else:
                taken = order["take"]
                flashjob.say("taken", len(taken))
    except Refused as refused:
        flashjob.say("refused", str(refused))
    except Exception as error:
        import traceback

        traceback.print_exc()
        flashjob.say("failed", last_sentence(error))
    finally:
        # Nothing that is still to come can be asked to stop in an orderly way.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


main()
