#!/usr/bin/env bash
# For those who change the project: makes the environment, then runs one of
#   bash tools/dev.sh test [pytest options]   the tests (--slow adds the slow ones)
#   bash tools/dev.sh lint                    ruff, bash -n, shellcheck
#   bash tools/dev.sh type                    mypy
#   bash tools/dev.sh bench                   every bench/bench_*.py; rows go to bench/results/
#   bash tools/dev.sh lock                    requirements.lock from what is installed
#   bash tools/dev.sh all                     lint, type, test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,8s/^# \{0,1\}//p' tools/dev.sh; }

run_test() {
  local select=(-m "not slow") args=()
  for arg in "$@"; do
    if [ "$arg" = --slow ]; then select=(); else args+=("$arg"); fi
  done
  # By files, whose tests share what they have made; in their order, which begins with the long ones.
  python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "${select[@]}" "${args[@]}"
}

run_lint() {
  shopt -s globstar nullglob
  local scripts=(run.sh path.sh tools/*.sh .ci/run examples/**/*.sh examples/**/*.sbatch)
  python -m ruff check .
  python -m ruff format --check .
  for script in "${scripts[@]}"; do bash -n "$script"; done
  shellcheck -x "${scripts[@]}"
}

run_type() { python -m mypy; }

run_lock() { python tools/lock.py; }

run_bench() { for script in bench/bench_*.py; do python "$script"; done; }

command=${1:-}
case $command in
  test | lint | type | bench | lock | all) shift ;;
  "" | -h | --help) usage; exit 0 ;;
  *) echo "dev.sh: error: unknown command '$command'" >&2; usage >&2; exit 1 ;;
esac

export WESPEAKER_REQUIREMENTS=$PWD/tests/requirements.txt
# shellcheck source=path.sh
. ./path.sh
unset WESPEAKER_REQUIREMENTS  # the tests start run.sh, which needs no more than requirements.txt
case $command in
  test) run_test "$@" ;;
  all) run_lint; run_type; run_test "$@" ;;
  *) "run_$command" "$@" ;;
esac
