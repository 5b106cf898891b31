"""The half of the protocol that drivers of all engines share: protocol.rs describes its messages.

Settings and commands come as lines of JSON on standard input, messages go to standard output. Everything that the engine or its
libraries print goes to standard error. When standard input closes, flashjob is gone: the whole process group ends then, whatever it
is doing.
"""

import argparse
import difflib
import json
import os
import queue
import shutil
import signal
import sys
import threading


# In the place of numbers that JSON does not have: what is as unlikely is ruled out.
LEAST_LOGPROB = -3e38


class Refused(Exception):
    """This image or machine lacks what the job asks for."""


class Flashjob:
    """The other side."""

    def __init__(self):
        # The engine and what it starts print where they like: the pipe is kept to ourselves.
        self.output = os.dup(1)
        os.set_inheritable(self.output, False)
        os.dup2(2, 1)
        self.lock = threading.Lock()
        self.commands = queue.SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        # Unbuffered: Python's own reader would be locked when this process ends in the middle of a read.
        rest = b""
        while read := os.read(0, 1 << 20):
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                self.commands.put(json.loads(line))
        shutil.rmtree(os.environ.get("FLASHJOB_TEMPORARY_DIRECTORY", ""), ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    def say(self, kind, value=None):
        message = kind if value is None else {kind: value}
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self.lock:
            while line:
                line = line[os.write(self.output, line) :]


def last_sentence(error):
    """Message of an exception, without the call that it came from."""
    # pydantic wraps a message in a list of what it had been given.
    if hasattr(error, "errors") and callable(error.errors):
        try:
            return "; ".join(entry["msg"] for entry in error.errors())[:1000]
        except Exception:
            pass
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000] if text else type(error).__name__


def step_logprobs(number, tokens, logprobs):
    """Log-probabilities of a request's tokens of a step, for each the chosen one and the likeliest ones."""
    # Of a number that is none, `max` keeps its first argument.
    return {"id": number, "tokens": tokens, "logprobs": [[max(LEAST_LOGPROB, value) for value in row] for row in logprobs]}


def refuse_version(engine, version, first, last):
    """Refuses a version outside `first` to `last`, pairs of numbers or longer ones."""
    try:
        found = tuple(int(number) for number in version.split("+")[0].split(".")[: len(first)])
    except ValueError:
        found = ()
    if not first <= found <= last:
        names = " to ".join(dict.fromkeys(".".join(map(str, numbers)) for numbers in (first, last)))
        raise Refused(
            f"this image has {engine} {version}, and this version of flashjob drives {engine} {names}; "
            f"use an image with one of those, or backend=candle"
        )


def parsed_arguments(parser, arguments, engine, key):
    """The user's `arguments` by the names of the engine's own settings, read by the engine's own `parser`."""
    actions = {
        option.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    words = []
    for name, value in arguments.items():
        base, dot, rest = name.partition(".")
        if base not in actions:
            close = difflib.get_close_matches(base, actions, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise Refused(f"{key}: {engine} has no argument `{base}`{hint}")
        option = "--" + base.replace("_", "-") + dot + rest
        if value is True and not dot:
            words.append(option)
        elif value is False and not dot and "no_" + base in actions:
            words.append("--no-" + base.replace("_", "-"))
        elif value is False and not dot and actions[base].nargs == 0:
            # A switch that there is no opposite of is off unless it is named.
            continue
        elif isinstance(value, list):
            words += [option, *(item if isinstance(item, str) else json.dumps(item) for item in value)]
        else:
            words.append(f"{option}={value if isinstance(value, str) else json.dumps(value)}")
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False

    def refuse(message):
        raise Refused(f"{key}: {engine} refuses it: {message}")

    parser.error = refuse
    return vars(parser.parse_args(words))


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


def serve(engine_type):
    """Loads an engine of `engine_type` and runs what flashjob commands, until it ends this process.

    An engine has `report()`, `take(requests)`, which makes requests ready before the region, and `run()`, which hands all of them to
    the engine and says steps and ends. One that takes requests while it runs has `stream(commands)`, which does so with each
    `take` until `close`.
    """
    flashjob = Flashjob()
    # So that what the engine has started is shut down on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        engine = engine_type(flashjob.commands.get(), flashjob)
        flashjob.say("loaded", engine.report())
        while True:
            command = flashjob.commands.get()
            if command == "run":
                engine.run()
                flashjob.say("done")
            elif command == "stream":
                engine.stream(flashjob.commands)
                flashjob.say("done")
            else:
                engine.take(command["take"])
                flashjob.say("taken", len(command["take"]))
    except Refused as refused:
        flashjob.say("refused", str(refused))
    except Exception as error:
        import traceback

        traceback.print_exc()
        flashjob.say("failed", last_sentence(error))
    finally:
        # Nothing that is still to come can be asked to stop in an orderly way.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
