"""Runs one target under the coverage-guided fuzzer: ``python -m tests.fuzz.drive TARGET [libFuzzer's options]``."""

from __future__ import annotations

import importlib
import logging
import os
import random
import sys
import time
import warnings

import atheris

from tests.fuzz import TARGETS

# Of any one input; the slowest take a tenth of it.
_CPU_S = 5.0


def main(name: str, options: list[str]) -> None:
    """Fuzz until an option or a crash ends it; does not return."""
    with atheris.instrument_imports(include=TARGETS[name]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    structured = getattr(target, "mutate", None)

    def check(data: bytes) -> None:
        start = time.process_time()
        target.check(data)
        assert time.process_time() - start < _CPU_S, "it takes too long"

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        generator = random.Random(seed)
        if generator.random() < 0.3 or len(data) <= target.HEADER:
            return bytes(atheris.Mutate(data, longest))
        head, stream = data[: target.HEADER], data[target.HEADER :]
        return head + structured(
            stream, generator, lambda part, most: bytes(atheris.Mutate(part, most)), longest - len(head)
        )

    extra = {} if structured is None else {"custom_mutator": mutator}
    atheris.Setup([os.environ.get("PENNODE_FUZZ_AGAIN", name), f"-max_len={target.LONGEST}", *options], check, **extra)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
