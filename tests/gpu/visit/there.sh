#!/usr/bin/env bash
# On the GPU machine, in the folder of the checkout: keep the part that came with this call; with all parts, measure.
#
#   bash tests/gpu/visit/there.sh keep .gpu/parts/00of09        (once a part)
#   bash tests/gpu/visit/there.sh run [--only PART …]           (opens the parts; `python -m visit run`; again: goes on)
#   bash tests/gpu/visit/there.sh test [pytest's options]       (tests/gpu/test_plans.py, for what time is left)
#
# $OUT is what comes back. All else lies in $TENSORRT_KIT, which stays between calls.
set -euo pipefail
# Where the kit's own unpack.sh looks for it.
there=${TENSORRT_KIT:-/tmp/tensorrt-kit}
# The whole command's, opening the parts counted; a command may take 600.
budget_s=${VISIT_BUDGET_S:-540}

open_parts() {
    shopt -s nullglob
    local parts=("$there"/parts/*of*) count="?"
    [ ${#parts[@]} -eq 0 ] || count=$((10#${parts[0]##*of}))
    if [ ${#parts[@]} != "$count" ]; then
        echo "there.sh: all parts must have been kept, got ${#parts[@]} of $count (${parts[*]##*/}); keep the others" >&2
        exit 2
    fi
    # Streams of xz one after the other, tar archives in each. Where there is no xz, the image's Python has it.
    if command -v xz > /dev/null; then
        cat "${parts[@]}" | xz -dc -T0 | tar -C "$there" -xif -
    else
        cat "${parts[@]}" | python3 -c 'import lzma, sys, tarfile
with lzma.open(sys.stdin.buffer) as plain, tarfile.open(fileobj=plain, mode="r|", ignore_zeros=True) as archive:
    archive.extraction_filter = lambda member, _: member  # `filter=` is not in every 3.10 and 3.11
    archive.extractall(sys.argv[1])' "$there"
    fi
    touch "$there/opened"
    echo "there.sh: opened ${#parts[@]} parts in $SECONDS s"
}

case ${1:-} in
keep)
    mkdir -p "$there/parts"
    cp "$2" "$there/parts/"
    ls "$there/parts"
    ;;
run | test)
    verb=$1
    shift
    torch=$(command -v python3)
    [ -e "$there/opened" ] || open_parts
    # It takes PYTHONPATH away, and its Python before the image's.
    source "$there/unpack.sh" open
    export PYTHONPATH=$PWD/generator:$PWD/server:$PWD/tests/gpu PYTHONUNBUFFERED=1
    if [ "$verb" = test ]; then
        export TRITONPRESS_VISIT=$there/visit TRITONPRESS_WORK=$there/work
        exec timeout "$budget_s" python3 -m pytest --confcutdir=tests/gpu -p no:cacheprovider -q -W default -m gpu \
            tests/gpu/test_plans.py "$@"
    fi
    exec python3 -m visit run "$there/visit" --work "$there/work" --out "$OUT" --python "$torch" \
        --budget-s $((budget_s - SECONDS)) "$@"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
