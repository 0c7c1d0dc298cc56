"""Reads batches ahead with threads of this process."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxbig.data.core.dataset import Rows
from jaxbig.data.pipeline.batch_parts import Part, PartReader, ReadAhead, Sampler, in_order


def read_with_threads(
    reader: PartReader, sampler: Sampler, steps: range, *, limits: ReadAhead
) -> Generator[Rows]:
    """Yields the batches of those steps in order; closing the generator ends the threads."""
    pool = ThreadPoolExecutor(limits.threads)
    pending = deque[list[Future[Part]]]()
    try:
        first = reader.read_batch(sampler(steps[0]))
        ahead, parts = limits.plan(first)

        def submit(step: int) -> None:
            split = np.array_split(sampler(step), parts)
            pending.append([pool.submit(reader.read, piece) for piece in split])

        def collect(step: int) -> Rows:
            return reader.merge([part.result() for part in pending.popleft()])

        yield from in_order(first, steps, ahead=ahead, submit=submit, collect=collect)
    finally:
        pool.shutdown(cancel_futures=True)
