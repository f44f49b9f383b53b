# shellcheck shell=bash
# shellcheck disable=SC2154  # script, stages, stage and stop_stage are the recipe's
# Sourced by recipes: their options. `--name value` sets a variable of the block that begins with `# Options` and ends
# with an empty line; the text after # is the help. Before it is sourced: script (the recipe's path, as messages call it)
# and stages (one line of help); the recipe calls parse_options "$@".

usage() {
  echo "usage: bash $script [--option value] ..."
  echo "stages: $stages"
  echo "options:"
  sed -n '/^# Options/,/^$/s/^\([A-Za-z0-9_]*\)=\([^ ]*\) *# \(.*\)$/\1|\2|\3/p' "$script" \
    | while IFS='|' read -r name value text; do
      printf '  --%-17s %s%s\n' "$name" "$text" "${value:+ (default $value)}"
    done
}

fail() {
  echo "$script: error: $*" >&2
  exit 1
}

parse_options() {
  local name known
  known=$(sed -n '/^# Options/,/^$/s/^\([A-Za-z0-9_]*\)=.*/\1/p' "$script")
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --*)
        name=${1#--}
        name=${name//-/_}
        grep -qx -- "$name" <<< "$known" || fail "unknown option $1; bash $script --help lists them"
        [ $# -ge 2 ] || fail "option $1 needs a value"
        printf -v "$name" '%s' "$2"
        shift 2
        ;;
      *) fail "expected --option value, found '$1'; bash $script --help lists the options" ;;
    esac
  done
}

begin() { # STAGE TEXT: whether this stage is asked for; says so
  [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ] || return 1
  echo "== stage $1: $2"
}
