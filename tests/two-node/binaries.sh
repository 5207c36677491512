# Statically linked binaries of the project. Sourced by `run`; uses $tests, $root and $cache, fills $binaries.
# shellcheck shell=bash disable=SC2154

# Builds the binaries of all tests, or a single one.
build() { # tests | NAME
    local package test rest words=() messages=$cache/cargo.json
    for rest in "${tests[@]}"; do
        read -r package test rest <<< "$rest"
        [ "$1" = tests ] || [ "$1" = "$test" ] || continue
        words+=(-p "$package" --test "$test")
    done
    # Alone, transhume is built without what only tests switch on.
    if [ "$1" = transhume ]; then
        words=(-p transhume --bin transhume)
    elif [ "$1" = two_nodes ] || [[ ${words[*]} = *two_nodes* ]]; then
        words+=(-p transhume --bin transhume)
    fi
    (
        cd "$root"
        RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
            cargo build --locked --profile two-node --target x86_64-unknown-linux-gnu \
            --target-dir "$cache/build" "${words[@]}" --message-format=json-render-diagnostics
    ) > "$messages" || die "the build failed" 1
    mapfile -t binaries < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$messages")
    [ ${#binaries[@]} -gt 0 ] || die "there is no '$1' to build" 2
}

# Whether a program is linked to shared libraries.
needs_libraries() { # FILE
    ldd "$1" 2>/dev/null | grep -q '=>'
}
