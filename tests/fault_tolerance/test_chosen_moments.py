"""A run that is stopped, killed or stuck at a chosen moment.

What each process says, how soon, and how the run ends.
"""

import functools
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.run_processes import RUN, Life, done
from support.timing import crowded

from jaxbig.system.exit_codes import PEER_LOST

pytestmark = pytest.mark.slow

TRAIN = [*RUN, "--steps=60", "--evaluate-every=10", "--checkpoint-every=10"]
COMPILES = "jaxbig.train.trainer", "compile_step"
EVALUATES = "jaxbig.train.trainer", "evaluate"
PREPARES = "jaxbig.train.resume", "prepare"
RESTORES = "jaxbig.checkpoint.manager:CheckpointManager", "restore"
SAVES = "jaxbig.checkpoint.manager:CheckpointManager", "_commit"
STEPS = "jaxbig.train.step_reporter:StepReporter", "record"
READS = "jaxbig.data.core.array_source:ArraySource", "rows"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs of this file.

    They are one program for each count of processes, compiled once.
    """
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(scope="module")
def alone(place: Path) -> Callable[[int], dict[str, Any]]:
    """The summary of the run that that many processes make when nothing happens to them."""
    return functools.cache(lambda count: done(place / f"alone-{count}", count, 1, *TRAIN))


@pytest.fixture(scope="module")
def started(place: Path) -> Path:
    """The folder of a run of two processes after its first step."""
    done(place / "started", 2, 1, *RUN, "--steps=1")
    return place / "started"


@pytest.fixture
def folder(place: Path, request: pytest.FixtureRequest) -> Path:
    (made := place / re.sub(r"\W", "-", request.node.name)).mkdir()
    return made


def ended(life: Life) -> tuple[list[int], list[str], float]:
    """The codes and words of all processes, and the seconds from the blow to the last one's end."""
    said = life.end()
    now = time.monotonic()
    blows = [
        float(found[1])
        for _, text in said
        if (found := re.search(r"^struck ([\d.]+)$", text, re.M))
    ]
    assert blows, said
    return [code for code, _ in said], [text for _, text in said], now - min(blows)


def test_a_stop_at_any_moment_is_heard_and_costs_nothing(
    folder: Path, alone: Callable[[int], dict[str, Any]], noticed: Callable[[float], None]
) -> None:
    """One run of two processes, of which the second is stopped while it prepares, compiles, steps,
    restores, evaluates, saves."""
    expected = alone(2)["state_sha256"]
    steps = []
    longest = 0.0
    for place, number in (
        (PREPARES, 1),
        (COMPILES, 1),
        (STEPS, 7),
        (RESTORES, 1),
        (EVALUATES, 1),
        (SAVES, 1),
    ):
        life = Life(folder, 2, 1, *TRAIN, struck={1: (*place, str(number), "SIGTERM")})
        codes, said, seconds = ended(life)
        assert codes == [75, 75], said
        # a compiler is not interrupted, and an evaluation ends: here that is little
        assert seconds < crowded(10), said
        steps = [*steps, life.step()]
        longest = max(longest, seconds)
        assert (
            "no step was finished yet" if not life.step() else f"saved at step {life.step()}"
        ) in said[0]
    noticed(longest)
    assert steps[:2] == [0, 0] and steps[2] >= 7 and steps[3] == steps[2] and steps[4] >= 10, steps
    assert sorted(steps) == steps and steps[-1] < 60
    assert done(folder, 2, 1, *TRAIN)["state_sha256"] == expected


def test_a_kill_in_the_midst_of_a_save_costs_that_save_alone(
    folder: Path, alone: Callable[[int], dict[str, Any]], noticed: Callable[[float], None]
) -> None:
    """Of the first process, the second, and both."""
    expected = alone(2)["state_sha256"]
    for turn, killed in enumerate(([0], [1], [0, 1])):
        # the second save of a life: the first one, of a step that the life before had not saved,
        # is kept
        life = Life(
            folder,
            2,
            1,
            *TRAIN,
            struck={each: (*SAVES, str(min(turn + 1, 2)), "SIGKILL") for each in killed},
        )
        codes, said, seconds = ended(life)
        # of two, the later one may have seen the other die before its own moment
        assert -signal.SIGKILL in codes, said
        assert {codes[each] for each in killed} <= {-signal.SIGKILL, PEER_LOST}, said
        for each in {0, 1} - set(killed):
            assert (
                codes[each] == PEER_LOST
                and f"process {killed[0]} died; process {each} exits too" in said[each]
            ), said
            noticed(seconds)
            assert seconds < crowded(5)
    assert done(folder, 2, 1, *TRAIN)["state_sha256"] == expected


def test_when_a_process_raises_its_words_are_the_first_and_all_leave(
    folder: Path, noticed: Callable[[float], None]
) -> None:
    codes, said, seconds = ended(Life(folder, 2, 1, *TRAIN, struck={1: (*STEPS, "7", "raise")}))
    noticed(seconds)
    assert codes == [PEER_LOST, 1] and seconds < crowded(5), said
    assert "Traceback" in said[1] and "KeyError: 'planted'" in said[1]
    assert re.search(
        r"process 1 raised KeyError at step \d+: 'planted'; process 0 exits too", said[0]
    )
    assert "Traceback" not in said[0]


@pytest.mark.parametrize("stuck", [STEPS, READS], ids=["sleeps in the loop", "cannot read"])
@pytest.mark.parametrize("count", [1, 2])
def test_one_that_is_stuck_is_named_within_the_limit(
    count: int, stuck: tuple[str, str], folder: Path, noticed: Callable[[float], None]
) -> None:
    limit = round(crowded(4))  # no single compilation may take as long
    how = [*TRAIN, "--steps=100000", f"--guard.stuck-after={limit}", "--read-ahead=1"]
    codes, said, seconds = ended(
        Life(folder, count, 1, *how, struck={count - 1: (*stuck, "8", "sleep")})
    )
    assert codes == [1] * count and limit < seconds < limit + crowded(2), said
    noticed(seconds)
    for text in said:
        assert (
            f"nothing has moved for {limit} s (--guard.stuck-after)" in text and 'File "' in text
        ), text
    doing = "reads the next batch" if stuck == READS else "is in the loop|reads the next batch"
    assert any(
        re.search(rf"process {count - 1} ({doing}) at step \d+ \(late\)" if count > 1 else doing, s)
        for s in said
    )


@pytest.mark.parametrize(
    ("stuck", "doing"),
    [
        (PREPARES, "prepares the data"),
        (("jaxbig.checkpoint.manager", "_file_digest"), "verifies its checkpoint of step 1"),
        (("jaxbig.checkpoint.manager:ocp", "load"), "restores a checkpoint"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_stuck_before_the_first_step_is_named_within_the_limit(
    which: int, stuck: tuple[str, str], doing: str, started: Path, folder: Path
) -> None:
    """As one that is blocked in a file system.

    The other waits for it, and it was to wait for seven days.
    """
    if which == 1 and stuck[1] == "_file_digest":
        pytest.skip("the first process alone verifies files")
    shutil.copytree(started, folder, dirs_exist_ok=True)
    limit = round(crowded(4))
    how = [*RUN, "--steps=2", f"--guard.stuck-after={limit}"]
    codes, said, seconds = ended(Life(folder, 2, 1, *how, struck={which: (*stuck, "1", "sleep")}))
    assert codes == [1, 1] and limit < seconds < limit + crowded(4), said
    late = [text.split("(late)")[0] for text in said]
    assert all(f"process {which} {doing} at step 0" in text for text in late), said
