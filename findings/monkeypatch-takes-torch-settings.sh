#!/usr/bin/env bash
# pytest 9.2.0 with torch 2.13.0 (CPU) on CPython 3.10 or newer.
# One would expect `monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 3)` to put the old value back when its
# test ends: that is all that monkeypatch is for, and under pytest 8.4.2 it does.
# Seen: under pytest 9.2.0 the setting is gone from then on, and asking for it raises AttributeError, also inside of
# torch.compile. Torch keeps settings behind `__getattr__`, and pytest now deletes what it did not find in `__dict__`.
# It hurts suites that set options of Dynamo or Inductor by monkeypatch: tests of other files fail, in the same process
# only. `with torch._dynamo.config.patch(recompile_limit=3):` restores it under both. Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy

cat > "$folder/test_setting.py" <<'PY'
import torch._dynamo.config as config

BEFORE = config.recompile_limit


def test_with_another_limit(monkeypatch):
    monkeypatch.setattr(config, "recompile_limit", 3)
    assert config.recompile_limit == 3


def test_the_limit_is_back():
    assert config.recompile_limit == BEFORE


def test_patch_puts_it_back():
    with config.patch(verbose=True):
        pass
    assert config.verbose is False
PY

seen_under() {
    "$python" -m pip install --quiet --disable-pip-version-check "pytest==$1"
    (cd "$folder" && "$python" -m pytest -q -p no:cacheprovider test_setting.py) > "$folder/log" 2>&1 || true
    grep -o "AttributeError: torch._dynamo.config.recompile_limit does not exist\|[0-9]* passed" "$folder/log" | sort -u | tr '\n' ';'
}

old=$(seen_under 8.4.2)
new=$(seen_under 9.2.0)
echo "torch 2.13.0, a setting of Dynamo's under monkeypatch, and two tests after it"
echo "pytest 8.4.2: $old"
echo "pytest 9.2.0: $new"
[ "$old" = "3 passed;" ] || { echo "changed: 8.4.2 does not restore the setting"; exit 1; }
case "$new" in
    "2 passed;"*"does not exist;") ;;
    *) echo "changed: 9.2.0 restores the setting"; exit 1 ;;
esac
