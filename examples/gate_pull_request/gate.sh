#!/usr/bin/env bash
# Gates a pull request on any CI system (for GitHub there is action.yml). Judges the commit that is checked out, says what
# changed since the base branch, and exits as the gate decides:
#
#   gate.sh OUT [BASE]     OUT: folder of the reports, which the CI keeps
#                          BASE: results.json of the base branch's last run, if there is one
set -euo pipefail
out=${1:?a folder for the reports} base=${2-}
cases=$(dirname "${BASH_SOURCE[0]}")/cases.yaml

# Each suite that is named needs a case: with some for memory, and on a GPU for perf, -m "parity or memory or perf".
rm -f "$out/results.json" "$out/comment.md" # of a run before: one that judges nothing writes none
status=0
python -m pytest -m parity --pyargs wan_trt_core.suites --wan-cases "$cases" --wan-report "$out" || status=$?

if [[ -f $base && -f $out/results.json ]]; then
  # for a comment on the pull request; whether there can be one decides nothing
  wan-trt report compare "$base" "$out/results.json" | tee "$out/comment.md" || rm -f "$out/comment.md"
fi
exit "$status"
