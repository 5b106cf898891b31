"""An engine that answers each request at once with one token, in the words of src/backend/child_engine/protocol.rs.

bench-batch puts it in the place of a `python3` that has vLLM, so that what is measured is everything but an engine.
"""

import json
import sys
import time

if "importlib.util" in " ".join(sys.argv):
    sys.exit(0)  # Yes, there is a vLLM.

MAX_MODEL_LEN, PLACES, BLOCKS = 8192, 256, 65536


def say(kind, value=None):
    print(json.dumps(kind if value is None else {kind: value}, separators=(",", ":")), flush=True)


sys.stdin.readline()
engine = {"device": "cpu", "dtype": "none", "max_num_seqs": PLACES, "max_model_len": MAX_MODEL_LEN}
say(
    "loaded",
    {
        "version": "0",
        "parameters": None,
        "max_model_len": MAX_MODEL_LEN,
        "gpus": 0,
        "kv_blocks": BLOCKS,
        "block_tokens": 16,
        "engine": engine,
    },
)


def answer(taken):
    for first in range(0, len(taken), PLACES):
        step = taken[first : first + PLACES]
        now = time.monotonic_ns()
        said = {
            "at": now,
            "took": 1,
            "running": len(step),
            "waiting": len(taken) - first - len(step),
            "kv_blocks_used": 0,
            "preempted": [],
            "first": [{"id": number, "scheduled": now, "cached": None} for number in step],
            "tokens": [(number, [5]) for number in step],
        }
        say("step", said)
        for number in step:
            say("end", {"id": number, "at": now, "reason": "length", "text": "x"})


taken, is_stream = [], False
for line in sys.stdin:
    command = json.loads(line)
    if command == "stream":
        is_stream = True
        say("running", time.monotonic_ns())
    elif command == "close":
        is_stream = False
        say("done")
    elif command == "run":
        say("running", time.monotonic_ns())
        answer(taken)
        say("done")
    elif is_stream:
        answer([request["id"] for request in command["take"]])
    else:
        taken = [request["id"] for request in command["take"]]
        say("taken", len(taken))
