#!/usr/bin/env bash
# Build the wheel, install it into an empty environment, and run run_glue there from an unrelated folder.
# A file that the wheel forgot (data, a lock, the tokenizer) shows here and nowhere else.
set -euo pipefail
here=$(pwd)
python=$(cd "$(dirname "${PYTHON:-python3}")" && pwd)/$(basename "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --outdir "$work/dist" "$here" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint "$here/constraints.txt" "$work"/dist/minitrainer-*.whl

cd "$work"
"$work/venv/bin/python" - <<'PY'
import pathlib, minitrainer
where = pathlib.Path(minitrainer.__file__).resolve()
assert "site-packages" in where.parts, f"the wheel is not what was imported: {where}"
PY
"$work/venv/bin/minitrainer-trace" run_glue --max_steps 20 --out "$work/run"
test -s "$work/run/rank0.rows"
echo "wheel: run_glue ran from an installed wheel"
