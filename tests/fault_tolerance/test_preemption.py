"""A run of several processes that is killed and preempted repeatedly, on changing devices.

It has the digest of an uninterrupted run.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.run_processes import RUN, Life, done

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("JAXBIG_TEST_KILLS", "5"))
STEPS = 600 if KILLS > 20 else 100


def test_random_kills_over_one_run_need_no_repair(tmp_path: Path) -> None:
    """SIGKILL or SIGTERM to any process at any moment, of starting, of stepping, of saving."""
    arguments = [*RUN, f"--steps={STEPS}", "--evaluate-every=100", "--checkpoint-every=5"]
    alone = done(tmp_path / "alone", 2, 1, *arguments)
    chance = random.Random(0)
    reported = []
    (folder := tmp_path / "killed").mkdir()
    killed = 0
    longest = 0.0
    while killed < KILLS:
        life = Life(folder, 2, 1, *arguments)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        which = chance.randrange(2)
        starting = chance.random() < 0.3
        moment = time.monotonic() + (chance.uniform(0, 12) if starting else 600)
        goal = life.step() + chance.randrange(1 + STEPS // (2 * KILLS))
        life.until(
            lambda life=life, goal=goal, moment=moment: (
                life.step() > goal or time.monotonic() > moment
            )
        )
        time.sleep(chance.uniform(0, 0.05))
        if not life.alive():
            assert [code for code, _ in life.end()] == [0, 0], "it ended by itself, so it is done"
            break
        life.processes[which].send_signal(number)
        if starting:  # they may not have met yet: what has started them ends the others then
            life.processes[1 - which].kill()
        began = time.monotonic()
        said = life.end()
        longest = max(longest, time.monotonic() - began)
        killed = killed + 1
        reported.append((number.name, which, life.step(), [code for code, _ in said]))
        assert all(code != 0 or life.step() == STEPS for code, _ in said), said
    assert done(folder, 2, 1, *arguments)["state_sha256"] == alone["state_sha256"], reported
    print(f"{killed} kills, the slowest end {longest:.1f} s after: {reported}")


def test_a_run_preempted_three_times_and_moved_has_the_digest_of_one_left_alone(
    tmp_path: Path,
) -> None:
    """Two processes, then one, four and one: the cluster gives what it has."""
    arguments = [
        *RUN,
        "--steps=300",
        "--evaluate-every=200",
        "--checkpoint-every=100",
        "--reproducible=8",
    ]
    alone = done(tmp_path / "alone", 2, 1, *arguments)
    (folder := tmp_path / "moved").mkdir()
    for turn, count in enumerate((2, 1, 4)):
        life = Life(folder, count, 1, *arguments)
        started = life.step()  # by the one before: until there is more, this one has not started
        assert life.until(lambda life=life, started=started: life.step() > started + 5), life.end()
        life.processes[turn % count].send_signal(signal.SIGTERM)
        said = life.end()
        assert [code for code, _ in said] == [75] * count, said
    assert done(folder, 1, 1, *arguments)["state_sha256"] == alone["state_sha256"]
    assert len(json.loads((folder / "run" / "run.json").read_text())["starts"]) == 4
