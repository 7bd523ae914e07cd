#!/bin/sh
# Says what this machine lacks to build fusecell, and the one line that installs it (Debian, Ubuntu).
#
#   tools/check_machine.sh [PYTHON]
#
# Prints the Python to use on standard output. Exit status 1: something is missing, see standard error.
set -u

wanted=${1:-}
lacking=""
packages=""

lack() { # lack WHAT PACKAGE...
  lacking="$lacking  - $1
"
  shift
  packages="$packages $*"
}

# Runs it: a name on PATH may be a version manager's stand-in with nothing behind it.
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

# ---------------------------------------------------------------------------------------------------- Python
python=""
for candidate in ${wanted:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
  if is_new_enough "$candidate"; then
    python=$("$candidate" -c 'import sys; print(sys.executable)')
    break
  fi
done

if [ -z "$python" ] && [ -n "$wanted" ]; then
  echo "PYTHON=$wanted is not a Python of 3.10 or newer that runs here." >&2
  exit 1
elif [ -z "$python" ]; then
  found=$(python3 -c 'import platform; print("python3 is " + platform.python_version())' 2>/dev/null)
  lack "Python 3.10 or newer (${found:-there is no python3})" python3 python3-venv python3-dev
else
  # Which packages belong to this interpreter: the system's own python3, another of the system's, or neither.
  real=$(readlink -f "$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')")
  case $real in
    "$(readlink -f /usr/bin/python3)") prefix=python3 ;;
    /usr/bin/*) prefix=$(basename "$real") ;;
    *) prefix="" ;;
  esac
  # ensurepip: Debian's python3 has venv without it, and then makes environments that have no pip.
  if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    lack "venv and ensurepip for $python" ${prefix:+"$prefix-venv"}
  fi
  if ! "$python" -c 'import os, sysconfig
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
    lack "the headers (Python.h) of $python" ${prefix:+"$prefix-dev"}
  fi
fi

# ----------------------------------------------------------------------------------------------- compiler, make
compiler=""
for candidate in "${CXX:-}" c++ g++ clang++; do # in CMake's order
  # Not quoted: CXX may carry words of its own, such as "ccache g++".
  if [ -n "$candidate" ] && $candidate --version >/dev/null 2>&1; then
    compiler=$candidate
    break
  fi
done
if [ -z "$compiler" ]; then
  lack "a C++ compiler" g++
else
  program=$(mktemp) || exit 1
  if ! printf '%s\n' '#include <bit>' '#include <concepts>' '#include <thread>' \
    'int main() { std::thread t([] {}); t.join(); return std::popcount(0u); }' |
    $compiler -std=c++20 -pthread -x c++ -o "$program" - >/dev/null 2>&1; then
    lack "a C++ compiler that knows C++20, such as g++ 10 or newer (here: $($compiler --version | head -n 1))" g++
  fi
  rm -f "$program"
fi
if ! make --version >/dev/null 2>&1; then
  lack "make" make
fi

# ------------------------------------------------------------------------------------------------------- answer
if [ -z "$lacking" ]; then
  echo "$python"
  exit 0
fi
{
  printf 'This machine lacks what fusecell is built with:\n%s' "$lacking"
  packages=$(echo $packages) # drops the spaces at the ends
  if [ -z "$packages" ]; then
    echo "It is no Python of the system's: choose one that is complete, as in  make PYTHON=/usr/bin/python3 ..."
  elif command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo "; fi
    echo "This line installs it; then give the same command again:"
    echo "  ${sudo}apt-get update && ${sudo}apt-get install -y $packages"
  else
    echo "There is no apt-get here. What Debian and Ubuntu call: $packages"
  fi
} >&2
exit 1
