"""Counts records that could not be read, and compares the counts over all processes of a run.

Each process skips the records that it cannot read itself (data/records/). Only all of them together
can see how many records that is, and whether processes that read the same rows skipped the same
ones: a disk that fails on one host would make the replicas of a batch differ, and so the replicas
of the parameters.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxbig.distributed.multihost import gather
from jaxbig.errors import Failed


def agree_on_skipped(sources: Iterable[Any], rows: np.ndarray) -> None:
    """Compares the skipped records; all processes call it before the save of the same step.

    Args:
      sources: of the run; one without `skip` is ignored.
      rows: [N], those of each batch that this process reads.

    Raises:
      Failed: on all processes, if the run skipped more records than allowed, or if processes that
        read the same rows skipped different ones.
    """
    skipping = [source for source in sources if getattr(source, "skip", 0)]
    if not skipping or jax.process_count() == 1:
        return
    share = zlib.crc32(np.ascontiguousarray(rows, np.int64).tobytes())
    answers = gather([share, [sorted(source.bad) for source in skipping]])
    readers: dict[int, list[int]] = {}
    for process, (share, _) in enumerate(answers):
        readers.setdefault(share, []).append(process)
    for number, source in enumerate(skipping):
        bad = [set(each[number]) for _, each in answers]
        for first, *others in readers.values():
            for other in others:
                if apart := sorted(bad[first] ^ bad[other]):
                    failing, reading = (first, other) if apart[0] in bad[first] else (other, first)
                    raise Failed(
                        f"process {failing} could not read {source.where(apart[0])}, and process "
                        f"{reading} could, which reads the same rows: check the disk and memory of "
                        f"the first's host; nothing since the last checkpoint is saved, and the "
                        f"same command resumes from there."
                    )
        everywhere = sorted(set().union(*bad))
        if len(everywhere) > source.skip:
            raise Failed(
                f"{len(everywhere)} records cannot be read, by one process or another, and "
                f"{source.skip} may be: "
                f"{'; '.join(source.where(index) for index in everywhere[:3])}, ...: fix or remove "
                f"them, or raise --data.skip-bad-records."
            )
