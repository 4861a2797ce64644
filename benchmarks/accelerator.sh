#!/usr/bin/env bash
# Measures a GPU in under 8 minutes, the most important figures first; a slow part does not use up the time of others.
#
#   benchmarks/accelerator.sh [OUT]          # default: results/benchmarks/accelerator
#   TINY=1 benchmarks/accelerator.sh OUT     # the same commands with tiny shapes on a CPU, to try this script
#
# The environment must be installed and active (PYTHON=… names another Python). DATA=DIR holds mnli and squad_v2 in the
# layout of data=local; without it Table 15 is measured on generated text. Each part writes its output to OUT/NAME.txt
# and OUT/NAME.err beside its JSON. OUT/summary.txt has every part's table, outcome and duration; it is printed at the
# end. Exit code 1: a part failed or was stopped.
set -u
mkdir -p "${1:-results/benchmarks/accelerator}" && OUT=$(cd "${1:-results/benchmarks/accelerator}" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
began=$SECONDS
rm -f "$OUT"/*.part

if [[ ${TINY:-} ]]; then
  device=cpu backbone=tiny-deberta bart=tiny-bart
  step=(--rounds 2 --batch 2)
  bart_step=(--rounds 2 --batch 2 --precision bf16)
  memory=(--tokens 8,16 --batch 2)
  written=(--documents 1 --tokens 8 --target 4 --beams 2 --rounds 1)
  flex=(--lengths 16 --batch 2 --rounds 2)
  cost=(cost.steps=2 cost.warmup_steps=1 train.batch_size=2 task.max_length=32 task=sst2 'budget=0.08%')
  TOTAL_S=${TOTAL_S:-3600}
else
  device=cuda backbone=deberta-v3-base bart=bart-large
  step=(--rounds 12 --delta-t 100)
  bart_step=(--task xsum --rounds 6 --precision bf16)
  memory=(--tokens 48,128,256 --batch 32)
  written=(--documents 16 --tokens 512 --target 62 --beams 8 --rounds 2)
  flex=()
  cost=(cost.steps=30 backbone.weights=random task=mnli,squad_v2 'budget=0.08%,0.16%,0.65%')
fi
TOTAL_S=${TOTAL_S:-470}
data=(data=sample data.sample_rows=400 data.sample_validation_rows=16)
[[ ${DATA:-} ]] && data=(data=local "data.dir=$DATA")

outcome() {  # EXIT_CODE LIMIT
  case $1 in
    0) printf done ;;
    124 | 137) printf 'stopped after %s s, its limit' "$2" ;;
    *) printf 'failed, exit code %s' "$1" ;;
  esac
}

part() {  # NAME LIMIT COMMAND…: LIMIT in seconds; no part runs beyond TOTAL_S
  local name=$1 limit=$2 left=$((TOTAL_S - SECONDS + began)) from=$SECONDS code
  shift 2
  [[ ${TINY:-} ]] && limit=$left  # a trial does not measure time
  ((limit > left)) && limit=$left
  if ((limit < 5)); then
    printf '\n== %s: left out, the time is used up\n' "$name" | tee "$OUT/$name.part" >&2
    return
  fi
  timeout --kill-after=5 "$limit" "$@" > "$OUT/$name.txt" 2> "$OUT/$name.err"
  code=$?
  printf '\n== %s: %s, %d s\n' "$name" "$(outcome "$code" "$limit")" $((SECONDS - from)) | tee "$OUT/$name.part" >&2
  {
    grep -E '^(\||sweep:|adalora / lora:|(ada)?lora .* s a step|FAILED|ERROR)|[0-9]+ (passed|failed|skipped)' "$OUT/$name.txt"
    ((code)) && tail -n 3 "$OUT/$name.err"
  } >> "$OUT/$name.part"
}

benchmark() {  # NAME LIMIT MODULE WORD…
  local name=$1 limit=$2 module=$3
  shift 3
  part "$name" "$limit" "$PYTHON" -m "benchmarks.$module" --device "$device" --out "$OUT" "$@"
}

cost() {  # NAME LIMIT PRECISION
  part "$1" "$2" "$PYTHON" -m adalora_repro.cli.run -m +sweep=table15 "backbone=$backbone" "${cost[@]}" "${data[@]}" \
    method.schedule=scaled "train.precision=$3" "train.device=$device" "results.dir=$OUT/$1" \
    "data.cache_dir=$OUT/cache"
}

"$PYTHON" -c "import sys, torch
if '$device' == 'cuda' and not torch.cuda.is_available():
    sys.exit('accelerator.sh: torch finds no GPU here (TINY=1 tries the script on a CPU)')
print(torch.cuda.get_device_name() if '$device' == 'cuda' else 'CPU, tiny shapes: a trial of the script, no figures')
print(f'torch {torch.__version__}; fp32 products with TF32: {torch.get_float32_matmul_precision() != \"highest\"}')
" > "$OUT/first.part" || exit 2

part tests 110 "$PYTHON" -m pytest -m gpu tests/gpu -n 0 -q -rf --tb=short &
benchmark memory 110 memory --shape "$backbone" "${memory[@]}" &  # counts bytes: may share the GPU with the tests
wait
benchmark step 120 step --shape "$backbone" "${step[@]}"
cost cost 190 fp32
benchmark bart 60 step --shape "$bart" "${bart_step[@]}"
benchmark generation 50 generation --shape "$bart" "${written[@]}"
benchmark flex 60 flex --shape "$backbone" "${flex[@]}"
cost cost_bf16 170 bf16

rm -rf "$OUT/cache"
{
  for name in first tests step cost memory bart generation flex cost_bf16; do cat "$OUT/$name.part"; done
  printf '\nin all: %d s\n\n' $((SECONDS - began))
  for name in cost cost_bf16; do
    [[ -d $OUT/$name ]] || continue  # left out, or stopped before anything was filed
    echo "$name:"
    "$PYTHON" -m adalora_repro.cli.report table15 --backbone "$backbone" --only-filled --results "$OUT/$name" 2>&1
  done
} > "$OUT/summary.txt"
cat "$OUT/summary.txt"
! grep -qE '^== .*: (failed|stopped)' "$OUT"/*.part
code=$?
rm "$OUT"/*.part
exit $code
