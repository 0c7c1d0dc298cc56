"""Records that are left out, counted and compared over all processes of a run.

Each process leaves out what it cannot read itself (data/examples.py). Two things only all of them together can see: how
many records that makes, and whether processes that read the same rows left out the same ones. A disk that fails on one
host would make the replicas of a batch differ, and by that the replicas of the parameters.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxbig.distributed.multihost import gather
from jaxbig.errors import Failed


def agree_on_skipped(sources: Iterable[Any], rows: np.ndarray) -> None:
    """`Failed`, on all processes, if more records were left out over the run than may be, or if they differ between
    processes that read the same rows. To be called before a save, at the same step by all.

    rows: those of each batch that this process reads.
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
                        f"process {failing} could not read {source.where(apart[0])}, and process {reading} could, "
                        f"which reads the same rows: check the disk and memory of the first's host; nothing since the "
                        f"last checkpoint is saved, and the same command goes on from there."
                    )
        everywhere = sorted(set().union(*bad))
        if len(everywhere) > source.skip:
            raise Failed(
                f"{len(everywhere)} records cannot be read, by one process or another, and {source.skip} may be: "
                f"{'; '.join(source.where(index) for index in everywhere[:3])}, ...: mend or remove them, or raise "
                f"--data.skip-bad-records."
            )
