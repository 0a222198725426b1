"""The benchmark of accuracy: what other counters answer, from processes of their own, and what the table says of it."""

import json
import subprocess
import sys
from pathlib import Path

import accuracy
import instructions
import peer_counts
import peers
import pytest
from cases import Case
from torch import nn

BENCHMARKS = Path(accuracy.__file__).parent


def test_what_is_exact_and_what_is_nearly_so_can_be_told_apart():
    assert accuracy.error(10**9, 10**9) == "0"
    assert accuracy.error(10**9 + 1, 10**9) == "+0.00"
    assert accuracy.error(3 * 97, 4 * 97) == "-25.00"


def test_a_counter_that_raises_is_a_result():
    case = Case(nn.Linear(3, 5), {}, 2 * 3 * 5)
    assert accuracy.of_counter(lambda case: case.multiply_adds, case) == "0"
    assert accuracy.of_counter(lambda case: case.no_such_thing, case) == "fails: AttributeError"
    assert accuracy.of_peer(peers.Answer(error="ValueError"), 30) == "fails: ValueError"
    assert accuracy.of_peer(peers.Answer(multiply_adds=45), 30) == "+50.00"


def test_the_table_goes_between_its_comments():
    page = "# Title\n\n<!-- written by benchmarks/accuracy.py -->\n\n| old |\n\n<!-- end -->\n\nText\n"
    written = accuracy.with_table(page, r"| new \1 |")
    assert written == page.replace("| old |", r"| new \1 |")
    assert accuracy.with_table(written, "| old |") == page
    with pytest.raises(ValueError, match="no place for the table"):
        accuracy.with_table("# Title\n", "| new |")


def test_the_page_has_a_place_for_the_table():
    accuracy.with_table(accuracy.PAGE.read_text(encoding="utf-8"), "")


def test_every_package_that_is_installed_is_asked_and_no_other():
    assert list(peers.PACKAGES) == list(peer_counts.PEERS)


SCRIPT = """
import json, os, signal, sys, time
sys.path.append(sys.argv[1])
import peer_counts
from cases import Case
from torch import nn

def leaves_a_patch(case):
    nn.Linear.forward = None
    return 7

peer_counts.PEERS = {
    "right": lambda case: case.multiply_adds,
    "patches": leaves_a_patch,
    "prints": lambda case: print("a table") or 11,
    "raises": lambda case: [][0],
    "ends": lambda case: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60),
    "sleeps": lambda case: time.sleep(60),
}
case = Case(nn.Linear(3, 5), {}, 2 * 3 * 5)
limits = {"sleeps": 0.1}
print(json.dumps({peer: peer_counts.in_a_process(peer, case, limits.get(peer, 60)) for peer in peer_counts.PEERS}))
assert nn.Linear.forward is not None
"""


def test_each_counter_is_asked_in_a_process_of_its_own():
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(BENCHMARKS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "right": {"multiply_adds": 30},
        "patches": {"multiply_adds": 7},
        "prints": {"multiply_adds": 11},
        "raises": {"error": "IndexError", "message": "list index out of range"},
        "ends": {"error": "ended by signal 15"},
        "sleeps": {"error": "no answer in 0.1 s"},
    }


# --- The processor's own counters ------------------------------------------------------------------------------------

INTEL = instructions.EVENTS["GenuineIntel"]


def perf_wrote(*values):
    return "\n".join(f"{value},,{event}:u,1000,100.00,," for value, event in zip(values, INTEL, strict=True))


def test_an_instruction_counts_as_many_operations_as_its_vector_is_wide():
    assert instructions.operations(perf_wrote(3, 5, 7, 11), INTEL) == 3 + 4 * 5 + 8 * 7 + 16 * 11


@pytest.mark.parametrize(
    "written", [perf_wrote(3, 5, 7, "<not supported>"), "event syntax error: '..scalar_single:u'\n", ""]
)
def test_an_event_that_was_not_counted_is_no_zero(written):
    with pytest.raises(ValueError, match=r"perf did not count .*fp_arith_inst_retired\.512b_packed_single"):
        instructions.operations(written, INTEL)


def test_the_vendor_says_which_events_there_are():
    assert instructions.vendor("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 17\n") in instructions.EVENTS
    assert instructions.vendor("CPU implementer\t: 0x41\n") not in instructions.EVENTS
