# Statically linked binaries of the project. Sourced by `run`; uses $tests, $root and $cache, fills $binaries.
# shellcheck shell=bash disable=SC2154,SC2034

# Builds the tests with what they run, all programs, or a single one.
build() { # tests | all | NAME
    local package test rest words=() messages=$cache/cargo.json
    for rest in "${tests[@]}"; do
        read -r package test rest <<< "$rest"
        [[ $1 = tests || $1 = all || $1 = "$test" ]] || continue
        words+=(-p "$package" --test "$test")
    done
    # Alone, transhume is built without what only tests switch on.
    if [[ $1 = transhume || $1 = all || ${words[*]} = *two_nodes* ]]; then
        words+=(-p transhume --bin transhume)
    fi
    (
        cd "$root"
        RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
            cargo build --locked --profile two-node --target x86_64-unknown-linux-gnu \
            --target-dir "$cache/build" "${words[@]}" --message-format=json-render-diagnostics
    ) > "$messages" || die "the build failed" 1
    mapfile -t binaries < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$messages")
}

# Whether a name is that of a program of the project.
is_ours() { # NAME
    [ "$1" = transhume ] || printf '%s\n' "${tests[@]}" | cut -d ' ' -f 2 | grep -xF -- "$1" >/dev/null
}

# Whether a program is linked to shared libraries.
needs_libraries() { # FILE
    ldd "$1" 2>/dev/null | grep -q '=>'
}
