#!/bin/sh
# Builds the core with sanitizers (GCC's) and runs the core's tests on it.
#
#   tools/sanitize.sh PYTHON address,undefined|thread [PYTEST ARGUMENT]...
#
# PYTHON: that of an environment with the build and test requirements. The interpreter and NumPy are not instrumented,
# so the sanitizer's library is loaded before them, and libstdc++ with it, whose throw the library must get hold of.
# The sanitized build goes into an environment of its own that borrows the other's packages by path: fusecell's
# editable install, which comes first wherever its .pth file is read, is left behind.
set -eu

python=$1
sanitizers=$2
shift 2
name=${sanitizers%%,*}
place=build/sanitize-$name
compiler=${CXX:-g++}
tests="tests/test_cases.py tests/test_half_precision.py tests/test_updates.py tests/test_clipping.py
  tests/test_emulated.py tests/test_layouts.py tests/test_threads.py tests/test_bad_calls.py tests/test_isa.py"

# --------------------------------------------------------------------------------------- the sanitizer's library
# ThreadSanitizer sees threads: fibres, which run a kernel's otherwise, are one thread to it.
emulation=${FUSECELL_EMULATION:-}
select=""
case $name in
  address)
    library=libasan.so
    workers="-n logical --maxprocesses 8" # two take 0.7 of the time of one
    # Of what tensor cores are emulated for, test_emulated runs every case once: the tables again would take half an hour.
    select="not (test_cases and tf32) and not (test_half_precision and tensor_cores)"
    ;;
  thread)
    library=libtsan.so
    workers="" # its threads keep the cores busy
    emulation=${emulation:-engine=threads}
    # 256 threads a block, and each a real one: the kernels run every case once, forward and backward, not eight times.
    select="(not emulated and not on_tensor_cores) or (test_same_bits_twice and not tf32) or test_tensor_cores_race_free or test_updates or test_clipping or softmax or activations"
    ;;
  *)
    echo "no recipe for -fsanitize=$sanitizers" >&2
    exit 1
    ;;
esac
preload=""
for file in $library libstdc++.so; do
  path=$($compiler -print-file-name=$file)
  if [ ! -e "$path" ]; then
    echo "$compiler has no $file: the sanitizers need GCC with its sanitizer libraries (apt-get install g++)" >&2
    exit 1
  fi
  preload="$preload $(readlink -f "$path")"
done

# detect_stack_use_after_return stays off: with it GCC 12.2 aligns a frame to 32 bytes whose vectors need 64 (GCC bug
# 110027), and a kernel ends in a general protection fault.
# OpenBLAS: its threads are not instrumented, and fusecell's tests need none. PYTHONMALLOC: pymalloc's arenas would
# hide an overrun. ThreadSanitizer: setarch, because it fails where the kernel spreads addresses widely.
run_sanitized() {
  prefix=""
  if [ "$name" = thread ] && setarch -R true 2>/dev/null; then prefix="setarch -R"; fi
  $prefix env LD_PRELOAD="${preload# }" OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc FUSECELL_EMULATION="$emulation" \
    ASAN_OPTIONS=detect_leaks=0:strict_init_order=1:detect_stack_use_after_return=0 \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:die_after_fork=0:exitcode=66 \
    "$place/bin/python" "$@"
}

# ---------------------------------------------------------------------------------------------------- the builds
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ "$(cat "$place/borrowed" 2>/dev/null)" != "$packages" ]; then
  "$python" -m venv --clear --without-pip "$place"
  echo "$packages" > "$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
  echo "$packages" > "$place/borrowed"
fi

# That it sees what it is here for:
$compiler -std=c++20 -g -O1 -fPIC -shared -pthread -fsanitize="$sanitizers" -fno-sanitize-recover=all \
  -o "$place/probe.so" tools/sanitizer_probe.cpp
echo "$sanitizers" | tr , '\n' | while read -r sanitizer; do
  case $sanitizer in
    address) argument=4 word="heap-buffer-overflow" ;;
    undefined) argument=1 word="signed integer overflow" ;;
    thread) argument=100000 word="data race" ;;
  esac
  if run_sanitized -c "import ctypes; ctypes.CDLL('$place/probe.so').$sanitizer($argument)" > "$place/probe.log" 2>&1 ||
    ! grep -q "$word" "$place/probe.log"; then
    cat "$place/probe.log"
    echo "$sanitizer sanitizer: does not report a deliberate $word on this machine" >&2
    exit 1
  fi
  echo "$sanitizer sanitizer: reports a deliberate $word"
done

echo "building the core with -fsanitize=$sanitizers (about 2 minutes when nothing is built yet)"
# Debug: assertions count, and no link-time optimisation, under which GCC 12 lets undefined behaviour pass with a note.
# nvcc's code is not instrumented; its sources are, as _emulated.
CMAKE_ARGS="${CMAKE_ARGS:-} -DFUSECELL_SANITIZE=$sanitizers -DFUSECELL_EMULATED=ON -DCMAKE_CXX_FLAGS=-D_GLIBCXX_ASSERTIONS" \
  CXX=$compiler FUSECELL_CUDA=off SKBUILD_BUILD_DIR="$place/objects" SKBUILD_CMAKE_BUILD_TYPE=Debug \
  "$place/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation \
  --ignore-installed .
# Says so if it took another build, or one that is not instrumented.
run_sanitized -c '
import sys
from fusecell import _cpu
instrumented = b"__'"$(echo "$name" | cut -c1 | sed "s/a/asan/; s/t/tsan/")"'_" in open(_cpu.__file__, "rb").read()
sys.exit(not (instrumented and _cpu.__file__.startswith(sys.prefix)) and f"not a sanitized build: {_cpu.__file__}")'

# ---------------------------------------------------------------------------------------------------- the tests
# --capture=sys: pytest would keep a report that the sanitizer ends the process with.
run_sanitized -m pytest $workers -p no:cacheprovider --capture=sys -k "$select" $tests "$@"
