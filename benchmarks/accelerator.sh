#!/usr/bin/env bash
# Measures a GPU in under 8 minutes: steps, attention, generation, memory, the tests marked gpu, and Table 15.
#
#   benchmarks/accelerator.sh [OUT]          # default: results/benchmarks/accelerator
#   TINY=1 benchmarks/accelerator.sh OUT     # the same commands with tiny shapes on a CPU, to try this script
#
# The environment must be installed and active (PYTHON=… names another Python). DATA=DIR holds mnli and squad_v2 in the
# layout of data=local; without it Table 15 is measured on generated text. Each part has a time limit of its own and
# writes its output to OUT/NAME.txt and OUT/NAME.err beside its JSON. OUT/summary.txt, printed at the end, has every
# part's table, outcome and duration, then goals beside figures. Exit code 1: a part failed or ran out of time.
set -u
mkdir -p "${1:-results/benchmarks/accelerator}" && OUT=$(cd "${1:-results/benchmarks/accelerator}" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

device=cuda backbone=deberta-v3-base bart=bart-large seconds=455
step=(--rounds 12 --delta-t 100)
bart_step=(--rounds 6)
generation=()
flex=()
memory=(--tokens 48,128,256)
cost=(cost.steps=30 backbone.weights=random task=mnli,squad_v2 'budget=0.08%,0.16%,0.65%')
if [[ ${TINY:-} ]]; then
  device=cpu backbone=tiny-deberta bart=tiny-bart seconds=4550
  step=(--rounds 2 --batch 2)
  bart_step=(--rounds 2 --batch 2)
  generation=(--rounds 1 --batch 2 --written 8)
  flex=(--rounds 2 --batch 2 --tokens 8,40)
  memory=(--tokens 8,16 --batch 2)
  cost=(cost.steps=2 cost.warmup_steps=1 train.batch_size=2 task.max_length=32 task=sst2 'budget=0.08%')
fi
data=(data=sample data.sample_rows=400 data.sample_validation_rows=16)
[[ ${DATA:-} ]] && data=(data=local "data.dir=$DATA")

"$PYTHON" -c "import datasets, hydra, peft, pytest, rouge_score, sys, torch, transformers
if '$device' == 'cuda' and not torch.cuda.is_available():
    sys.exit('accelerator.sh: torch finds no GPU here (TINY=1 tries the script on a CPU)')
print(torch.cuda.get_device_name() if '$device' == 'cuda' else 'CPU, tiny shapes: a trial of the script, no figures')
print(f'torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}; '
      f'fp32 products with TF32: {torch.get_float32_matmul_precision() != \"highest\"}')
" > "$OUT/summary.txt" || exit 2
cat "$OUT/summary.txt"

part() {  # NAME LIMIT COMMAND…: LIMIT in seconds, ten times as many for a trial on a CPU; no part outlives $seconds
  local name=$1 limit=$(($2 * (${TINY:+9} + 1))) began=$SECONDS code outcome=done
  shift 2
  ((limit > seconds - SECONDS)) && limit=$((seconds - SECONDS))
  ((limit > 0)) || limit=1
  timeout --kill-after=5 "$limit" "$@" > "$OUT/$name.txt" 2> "$OUT/$name.err"
  code=$?
  case $code in
    0) ;;
    124 | 137) outcome="stopped after its limit of $limit s" ;;
    *) outcome="failed with exit code $code" ;;
  esac
  {
    printf '\n== %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - began))
    grep -E '^(\||peak rate|sweep:|FAILED|ERROR)|[0-9]+ (passed|failed|skipped)' "$OUT/$name.txt"
    ((code)) && tail -n 3 "$OUT/$name.err"
  } | tee -a "$OUT/summary.txt"
}

benchmark() {  # NAME LIMIT MODULE WORD…
  local name=$1 limit=$2 module=$3
  shift 3
  part "$name" "$limit" "$PYTHON" -m "benchmarks.$module" --device "$device" --out "$OUT" "$@"
}

benchmark step 110 step --shape "$backbone" "${step[@]}"
benchmark flex 80 flex --shape "$backbone" "${flex[@]}"
benchmark bart 45 step --shape "$bart" --task xsum --precision bf16 "${bart_step[@]}"
benchmark generation 45 generation --shape "$bart" "${generation[@]}"
part tests 90 "$PYTHON" -m pytest -m gpu tests/gpu -n 0 -rf --tb=short &  # neither of the two measures time
benchmark memory 90 memory --shape "$backbone" "${memory[@]}"
wait
part cost "$seconds" "$PYTHON" -m adalora_repro.cli.run -m +sweep=table15 "backbone=$backbone" "${cost[@]}" "${data[@]}" \
  method.schedule=scaled "train.device=$device" "results.dir=$OUT" "data.cache_dir=$OUT/cache"
[[ -d $OUT/cost ]] && "$PYTHON" -m adalora_repro.cli.report table15 --backbone "$backbone" --only-filled --format markdown \
  --results "$OUT" 2>&1 | tee -a "$OUT/summary.txt"

{
  printf '\n== goals\n'
  grep -h '^goal: ' "$OUT"/{step,flex,bart,memory}.txt
} | tee -a "$OUT/summary.txt"
rm -rf "$OUT/cache"
! grep -qE '^== \w+: (failed|stopped)' "$OUT/summary.txt"
