#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than nine minutes: builds the library for the
# GPU of this machine, tests, checks, measures and profiles it.
#
#   scripts/gpu_check.sh [--dry-run] [--budget SECONDS] OUT
#
# OUT gets summary.txt (each stage with its outcome and time), log.txt (what the stages printed),
# tests.xml, benchmark.json, batches.json, peers.json, ncu.csv and golden.npz. A stage that fails or
# runs out of its time does not keep the next ones from running; the exit status tells.
# Needed: nvcc, a torch with CUDA, numpy, pytest and its plugins, setuptools, CMake, tabulate, tqdm.
# ncu, compute-sanitizer and spio are used where they are. No network.
set -uo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

budget=530
dry_run=0
out=
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --budget)
      budget=${2-}
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    -*)
      printf 'unknown option %s\n' "$1" >&2
      exit 2
      ;;
    *) out=$1 ;;
  esac
  shift
done
if [[ -z $out || ! $budget =~ ^[0-9]+$ ]]; then
  usage >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ((!dry_run)); then
  mkdir -p "$out" || exit 2
  out=$(cd "$out" && pwd)
  : >"$out/summary.txt"
  : >"$out/log.txt"
fi
cd "$root" || exit 2
export PYTHONUNBUFFERED=1 OUT=$out
# The row-streaming kernels are chosen wherever they can compute, as they would be if measured.
export GROUPED_CONV_CUDA_AUTO=1
failed=0

report() {
  printf '%-14s %-12s %4d s\n' "$@" | tee -a "$out/summary.txt"
}

# stage NAME SECONDS COMMAND: run a command of the shell, for no longer than its time and the rest
# of the budget.
stage() {
  local name=$1 limit=$2 command=$3 start=$SECONDS left=$((budget - SECONDS)) status
  if ((dry_run)); then
    printf '%-14s %4d s  %s\n' "$name" "$limit" "$command"
    return
  fi
  if ((left < 1)); then
    report "$name" "no time" 0
    failed=1
    return
  fi
  printf '\n=== %s: %s\n' "$name" "$command" >>"$out/log.txt"
  timeout --kill-after=5 "$((left < limit ? left : limit))" bash -c "$command" >>"$out/log.txt" 2>&1
  status=$?
  case $status in
    0) report "$name" passed $((SECONDS - start)) ;;
    77) report "$name" skipped $((SECONDS - start)) ;;
    124 | 137) report "$name" "out of time" $((SECONDS - start)) && failed=1 ;;
    *) report "$name" FAILED $((SECONDS - start)) && failed=1 ;;
  esac
}

bench='python3 benchmarks/grouped_conv.py --device cuda --layout nhwc --passes all'
# One tool of the sanitizer over tests of odd shapes. Every array is an allocation of its own, so
# that an access beyond its end is one beyond the allocation's.
sanitize() {
  printf '%s' "command -v compute-sanitizer || exit 77; PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
compute-sanitizer --tool $1 --error-exitcode 1 --print-limit 20 \
python3 -m pytest -q -p no:cacheprovider tests/test_cuda.py -k 'views or empty_batch or paddings'"
}

stage machine 20 'nvidia-smi; nvcc --version; cmake --version; python3 -m torch.utils.collect_env'
stage build 150 'python3 -m pip install -v --no-index --no-deps --no-build-isolation -e .'
stage import 30 'python3 -c "
import grouped_conv, torch
from grouped_conv import _C, _libraries
print(_C.build_info(), grouped_conv.available_backends())
assert _libraries.cuda_absent_reason() is None, _libraries.cuda_absent_reason()
assert torch.cuda.is_available()"'
stage tests 100 'python3 -m pytest -q -p no:cacheprovider tests/test_cuda.py --junitxml "$OUT/tests.xml"'
stage benchmark 90 "$bench --dtype float16 --batch 256 --min-time 0.05 --repeats 10 --json \"\$OUT/benchmark.json\""
stage golden 30 'python3 scripts/golden_vectors.py "$OUT/golden.npz"'
stage compare 30 'recorded=tests/golden/sm_$(python3 -c "import torch
print(*torch.cuda.get_device_capability(), sep=str())").npz
  [[ -e $recorded ]] || exit 77; python3 scripts/golden_vectors.py --compare "$recorded"'
stage ncu 60 'command -v ncu || exit 77; ncu --csv --log-file "$OUT/ncu.csv" --clock-control none \
  --kernel-name "regex:rowstream|nchw|tiled|wgrad_reduce" --metrics gpu__time_duration.sum,\
dram__bytes_read.sum,dram__bytes_write.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,\
smsp__inst_executed.sum,smsp__issue_active.avg.pct_of_peak_sustained_active,\
sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread,\
l1tex__data_bank_conflicts_pipe_lsu.sum,sm__inst_executed_pipe_tensor.sum \
  python3 scripts/golden_vectors.py --layers'
stage memcheck 60 "$(sanitize memcheck)"
stage racecheck 60 "$(sanitize racecheck)"
stage initcheck 45 "$(sanitize initcheck)"
stage batches 60 "$bench --dtype bfloat16 --batch 32,64 --min-time 0.02 --repeats 5 --json \"\$OUT/batches.json\""
stage nchw 45 "$bench --layout nchw --dtype float16 --batch 64 --min-time 0.02 --repeats 5 --json \"\$OUT/nchw.json\""
stage float32 45 "$bench --layout nhwc,nchw --backend native --batch 64 --min-time 0.01 --repeats 5 --json \"\$OUT/float32.json\""
stage regnet 60 "$bench --problems regnet --backend native --dtype float16 --batch 64 --min-time 0.005 --repeats 3 --json \"\$OUT/regnet.json\""
stage peers 60 "peers=torch,inductor; python3 -c 'import spio' && peers+=,spio; \
$bench --problems 128x56x56,g32,256x28x28,g32 --dtype float16 --batch 64 --min-time 0.05 --repeats 10 --peers \$peers \
--json \"\$OUT/peers.json\""
stage triton 60 'python3 -c "import triton" || exit 77; python3 -m pytest -q -p no:cacheprovider tests/test_triton_cuda.py'
stage triton_bench 60 "python3 -c 'import triton' || exit 77; $bench --backend triton --peers torch,native --dtype float16 --batch 256 --min-time 0.02 --repeats 5 \
--json \"\$OUT/triton.json\""
stage gates 30 'python3 tests/sass/gates.py grouped_conv/_cuda.so'

if ((!dry_run)); then
  printf '%d s in all\n' $SECONDS | tee -a "$out/summary.txt"
fi
exit $failed
