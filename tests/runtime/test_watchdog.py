"""The end of Ray's own processes ends a command with one line, and at once; a command that ends well is left alone."""

import subprocess
import sys

import pytest

ENDS = """
import subprocess, sys, time
from mlpt.runtime.watchdog import Ends, watching

other = subprocess.Popen(["sleep", "100"])
watched = subprocess.Popen(["sleep", "100"])
with watching(Ends({"GCS": other.pid, "raylet": watched.pid}, lambda: "`mlpt --resume [x]`")):
    print(other.pid, flush=True)
    if sys.argv[1] == "dies":
        watched.kill()
        time.sleep(100)
other.kill()
watched.kill()
print("done", flush=True)
"""
ANSWERS = """
import socket, sys, time
from mlpt.runtime import watchdog

watchdog._KNOCK_EVERY_S = 0.02
server = socket.create_server(("127.0.0.1", 0))
address = f"127.0.0.1:{server.getsockname()[1]}"
with watchdog.watching(watchdog.Answers(address, lambda: "the same command")):
    time.sleep(0.2)
    if sys.argv[1] == "dies":
        server.close()
        time.sleep(100)
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (
            ENDS,
            "mlpt: Ray's raylet has died, and with it what ran on this Ray; go on by `mlpt --resume [x]`\n",
        ),
        (ANSWERS, "mlpt: Ray's GCS has died, and with it what ran on this Ray; go on by the same command\n"),
    ],
    ids=["process", "address"],
)
def test_the_death_of_ray_is_one_line_and_a_good_end_is_none(script, line):
    dead, well = (
        subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, timeout=60)
        for how in ("dies", "ends")
    )
    assert (dead.returncode, dead.stderr) == (2, line)
    assert "done" not in dead.stdout
    assert (well.returncode, well.stderr) == (0, "")
    assert well.stdout.endswith("done\n")


@pytest.mark.parametrize(
    ("first", "why"), [("process", "SIGTERM has ended Ray's raylet, too"), ("ray", "Ray's raylet has died")]
)
def test_a_signal_that_ends_ray_too_has_its_own_exit_code(first, why):
    """Also where this process hears of it after Ray has gone, as on a busy machine, and after it has told of that."""
    stopped = """
import os, signal, subprocess, sys, time
from mlpt.runtime import watchdog
from mlpt.runtime.watchdog import Ends, watching
from mlpt.stopping import StopRequest

watchdog._SIGNAL_S = 60
raylet = subprocess.Popen(["sleep", "100"])
stop = StopRequest(print)
with stop.listening(), stop.training(), watching(Ends({"raylet": raylet.pid}, lambda: "`mlpt --resume x`", stop)):
    if sys.argv[1] == "ray":
        raylet.terminate()
        raylet.wait()
        time.sleep(0.5)  # long enough for a watchdog that would not wait
    os.kill(os.getpid(), signal.SIGTERM)
    raylet.terminate()
    time.sleep(100)
"""
    done = subprocess.run(
        [sys.executable, "-c", stopped, first], capture_output=True, text=True, timeout=60, check=False
    )
    said = f"mlpt: {why}, and with it what ran on this Ray; go on by `mlpt --resume x`\n"
    assert (done.returncode, done.stderr) == (143, said)


SILENT = """
import subprocess, time
from mlpt.runtime import watchdog

watchdog._ANSWER_S = 0.1
watched = subprocess.Popen(["sleep", "100"])
with watchdog.watching(watchdog.Ends({"raylet": watched.pid}, lambda: time.sleep(100) or "never said")):
    watched.kill()
    time.sleep(100)
"""


def test_a_store_that_does_not_answer_does_not_keep_a_command_whose_ray_has_died():
    dead = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=60)
    assert dead.returncode == 2
    assert dead.stderr.endswith("go on by the same command\n")
