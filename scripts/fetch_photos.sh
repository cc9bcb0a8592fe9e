#!/usr/bin/env bash
# Make a data set of some 180 photographs with free licences, out of Debian packages; these are downloaded (250 MB)
# but not installed, so that no root is needed.
#   bash scripts/fetch_photos.sh OUT
# OUT/train and OUT/val: photographs. OUT/test: a data set folder with 256x256 crops of other photographs as its val.
# OUT/licences.tsv: whose they are. A folder that is there already is reused; delete it to make it anew.
set -euo pipefail
if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
  echo "usage: bash scripts/fetch_photos.sh OUT" >&2
  exit 2
fi
fail() {
  echo "fetch_photos.sh: error: $*" >&2
  exit 2
}
case $1 in /*) out=${1%/} ;; *) out=$PWD/${1%/} ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -e "$out/licences.tsv" ]; then
  echo "$1: photographs are there, reused"
  exit 0
fi
if [ -e "$out" ] && ! rmdir "$out" 2>/dev/null; then
  fail "$1: holds something else; name a folder that is not there yet"
fi
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "needs $tool, which Debian and its relatives have"
done
bash scripts/setup.sh requirements.txt

# Downloads that were interrupted go on from here.
partial=$out.partial
mkdir -p "$partial/packages"
rm -rf "$partial/photos"
for package in $(tail -n +2 scripts/photos.tsv | cut -f 3 | sort -u); do
  echo "downloading $package"
  (cd "$partial/packages" && apt-get download -qq "$package") 2>"$partial/log" >&2 ||
    echo "fetch_photos.sh: left out $package: $(grep -m 1 "^E:" "$partial/log") (run apt-get update first?)" >&2
done
.venv/bin/python scripts/fetch_photos.py "$partial/packages" "$partial/photos"
mv "$partial/photos" "$out"
rm -r "$partial"
echo "Photographs: $1/train, $1/val and $1/test/val; whose they are: $1/licences.tsv"
