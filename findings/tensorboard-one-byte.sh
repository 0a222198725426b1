#!/usr/bin/env bash
# tensorboard 2.21.0, tensorboardX 2.6.4 to write the file.
# One would expect a reader that meets a record whose checksum is wrong to say so, or to go on behind it: each record has
# its length, and a checksum for the length alone.
# Seen: `EventAccumulator` ends there without a word; one flipped byte in the middle of 2,000 points leaves about half of
# them, and the run looks as if it had been stopped. It hurts whoever copies event files, syncs them while they are written,
# or reads results with a script: the last value that is read is no last value.
# A way out: compare the bytes that were read with the size of the file, or check the records' checksums oneself.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check tensorboard==2.21.0 tensorboardX==2.6.4

cat > read.py <<'PY'
import pathlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

with SummaryWriter("run") as writer:
    for step in range(2000):
        writer.add_scalar("loss", 1.0 / (step + 1), step)


def points():
    events = EventAccumulator("run", size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("loss")]


whole = points()
(file,) = pathlib.Path("run").glob("*tfevents*")
content = bytearray(file.read_bytes())
content[len(content) // 2] ^= 1
file.write_bytes(content)
left = points()
print(f"points of the whole file: {len(whole)}, with one bit flipped in the middle: {len(left)}, last step {left[-1]}")
PY
env/bin/python read.py 2> told > seen
cat seen
echo "said on stderr about it: $(grep -ciE 'corrupt|crc|checksum|dataloss|truncat' told || true) lines"
grep -q "whole file: 2000" seen || { echo "changed: the whole file is not read"; exit 1; }
python3 - "$(cat seen)" <<'PY'
import re, sys
left = int(re.search(r"middle: (\d+)", sys.argv[1])[1])
sys.exit(0 if 900 < left < 1100 else "changed: it goes on behind the damage")
PY
