"""A process that has just been forked is protected before anybody can read from it."""

import json
import subprocess

from tests.kernel.agent import Agent
from tests.kernel.build import Programs
from tests.kernel.keeper import agents

_SECONDS, _MOST = 6, 300


def _race(programs: Programs) -> dict[str, int]:
    breeder = [str(programs.race_as_wrapper), "breed"]
    with subprocess.Popen(breeder, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout
            address = parent.stdout.readline().strip()
            guesser = [str(programs.race), "guess", address, str(_SECONDS), str(_MOST)]
            done = subprocess.run(guesser, capture_output=True, text=True, check=True, timeout=60)
        finally:
            parent.kill()
    told: dict[str, int] = json.loads(done.stdout)
    return told


@agents("off")
def test_the_race_can_be_won(keeper: object, programs: Programs):
    """Without an agent the guessers get the secret out of new processes."""
    assert _race(programs)["leaked"] > 0


@agents("enforce")
def test_a_new_process_gives_nothing(agent: Agent, programs: Programs):
    """Whoever guesses the next pid is killed and has read nothing, however early it comes."""
    told = _race(programs)

    assert told["leaked"] == 0
    assert told["killed"] > 0
