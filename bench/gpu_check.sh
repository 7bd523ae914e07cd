#!/usr/bin/env bash
# Everything that needs a GPU, in one call: less than 9 minutes, and no network.
#
#   bench/gpu_check.sh FOLDER [training]
#   FUSECELL_HOPPER=on bench/gpu_check.sh FOLDER2 training     the same with Hopper's own instructions
#
# Builds fusecell for the GPU of this machine, beside any other installation; then, at the same time, the tests and
# compute-sanitizer; then, alone, the benchmark. A step that fails or takes too long does not stop the next ones.
# FOLDER gets a log of each step, gpu.json, torch.json and summary.txt, which is also what is printed last. The exit status is the
# number of steps that failed.
#
# training: instead of all that, the table of training and inference against all peers, for the whole of the time. It is
# built only if the sources are not those of the last build. FOLDER gets training.json, with which a second call goes
# on where the first one ended, and training.txt, which is printed last.
#
# Needs nvcc (on PATH or in /usr/local/cuda) and a python3 with the build's requirements (scikit-build-core, pybind11,
# cmake, ninja), fusecell's, CuPy, ml_dtypes, pytest and hypothesis; the benchmark needs torch besides.
set -uo pipefail

form=${2:-checks}
if [ $# -lt 1 ] || [ $# -gt 2 ] || { [ "$form" != checks ] && [ "$form" != training ]; }; then
  echo "usage: $0 FOLDER [training]" >&2
  exit 64
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 64
cd "$(dirname "$0")/.." || exit 64

python=${PYTHON:-python3}
site=$PWD/build/gpu-check/installed
built_from=$PWD/build/gpu-check/built-from
if [ "$form" = training ]; then summary=$out/training.txt; else summary=$out/summary.txt; fi
: > "$summary"
# The checks end here, whatever they have done, so that the benchmark has its time.
readonly checks_end=330 end=532 bench_seconds=110

say() { printf '%s\n' "$*" | tee -a "$summary"; }

# step NAME END LIMIT LOG COMMAND...: for at most LIMIT seconds, and not beyond second END of this call.
step() {
  local name=$1 until=$2 limit=$3 log=$out/$4 start=$SECONDS status verdict
  shift 4
  if ((limit > until - SECONDS)); then limit=$((until - SECONDS)); fi
  if ((limit < 10)); then
    say "$(printf '%-12s NOT RUN   no time was left' "$name")"
    return 1
  fi
  printf '===> %s\n' "$*" >> "$log"
  timeout -k 10 "$limit" "$@" >> "$log" 2>&1 < /dev/null
  status=$?
  verdict=ok
  if ((status == 124 || status == 137)); then
    verdict="TIMEOUT"
  elif ((status != 0)); then
    verdict="FAILED"
  fi
  say "$(printf '%-12s %-8s %4d s  %s' "$name" "$verdict" $((SECONDS - start)) "$(last_words "$log")")"
  ((status == 0))
}

# What pytest, the sanitizers, the self test and pip close with.
last_words() {
  grep -E '^(=+ )?[0-9]+ (passed|failed|error).* in [0-9.]+s|SUMMARY: |tolerance$|^Successfully|[Ee]rror: ' "$1" | tail -n 1 | cut -c 1-110
}

# ------------------------------------------------------------------------------------------------- what there is
PATH=$PATH:/usr/local/cuda/bin
sanitizer=$(command -v compute-sanitizer)
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader | head -n 1)
say "GPU: ${gpu:-none}"
say "$("$python" --version), $(nvcc --version | grep release)"
say "commit: $(git rev-parse --short HEAD 2> /dev/null || echo unknown)"
case ${gpu##*, } in
  9.0) architecture=90a-real ;; # with what only an sm_90 has
  [0-9]*.[0-9]) architecture=$(printf '%s' "${gpu##*, }" | tr -d .)-real ;;
  *) architecture=native ;;
esac

# --------------------------------------------------------------------------------------------------------- build
export PYTHONUNBUFFERED=1
sources() {
  find csrc python cmake tools/build_backend.py CMakeLists.txt pyproject.toml -type f ! -name '*.so' ! -name '*.pyc' |
    LC_ALL=C sort | xargs -d '\n' sha256sum
}

build() {
  rm -rf "$site" "$built_from"
  FUSECELL_CUDA=on FUSECELL_CUDA_ARCHITECTURES=$architecture SKBUILD_BUILD_DIR=build/gpu-check \
    step build "$checks_end" 200 build.log "$python" -m pip install --disable-pip-version-check --no-input --no-index \
    --no-build-isolation --no-deps --target "$site" . && sources > "$built_from"
}

if [ "$form" = training ] && [ -d "$site" ] && sources | cmp -s - "$built_from"; then
  say "build: that of an earlier call, from the same sources"
elif ! build; then
  tail -n 40 "$out/build.log"
  say "without a build there is nothing to check"
  cat "$summary"
  exit 99
fi
export PYTHONPATH=$site

# ------------------------------------------------------------------------------------------------------ training
# Besides --seconds for a peer that has to be ended, and for the tables.
training() {
  local failed=0
  TORCHINDUCTOR_CACHE_DIR=$PWD/build/gpu-check/inductor step training "$end" "$end" training.log "$python" \
    bench/gpu_training.py --seconds $((end - SECONDS - 30)) --json "$out/training.json" --resume || failed=1
  [ -f "$out/training.json" ] &&
    "$python" bench/gpu_training.py --json "$out/training.json" --read >> "$summary" 2>> "$out/training.log"
  return "$failed"
}

# -------------------------------------------------------------------------------------------------------- checks
# Plugins that happen to be installed are left out, and their warnings and those of libraries are no errors here: which
# versions this machine has is not this project's choice.
tests() {
  local failed=0
  step info "$checks_end" 60 tests.log "$python" -m fusecell.cli info || failed=1
  step selftest "$checks_end" 100 tests.log "$python" -m fusecell.cli selftest || ((failed += 1))
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 step tests "$checks_end" 200 tests.log "$python" -m pytest -q -W default \
    -p no:cacheprovider -o faulthandler_timeout=60 -k 'gpu or cuda' tests/gpu tests/test_cases.py \
    tests/test_half_precision.py tests/test_activations.py tests/test_clipping.py tests/test_updates.py ||
    ((failed += 1))
  FUSECELL_HOPPER=on PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 step hopper "$checks_end" 100 tests.log "$python" -m pytest -q \
    -W default -p no:cacheprovider -o faulthandler_timeout=60 -k 'cuda' tests/test_half_precision.py || ((failed += 1))
  return "$failed"
}

# A hazard that racecheck calls a warning counts, too; its exit status may not say so.
sanitize() { # TOOL OPTION...
  local tool=$1
  shift
  step "$tool" "$checks_end" 100 "$tool.log" "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 50 "$@" \
    "$python" tests/gpu/smoke.py || return 1
  if ! grep -q 'SUMMARY: 0 ' "$out/$tool.log"; then
    say "$tool: no clean summary in $tool.log"
    return 1
  fi
}

sanitizers() {
  local failed=0
  if [ -z "$sanitizer" ]; then
    say "compute-sanitizer: not found"
    return 1
  fi
  # Once without: CuPy compiles its kernels now, and keeps them.
  step smoke "$checks_end" 60 smoke.log "$python" tests/gpu/smoke.py || ((failed += 1))
  sanitize racecheck &
  local racecheck=$!
  # What CuPy tries and handles itself is no error.
  sanitize memcheck --report-api-errors no || ((failed += 1))
  sanitize initcheck || ((failed += 1))
  wait "$racecheck" || ((failed += 1))
  return "$failed"
}

checks() {
  local failed=0 background
  sanitizers &
  background=$!
  tests || ((failed += $?))
  wait "$background" || ((failed += $?))
  benchmarks || ((failed += $?))
  return "$failed"
}

# ----------------------------------------------------------------------------------------------------- benchmark
benchmarks() {
  local failed=0
  step benchmark "$end" $((bench_seconds + 35)) bench.log "$python" bench/gpu.py --seconds "$bench_seconds" \
    --json "$out/gpu.json" || ((failed += 1))
  sed -n '/^| what/,$p' "$out/bench.log" >> "$summary"
  # torch.compile is in gpu.py; here it would take all of the time that is left.
  step torch "$end" 90 torch.log "$python" bench/bench_torch.py --device cuda --overhead --shapes S M L K5 --rounds 20 \
    --peers eager 'eager, channels_last' fusecell 'fusecell, recompute' --json "$out/torch.json" || ((failed += 1))
  cat "$out/torch.log" >> "$summary"
  return "$failed"
}

failed=0
"$form" || failed=$?
say "$failed failed, $SECONDS s in all"

printf '\n%s\n' "---------------------------------------------------------------------------------------- summary"
if ((failed > 0)); then
  grep -hE '^(FAILED|ERROR) |^E  |^[0-9:]+ FAILED|^========= (Error:|Invalid|Race|Uninit)' "$out"/*.log | cut -c 1-160 | sort | uniq -c | head -n 25
fi
cat "$summary"
exit "$failed"
