"""A traced program: a number and a function are tuned until the result is 12.

    python clients/python/examples/traced.py                # a model of three lines, called from here
    python clients/python/examples/traced.py --llm server   # the server's endpoint (OPTOD_LLM_URL, OPTOD_LLM_MODEL, OPTOD_LLM_KEY)

Without OPTOD_ADDRESS a private server is started and stopped again.
"""

import argparse
import json

from optod.optimizers import OptoPrime
from optod.trace import ExecutionError, bundle, node


@bundle(trainable=True)
def scale(v):
    """Scales v."""
    return v * 2


def by_rule(messages, **_):
    """Stands for a language model: proposes a better number."""
    return json.dumps({"reasoning": "2 * 5.5 + 1 = 12", "suggestion": {"x0": 5.5}})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llm", choices=["rule", "server"], default="rule")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    x = node(-1.0, name="x", trainable=True, description="a number")
    optimizer = OptoPrime([x, scale.parameter], llm=by_rule if options.llm == "rule" else None, memory_size=3)
    for step in range(options.steps):
        try:
            y = scale(x) + 1
            feedback = "right" if y.data == 12 else f"should be 12, is {y.data}"
        except ExecutionError as error:          # a failed run is feedback too
            y = error.exception_node
            feedback = y.create_feedback("full")
        print(f"step {step}: x = {x.data}, result = {y.data}")
        if feedback == "right":
            break
        optimizer.zero_feedback()
        optimizer.backward(y, feedback)
        optimizer.step()
    info = optimizer.session.refresh().info
    print(f"{info.name}: {info.version_count} versions, {info.usage.llm_calls} model calls, values {optimizer.session.values()}")


if __name__ == "__main__":
    main()
