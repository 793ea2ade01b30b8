# Sourced by scripts/run and scripts/test. Sets up a fresh Debian or Ubuntu with Python 3.11+.
# Progress goes to standard error; standard output belongs to the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "error: Python 3.11 or newer is needed. Install it, or set PYTHON to its path."
    exit 1
}

apt_install() {
    local sudo=""
    if [ "$(id -u)" != 0 ]; then sudo="sudo"; fi
    if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
        say "error: $* is needed and cannot be installed here (no apt-get, or no root). Install it by hand."
        exit 1
    fi
    say "installing $* ..."
    $sudo apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >&2
}

# make_venv EXTRAS: set up .venv, and again when EXTRAS or pyproject.toml changed.
make_venv() {
    local want
    want="$1 $(cksum <pyproject.toml)"
    if [ -x .venv/bin/python ] && [ "$(cat .venv/ready 2>/dev/null)" = "$want" ]; then return; fi
    local python
    python=$(find_python)
    say "setting up .venv with $($python --version) ..."
    if ! "$python" -m venv .venv >&2; then
        rm -rf .venv
        apt_install "python3-venv"
        "$python" -m venv .venv >&2
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1" >&2
    echo "$want" >.venv/ready
}

# For the tests of what runs in browsers: the npm packages of tests/browser, and Chromium. Tests skip without them.
set_up_browsers() {
    local folder=tests/browser
    if ! command -v npm >/dev/null; then without "Node and npm" apt_install nodejs npm; fi
    if ! command -v chromium >/dev/null; then without Chromium apt_install chromium; fi
    if command -v npm >/dev/null && ! cmp -s $folder/package-lock.json $folder/node_modules/ready; then
        say "installing the packages of $folder ..."
        without "npm's packages" npm_ci $folder
    fi
    without "the page's libraries" .venv/bin/python -c 'from llamagpu.browser.libraries import LIBRARIES, fetched
for library in LIBRARIES:
    fetched(library)'
}

# npm_ci FOLDER: install the packages of its lock file. A copy of that file marks them as complete.
npm_ci() {
    cd "$1" && npm ci --loglevel=error >&2 && cp package-lock.json node_modules/ready
}

# without WHAT COMMAND...: go on if the command fails.
without() {
    local what="$1"
    shift
    if ! ("$@"); then say "warning: going on without $what; the tests that need it skip."; fi
}

# Use the GPU's own Vulkan driver if there is one, otherwise install Mesa's software driver.
find_adapter() {
    if .venv/bin/python -c 'import sys
from llamagpu import gpu
sys.exit(not any(a.usable for a in gpu.list_adapters()))' 2>/dev/null; then return; fi
    if [ "$(uname)" = Linux ]; then apt_install mesa-vulkan-drivers libvulkan1; fi
}
