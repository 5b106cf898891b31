"""Runs SGLang for flashjob: its own offline path, `Engine.generate` without streaming, with its steps observed by a plugin."""

import argparse
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time

import flashjob_sglang
from flashjob_driver import Refused, parameters, parsed_arguments, refuse_version, serve, step_logprobs

# Functions without a promise are observed: exactly what was tried.
FIRST_VERSION = LAST_VERSION = (0, 5, 23)

PLUGIN = """[sglang.srt.plugins]
flashjob = flashjob_sglang:hooks
[sglang.srt.platforms]
flashjob = flashjob_sglang:platform
"""


def install_plugin():
    """Puts the plugin where SGLang finds it: its processes get this one's list of folders."""
    folder = tempfile.mkdtemp(prefix="plugin-")
    with open(os.path.join(folder, "flashjob_sglang.py"), "w") as file:
        file.write(flashjob_sglang.source)
    described = os.path.join(folder, "flashjob_sglang-0.dist-info")
    os.mkdir(described)
    for name, text in (("METADATA", "Metadata-Version: 2.1\nName: flashjob-sglang\nVersion: 0\n"), ("entry_points.txt", PLUGIN)):
        with open(os.path.join(described, name), "w") as file:
            file.write(text)
    sys.path.insert(0, folder)
    return folder


def own_options(options):
    """Options beyond temperature, top-p and top-k under SGLang's names."""
    names = {"min_tokens": "min_new_tokens"}
    return {
        names.get(name, name): value
        for name, value in options.items()
        # A list of biases makes SGLang's sampler slower, even one without any.
        if name not in ("stop_token_ids", "logprobs") and value is not None
    }


class Engine:
    def __init__(self, settings, flashjob):
        self.flashjob = flashjob
        if settings["threads"] is not None:
            # Before torch counts processors, here and in the scheduler.
            os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
        # Log-probabilities before temperature, whatever else is in a batch.
        os.environ["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "1"
        from sglang.version import __version__ as version

        self.version = version
        refuse_version("SGLang", version, FIRST_VERSION, LAST_VERSION)
        folder = install_plugin()
        self.half_ended, self.lock, self.untold = {}, threading.Lock(), 0
        self.listen(folder)
        import torch

        self.on_gpus = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpus else "cpu"
        if torch.version.hip and self.on_gpus:
            self.device = "rocm"
        if settings["device"] != "auto" and settings["device"] != self.device:
            raise Refused(
                f"device={settings['device']} cannot be had: SGLang {version} computes on {self.device} here; use an image and "
                "a machine that have it, or device=auto"
            )
        arguments = self.engine_arguments(settings)
        from sglang.srt.entrypoints.engine import Engine as SglangEngine

        flashjob_sglang.on_failure = self.fail
        self.engine = SglangEngine(**arguments, custom_sigquit_handler=flashjob_sglang.failed)
        self.prefix_caching = not arguments["disable_radix_cache"]
        self.information = self.engine.get_server_info()
        # SGLang cuts what goes beyond without a word; prompts have to be a little shorter still.
        self.longest = self.information["max_req_input_len"] + 4
        self.arguments = settings["arguments"]
        self.own_signals()
        self.remove_shared_memory()
        flashjob_sglang.on_end = self.on_end
        self.take_count = 0

    def engine_arguments(self, settings):
        """Settings in SGLang's words; `None` leaves the choice to SGLang."""
        import torch
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser(allow_abbrev=False)
        ServerArgs.add_cli_args(parser)
        given = parsed_arguments(parser, settings["arguments"], "SGLang", "sglang-args")
        most_tokens = settings["max_num_batched_tokens"]
        engines = settings["data_parallel_size"] or 1
        decided = {
            "model_path": settings["model"],
            "tokenizer_path": settings["tokenizer"],
            "dtype": settings["dtype"],
            "tp_size": settings["tensor_parallel_size"] or (max(1, torch.cuda.device_count() // engines) if self.on_gpus else 1),
            "dp_size": engines,
            "context_length": settings["max_model_len"],
            "mem_fraction_static": settings["gpu_memory_utilization"],
            "max_running_requests": settings["max_num_seqs"],
            "chunked_prefill_size": most_tokens,
            "max_prefill_tokens": most_tokens,
            "page_size": settings["block_size"],
            "random_seed": settings["seed"],
        }
        arguments = {
            "log_level": "warning",
            # Otherwise a scheduler without work takes a whole processor.
            "sleep_on_idle": True,
            **given,
            **{name: value for name, value in decided.items() if value is not None},
            "disable_radix_cache": not settings["enable_prefix_caching"],
        }
        if settings["enforce_eager"]:
            arguments["disable_cuda_graph"] = True
        if not self.on_gpus:
            # What PyPI's SGLang has for a processor.
            arguments = {
                "attention_backend": "torch_native",
                "sampling_backend": "pytorch",
                "grammar_backend": "none",
                **arguments,
                "device": "cpu",
                "disable_cuda_graph": True,
            }
        return arguments

    def own_signals(self):
        """Takes back the signals that SGLang's event loop has taken: on SIGTERM it would finish its requests first."""
        for number in (signal.SIGTERM, signal.SIGQUIT):
            self.engine.loop.remove_signal_handler(number)
        # SGLang's processes are of this group, which flashjob signals as a whole.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGQUIT, flashjob_sglang.failed)

    def fail(self):
        self.flashjob.say("failed", "a process of SGLang has ended; its last lines in the log say why")
        os._exit(1)

    def remove_shared_memory(self):
        """Its name, which would outlive a process that is killed; those that have it open go on."""
        reader = getattr(self.engine.tokenizer_manager, "load_snapshot_reader", None)
        path = getattr(reader, "path", None)
        if isinstance(path, str) and os.path.exists(path):
            os.unlink(path)

    def report(self):
        information, manager = self.information, self.engine.tokenizer_manager
        self.page_size = information["page_size"]
        # Of each data-parallel rank.
        tokens = information["max_total_num_tokens"] * information["dp_size"]
        state = information["internal_states"][0]
        return {
            "version": self.version,
            "parameters": parameters(information["model_path"]),
            "max_model_len": self.longest,
            "gpus": information["tp_size"] * information["pp_size"] * information["dp_size"] if self.on_gpus else 0,
            "kv_blocks": tokens // self.page_size,
            "block_tokens": self.page_size,
            "engine": {
                "device": self.device,
                "device_name": self.device_name(),
                "dtype": str(manager.model_config.dtype).removeprefix("torch."),
                "quantization": information["quantization"],
                "kv_cache_dtype": information["kv_cache_dtype"],
                "kernels": information["attention_backend"],
                "sampling_kernels": information["sampling_backend"],
                "data_parallel_size": information["dp_size"],
                "tensor_parallel_size": information["tp_size"],
                "kv_blocks": tokens // self.page_size,
                "block_tokens": self.page_size,
                "max_model_len": self.longest,
                "max_num_seqs": state.get("effective_max_running_requests_per_dp"),
                "max_num_batched_tokens": information["chunked_prefill_size"],
                "prefix_caching": self.prefix_caching,
                "enforce_eager": information["disable_cuda_graph"],
                "arguments": self.arguments,
            },
        }

    def device_name(self):
        import torch

        return torch.cuda.get_device_name() if self.on_gpus else "cpu"

    def take(self, requests):
        if self.prefix_caching and not self.empty_prefix_cache():
            # What a warm-up computed must not be found by what is measured after it.
            raise RuntimeError("the prefix cache cannot be emptied between two regions")
        seeded = [request["id"] for request in requests if request["seed"] is not None]
        if seeded and not self.information["enable_deterministic_inference"]:
            raise Refused(
                f"request {seeded[0]} sets a seed, and SGLang honours one only with enable_deterministic_inference; set that in "
                "sglang-args, or leave `seed` out"
            )
        unstopped = [request["id"] for request in requests if request["ignore_eos"] and (request["options"] or {}).get("stop_token_ids")]
        if unstopped:
            raise Refused(
                f"request {unstopped[0]} has stop_token_ids and ignore_eos, and SGLang ignores both kinds of tokens or none; leave "
                "one of them out"
            )
        too_long = [request for request in requests if len(request["prompt"]) + request["max_tokens"] > self.longest]
        if too_long:
            request = too_long[0]
            raise Refused(
                f"request {request['id']} has {len(request['prompt'])} tokens and asks for {request['max_tokens']}, and SGLang "
                f"generates up to {self.longest} in all here; raise max-model-len or max_total_tokens in sglang-args"
            )
        self.take_count += 1
        self.numbers = {f"{self.take_count}-{request['id']}": request["id"] for request in requests}
        self.prompts = [request["prompt"] for request in requests]
        self.wanted = [(request["options"] or {}).get("logprobs") for request in requests]
        self.sampling = [
            {
                "max_new_tokens": request["max_tokens"],
                "ignore_eos": request["ignore_eos"],
                "stop_token_ids": request["stop_tokens"] + (request["options"] or {}).get("stop_token_ids", []),
                "temperature": request["temperature"],
                "top_p": request["top_p"],
                "top_k": request["top_k"] or -1,
                "stop": request["stop"],
                "no_stop_trim": request["include_stop"],
                **self.guided(request),
                **({} if request["seed"] is None else {"sampling_seed": request["seed"]}),
                **own_options(request["options"] or {}),
            }
            for request in requests
        ]

    def empty_prefix_cache(self):
        # A scheduler that works ahead is idle a step after its last answer.
        flush = self.engine.tokenizer_manager.flush_cache(timeout_s=60)
        return self.engine.loop.run_until_complete(flush).success

    def guided(self, request):
        """What a text must be, in SGLang's words."""
        if request["guided"] is None:
            return {}
        [(kind, value)] = request["guided"].items()
        if self.information["grammar_backend"] == "none":
            raise Refused(
                f"request {request['id']} has a {kind} that its text must be of, and SGLang has no grammar backend here; set "
                "grammar_backend in sglang-args, or leave it out"
            )
        if kind == "grammar":
            raise Refused(f"request {request['id']} has a grammar in Lark's syntax, which SGLang does not take; use backend=candle")
        if kind == "choice":
            return {"regex": "|".join(re.escape(text) for text in value)}
        return {"json_object": {"json_schema": '{"type": "object"}'}, "json": {"json_schema": value}, "regex": {"regex": value}}[kind]

    def run(self):
        # Levels by data-parallel rank.
        self.levels, self.counts, self.untold = {}, dict.fromkeys(self.numbers, 0), len(self.numbers)
        self.all_told = threading.Event()
        self.flashjob.say("running", time.monotonic_ns())
        if self.prompts:
            logprobs = {}
            if any(count is not None for count in self.wanted):
                logprobs["return_logprob"] = [count is not None for count in self.wanted]
                logprobs["top_logprobs_num"] = [count or 0 for count in self.wanted]
            self.engine.generate(
                input_ids=self.prompts, sampling_params=self.sampling, rid=list(self.numbers), stream=False, **logprobs
            )
            # The scheduler's last line may still be on its way.
            if not self.all_told.wait(timeout=60):
                raise RuntimeError("SGLang's scheduler has not told all tokens of requests that have ended")

    def listen(self, folder):
        """Reads what schedulers tell."""
        path = os.path.join(folder, "steps")
        os.environ[flashjob_sglang.SOCKET] = path
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()

        def read(connection):
            for line in connection.makefile("rb"):
                self.on_step(json.loads(line))

        def accept():
            while True:
                connection, _ = server.accept()
                threading.Thread(target=read, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def on_step(self, told):
        with self.lock:
            # A scheduler that works ahead has a step without tokens after the last one that ends a request.
            if self.untold == 0:
                return
            tokens = [(name, ids) for name, ids in told["tokens"] if name in self.counts]
            first = [entry for entry in told["first"] if entry[0] in self.counts]
            self.levels[told["rank"]] = (told["running"], told["waiting"], told["tokens_used"])
            running, waiting, used = map(sum, zip(*self.levels.values()))
            step = {
                "at": told["at"],
                "took": told["took"],
                "tokens": [(self.numbers[name], ids) for name, ids in tokens],
                "first": [
                    {
                        "id": self.numbers[name],
                        "scheduled": scheduled,
                        "cached": cached if self.prefix_caching else None,
                    }
                    for name, scheduled, cached in first
                ],
                "preempted": [self.numbers[name] for name in told["preempted"] if name in self.numbers],
                "running": running,
                "waiting": waiting,
                "kv_blocks_used": -(-used // self.page_size),
            }
            if "logprobs" in told:
                entries = (entry for entry in told["logprobs"] if entry[0] in self.counts)
                step["logprobs"] = [step_logprobs(self.numbers[name], *rows) for name, *rows in entries]
            self.flashjob.say("step", step)
            for name, ids in tokens:
                self.counts[name] += len(ids)
                if name in self.half_ended and self.half_ended[name][0] <= self.counts[name]:
                    self.say_end(self.half_ended.pop(name)[1])

    def on_end(self, name, reason, text, tokens):
        """A request has its text. Its tokens come on another way, perhaps a little later."""
        at = time.monotonic_ns()
        number = self.numbers.get(name)
        if number is None:
            return
        kind = {"length": "length", "stop": "stop"}.get(reason["type"], "error")
        # Otherwise it is a text that ended it, or none.
        by_token = kind == "stop" and not isinstance(reason.get("matched"), str)
        end = {"id": number, "at": at, "reason": kind, "text": text, "by_token": by_token}
        with self.lock:
            if self.counts[name] >= tokens:
                self.say_end(end)
            else:
                self.half_ended[name] = (tokens, end)

    def say_end(self, end):
        self.flashjob.say("end", end)
        self.untold -= 1
        if self.untold == 0:
            self.all_told.set()



serve(Engine)
