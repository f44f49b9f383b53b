# shellcheck shell=bash
# Sourced by run.sh and tools/dev.sh. Puts a Python that has the requirements first on the PATH:
#   - the active virtual or conda environment, if it has everything requirements.txt asks for;
#   - otherwise .venv in this folder, made and filled once (again only when requirements.txt changes).
# A torch build of your own choice (CPU only, another CUDA): make and activate an environment with it, then run.sh uses that.
# WESPEAKER_REQUIREMENTS="file …" names further requirement files (tools/dev.sh adds the ones of the tests).

wespeaker_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wespeaker_venv=$wespeaker_root/.venv
read -r -a wespeaker_requirements <<< "$wespeaker_root/requirements.txt ${WESPEAKER_REQUIREMENTS:-}"

# Print each requirement of files of pip, or of extras of pyproject.toml such as [export], that the Python on the PATH
# does not meet; fail if there is one.
wespeaker_missing() { # FILE-OR-[EXTRA]...
  python - "$wespeaker_root/pyproject.toml" "$@" <<'EOF'
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
def lines_of(source):
    if not source.startswith("["):
        return open(source, encoding="utf-8")
    try:
        import tomllib
    except ImportError:
        from pip._vendor import tomli as tomllib
    extras = tomllib.load(open(sys.argv[1], "rb"))["project"]["optional-dependencies"]
    try:
        return extras[source.strip("[]")]
    except KeyError:
        sys.exit("path.sh: error: pyproject.toml has no extra " + source + "; it has " + ", ".join(extras))
missing = [] if sys.version_info >= (3, 10) else ["python>=3.10"]
for source in sys.argv[2:]:
    for line in lines_of(source):
        text = line.split("#")[0].strip()
        if text:
            requirement = Requirement(text)
            try:
                if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                    missing.append(text)
            except PackageNotFoundError:
                missing.append(text)
print(*missing, sep=", ")
sys.exit(bool(missing))
EOF
}

# Print the name of a Python from 3.10 on that can make virtual environments; fail if there is none.
wespeaker_find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.10 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

# Run a command or function that changes the environment, one at a time for all nodes that share this folder.
wespeaker_alone() {
  ! command -v flock > /dev/null || flock 9
  "$@"
} 9> "$wespeaker_root/.environment.lock"

# Install what an extra of pyproject.toml asks for into the environment in use, as far as it is not there.
wespeaker_extra() { # EXTRA
  local missing
  ! missing=$(wespeaker_missing "[$1]") || return 0
  [ -n "$missing" ] || return 1 # there is no such extra, which was said
  wespeaker_alone wespeaker_install_extra "$1"
}

wespeaker_install_extra() { # EXTRA
  local missing packages
  ! missing=$(wespeaker_missing "[$1]") || return 0 # another node was faster
  echo "path.sh: installing $missing (extra $1 of pyproject.toml)"
  read -r -a packages <<< "${missing//, / }"
  if ! python -m pip install --quiet --disable-pip-version-check "${packages[@]}"; then
    echo "path.sh: error: pip could not install the extra $1; mend the cause and run the same command again" >&2
    return 1
  fi
}

wespeaker_make_venv() {
  local file stamp hash python started log=$wespeaker_venv/install.log
  if [ ! -x "$wespeaker_venv/bin/python" ]; then
    if ! python=$(wespeaker_find_python); then
      echo "path.sh: error: no Python from 3.10 on with the venv module was found; install one (Debian: python3 and python3-venv) or name it with PYTHON=…" >&2
      return 1
    fi
    echo "path.sh: making a virtual environment in .venv with $("$python" --version)"
    "$python" -m venv "$wespeaker_venv" || return 1
  fi
  for file in "${wespeaker_requirements[@]}"; do
    stamp=$wespeaker_venv/installed-$(basename "$(dirname "$file")")-$(basename "$file")
    hash=$("$wespeaker_venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$file")
    [ "$(cat "$stamp" 2> /dev/null)" = "$hash" ] && continue
    echo "path.sh: installing ${file#"$wespeaker_root"/} into .venv, once; with torch that is about 6 GB and 1 to 10 minutes (log: .venv/install.log)"
    started=$SECONDS
    if ! "$wespeaker_venv/bin/python" -m pip install --disable-pip-version-check -r "$file" > "$log" 2>&1; then
      tail -n 15 "$log" >&2
      echo "path.sh: error: pip could not install $file (whole log: $log); mend the cause and run the same command again" >&2
      return 1
    fi
    echo "$hash" > "$stamp"
    echo "path.sh: installed in $((SECONDS - started)) s"
  done
}

wespeaker_active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -n "$wespeaker_active" ] && [ "$wespeaker_active" != "$wespeaker_venv" ] \
  && wespeaker_lacks=$(wespeaker_missing "${wespeaker_requirements[@]}"); then
  echo "path.sh: using the active environment $wespeaker_active"
else
  if [ -n "${wespeaker_lacks:-}" ]; then
    echo "path.sh: the active environment $wespeaker_active lacks $wespeaker_lacks; using .venv instead (to use yours: pip install -r requirements.txt in it)"
  fi
  wespeaker_alone wespeaker_make_venv || exit 1
  export VIRTUAL_ENV=$wespeaker_venv
  export PATH=$wespeaker_venv/bin:$PATH
  unset PYTHONHOME
fi
export PYTHONPATH=$wespeaker_root${PYTHONPATH:+:$PYTHONPATH}
