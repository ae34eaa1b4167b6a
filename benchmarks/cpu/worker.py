"""One engine in its own process and, for the peers, in their own environment: imports nothing of this project.

    python -m benchmarks.cpu.worker ENGINE JSON      (started by `benchmarks.cpu`, which speaks JSON lines with it)

First line out: what runs. Then, for each line in ({"prompts": [[ids]], "output_tokens": n}), one line out:
{"total_s", "first_s", "tokens"}: wall time until the last token, until the first token of the first request that has
one, and the new tokens of every request. Between two lines a worker sleeps, so that its neighbours have the machine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

ENGINES = ("ours", "transformers", "llamacpp", "openvino")


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like; the answers keep their own channel

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        engine = importlib.import_module(f"benchmarks.cpu.engine_{name}").load(options)
    except ImportError as error:
        return answer({"missing": f"{error}"})
    answer({"info": engine.info})
    for line in sys.stdin:
        request = json.loads(line)
        total_s, first_s, tokens = engine.generate(request["prompts"], request["output_tokens"])
        answer({"total_s": total_s, "first_s": first_s, "tokens": tokens})
    return None


if __name__ == "__main__":
    main()
