# Sourced by the other scripts: `environment EXTRA...` brings .venv up to date with the project's extras.

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Print the first Python that is new enough and can make a virtual environment. PYTHON=/path overrides the search.
find_python() {
    local candidate candidates version incomplete=""
    candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        # Run it: a name on PATH may be a version manager's shim for a version that isn't selected.
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        incomplete=${incomplete:-$version}
    done
    if [ -n "$incomplete" ]; then
        say "Python $incomplete has no ensurepip, which makes virtual environments. Install it and try again:"
        say "  Debian, Ubuntu:  apt-get install python$incomplete-venv   (or python3-venv)"
        say "  openSUSE:        zypper install python${incomplete/./}-pip"
        fail "or name another Python with PYTHON=/path/to/python."
    fi
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is not a Python of version 3.11 or newer."
    fi
    fail "Python 3.11 or newer is needed, and none was found. Install one, or name it with PYTHON=/path/to/python."
}

environment() {
    local python
    python=$(find_python) || exit 1
    "$python" scripts/environment.py "$@"
}
