#!/usr/bin/env bash
# pytest-xdist 3.8.0 (the newest) with pytest 9.2.0 on CPython 3.10 or newer.
# One would expect `@pytest.mark.xdist_group("name")` with `--dist loadgroup` to run all tests of a group in one worker:
# that is its purpose, for tests that share a server, a port or a folder.
# Seen: under pytest 9.2.0 the tests of one group are spread over the workers, without a warning; under 8.4.2 they stay
# together. It hurts suites whose groups share a resource: they fail now and then, or run slower, and nothing says why.
# A way out that works under both: one file for what belongs together, and `--dist loadfile`.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"

cat > "$folder/test_group.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("shared")
@pytest.mark.parametrize("number", range(6))
def test_in_a_group(number):
    time.sleep(0.3)  # long enough for both workers to be asked
    with open(os.environ["WORKERS_SEEN"], "a") as seen:
        seen.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY

workers_of_the_group() {
    "$python" -m pip install --quiet --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
    export WORKERS_SEEN="$folder/seen-$1"
    (cd "$folder" && "$python" -m pytest -q -n 2 --dist loadgroup test_group.py) > "$folder/log" 2>&1 \
        || { cat "$folder/log" >&2; return 1; }
    sort -u "$WORKERS_SEEN" | tr '\n' ' '
}

old=$(workers_of_the_group 8.4.2)
new=$(workers_of_the_group 9.2.0)
echo "pytest-xdist 3.8.0, --dist loadgroup, six tests of one group"
echo "pytest 8.4.2: run by $old"
echo "pytest 9.2.0: run by $new"
[ "$old" = "gw0 " ] || [ "$old" = "gw1 " ] || { echo "changed: 8.4.2 does not keep the group together"; exit 1; }
[ "$new" = "gw0 gw1 " ] || { echo "changed: 9.2.0 keeps the group together"; exit 1; }
