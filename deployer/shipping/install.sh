#!/bin/sh
# Install deployer and import the bundle beside this script, without a network:
#   sh install.sh [FOLDER]      FOLDER (default: ~/deployer) gets the program
# PYTHON names another interpreter; DEPLOYER_VERIFY_KEY=PUBLIC.pem demands a good signature.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python@PYTHON@}
wheels=$here/wheels/deployer

fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

mkdir -p -- "${1:-$HOME/deployer}"
folder=$(CDPATH='' cd -- "${1:-$HOME/deployer}" && pwd)
case $folder/ in
    "$here"/*) fail "$folder lies in the archive's own folder" "Name a folder outside of it." ;;
esac
command -v "$python" >/dev/null ||
    fail "$python is not installed" "Install Python @PYTHON@, or set PYTHON=... to one."
"$python" -I - "$here/offline.json" <<'CHECK' || exit 1
import json, platform, sys
wanted = json.load(open(sys.argv[1], encoding="utf-8"))
here = {
    "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
    "system": platform.system(),
    "machine": platform.machine(),
}
wrong = [f"{name} {wanted[name]} is needed, here it is {here[name]}"
         for name in here if here[name] != wanted[name]]
if wrong:
    sys.exit(f"error: this archive is for another machine: {'; '.join(wrong)}\n"
             "hint: Export the bundle again on a machine like this one.")
CHECK
"$python" -I -m venv "$folder" ||
    fail "$python cannot make a virtual environment in $folder" \
        "On Debian: apt-get install python@PYTHON@-venv. Or name another folder."
echo "installing deployer in $folder"
"$folder/bin/python" -I -m pip --isolated install --quiet --disable-pip-version-check \
    --no-index --find-links "$wheels" --no-deps --force-reinstall \
    --require-hashes -r "$wheels/requirements.txt" ||
    fail "deployer could not be installed from $wheels" "The lines above say why."
"$folder/bin/deployer" import "$here"
echo "The deployer command is $folder/bin/deployer"
