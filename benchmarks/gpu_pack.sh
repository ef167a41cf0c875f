#!/usr/bin/env bash
# Gathers in one folder what benchmarks/gpu.py needs on a GPU machine that reaches no network.
#
#     benchmarks/gpu_pack.sh FOLDER PHOTOS [CIFAR10]
#
# PHOTOS: a folder with JPEG files, or with Parquet files that have a column "image". CIFAR10: a folder with CIFAR-10 as
# Parquet (train-*.parquet and test-*.parquet with the columns "image" and "label"); without it the last part of gpu.py
# is left out. Both are copied file by file; of the photos only as many files as there is room for.
#
# FOLDER gets wheels/, photos/ and cifar10/. Together with the files that git tracks they take at most LIMIT_MIB (64)
# MiB. The script says what takes how much, and fails where no photos fit.
#
# The wheels are for Linux (x86-64) and Python PYTHON_VERSION (3.12), on a machine that has PyTorch >= 2.6, torchvision,
# accelerate, huggingface_hub >= 1.31, tokenizers >= 0.23.1, safetensors, timm, pyarrow >= 24, pandas, scikit-learn, scipy,
# matplotlib, Pillow, psutil, PyYAML, Jinja2 and tqdm. WHEELS names others.
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$1 photos=$2 cifar10=${3:-}
limit=$((${LIMIT_MIB:-64} * 1024 * 1024))
version=${PYTHON_VERSION:-3.12}
# Pre-training imports neither evaluate nor faster-coco-eval, so these stay behind.
wheels=${WHEELS:-"transformers==5.24.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 simplejpeg==1.9.0 tenacity==9.2.1"}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
rm -rf "$folder/wheels" "$folder/photos" "$folder/cifar10"
mkdir "$folder/wheels" "$folder/photos"

platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
# shellcheck disable=SC2086  # a list
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" --dest "$folder/wheels" $wheels

bytes_of() { (cd "$1" && find . -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'); }
tracked() { (cd "$root" && git ls-files -z | xargs -0 stat --format %s 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }'); }
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

copy() { # file, folder it lies in, folder it goes to
    local there="$3/${1#"$2"/}"
    mkdir -p "$(dirname "$there")"
    cp "$1" "$there"
}

if [ -n "$cifar10" ]; then
    mkdir "$folder/cifar10"
    while IFS= read -r file; do
        copy "$file" "${cifar10%/}" "$folder/cifar10"
    done < <(find "${cifar10%/}" -name '*.parquet' | sort)
fi

left=$((limit - $(bytes_of "$folder") - $(tracked)))
count=0 total=0
while IFS= read -r file; do
    total=$((total + 1))
    size=$(stat --format %s "$file")
    [ "$size" -le "$left" ] || continue
    copy "$file" "${photos%/}" "$folder/photos"
    left=$((left - size)) count=$((count + 1))
done < <(find "${photos%/}" \( -name '*.parquet' -o -iname '*.jpg' -o -iname '*.jpeg' \) | sort)

echo "tracked files  $(mib "$(tracked)")"
for part in wheels photos cifar10; do
    [ -d "$folder/$part" ] && echo "$part  $(mib "$(bytes_of "$folder/$part")")"
done
echo "together  $(mib $(($(bytes_of "$folder") + $(tracked)))) of at most $(mib "$limit"); $count of $total files with photos"
if [ "$count" -eq 0 ]; then
    echo "No room for any photos, or none in $photos." >&2
    exit 1
fi

cat <<END

There, in the checkout, with $folder as PACK:

python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site PACK/wheels/*.whl
PYTHONPATH=/tmp/site python3 benchmarks/gpu.py --photos PACK/photos${cifar10:+ --cifar10 PACK/cifar10} \\
    --commit $(cd "$root" && git describe --always --dirty) --output gpu_figures
END
