"""Time an ONNX file by pyperf and plain ONNX Runtime, without a line of tcompress.

`noise.py agreement` runs it; what it prints by itself is pyperf's. pyperf starts fresh processes,
calibrates the number of calls in each, and leaves out the first values.
"""

import os

import numpy as np
import onnxruntime
import pyperf


def add_arguments(command: list[str], arguments: object) -> None:
    """Pass our own options on to pyperf's workers."""
    command.extend(["--model", str(vars(arguments)["model"])])
    for name in ("batch", "tokens", "threads"):
        command.extend([f"--{name}", str(vars(arguments)[name])])


def main() -> None:
    """Time one file at one shape."""
    runner = pyperf.Runner(add_cmdline_args=add_arguments)
    runner.argparser.add_argument("--model", required=True)
    runner.argparser.add_argument("--batch", type=int, default=1)
    runner.argparser.add_argument("--tokens", type=int, default=128)
    runner.argparser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = runner.parse_args()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(
        arguments.model, options, providers=["CPUExecutionProvider"]
    )
    shape = (arguments.batch, arguments.tokens)
    rng = np.random.default_rng(0)
    values = {
        "input_ids": rng.integers(1000, 20000, shape),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    inputs = {item.name: values[item.name] for item in session.get_inputs()}
    runner.bench_func("call", session.run, None, inputs)


if __name__ == "__main__":
    main()
