#!/bin/sh
# Makes the virtual environment VENV, or keeps the one that is there if it still works. Run in the repository root.
#
#   tools/make_venv.sh VENV [PYTHON]
set -eu

venv=$1
if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
  echo "$venv exists and is no virtual environment: name another, as in  make VENV=... " >&2
  exit 1
fi

case $venv in
  /*) place=$venv ;;
  *) place=$PWD/$venv ;;
esac
python=$(tools/check_machine.sh "${2:-}")

# An environment cannot be moved: its scripts name the place it was made in.
if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  ! grep -qF "$place" "$venv/bin/activate"; then
  echo "making $venv"
  "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -c 'import platform, sys; print(sys.argv[1], "has Python", platform.python_version())' "$venv"
