#!/usr/bin/env bash
# MLflow 3.17.2 and an SQLite store that MLflow 3.1.4 made.
# One would expect a search through MlflowClient to read, and an older schema to be refused with "mlflow db upgrade", as
# MLflow does where all tables that it knows are present.
# Seen: where the older schema lacks a table that is newer, the store is taken for one that is not set up yet, and the
# first search migrates it in place, without a question. The version that made the store then refuses it. It hurts whoever
# shares a store between versions, or looks at a colleague's file with a newer MLflow.
# A way out: read a copy, or compare the table `alembic_version` with the installed MLflow's first.
# Exits with 1 if that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export MLFLOW_DISABLE_TELEMETRY=true

python3 -m venv old && python3 -m venv new
old/bin/python -m pip install --quiet --disable-pip-version-check mlflow==3.1.4 sqlalchemy==2.0.44
new/bin/python -m pip install --quiet --disable-pip-version-check mlflow==3.17.2 sqlalchemy==2.0.44

cat > search.py <<'PY'
import mlflow
from mlflow import MlflowClient

try:
    names = [experiment.name for experiment in MlflowClient("sqlite:///store.db").search_experiments()]
    print(f"MLflow {mlflow.__version__} finds {names}")
except Exception as error:
    print(f"MLflow {mlflow.__version__} refuses it: {str(error).splitlines()[0][:90]}")
PY
schema() { python3 -c "import sqlite3; print(sqlite3.connect('store.db').execute('select version_num from alembic_version').fetchone()[0])"; }

old/bin/python search.py 2> /dev/null
before=$(schema)
new/bin/python search.py 2> /dev/null
after=$(schema)
again=$(old/bin/python search.py 2> /dev/null)
echo "$again"
echo "schema before the search: $before, after it: $after"
[ "$before" != "$after" ] || { echo "changed: a search leaves the schema as it is"; exit 1; }
case $again in *"refuses it"*) ;; *) echo "changed: the older MLflow still reads it"; exit 1 ;; esac
