# The machine with two nodes. Sourced by `run`; uses $here, $cache, $tests, $program, $icount and $limit.
# shellcheck shell=bash disable=SC2154

# All that the guest has: busybox, the binaries, and what to run.
make_initramfs() { # FILE BINARY...
    local file=$1 into=$1.root busybox binary test words
    shift
    mkdir -p "$into"/{bin,dev,etc,proc,programs,sys,tmp}
    busybox=$(find "$cache/tools" -path '*bin/busybox')
    "$busybox" --list | while read -r words; do
        ln -sf busybox "$into/bin/$words"
    done
    cp --remove-destination "$busybox" "$into/bin/busybox"
    ln -sf bin "$into/sbin"
    cp "$here/guest-init" "$into/init"
    printf '%s\n' root:x:0:0:root:/:/bin/sh nobody:x:65534:65534:nobody:/:/bin/sh > "$into/etc/passwd"
    printf '%s\n' root:x:0: nogroup:x:65534: > "$into/etc/group"
    for binary in "$@"; do
        # Cargo puts a hash behind the names of tests.
        words=$(basename "$binary")
        [ "${binary#"$cache/build/"}" = "$binary" ] || words=${words%-[0-9a-f]*}
        cp "$binary" "$into/programs/$words"
        chmod 755 "$into/programs/$words"
    done
    if [ ${#program[@]} -gt 0 ]; then
        echo "${program[@]@Q}" > "$into/program"
    else
        for test in "${tests[@]}"; do
            echo "${test#* }"
        done > "$into/tests"
    fi
    (cd "$into" && find . | "$busybox" cpio -o -H newc) > "$file" 2>/dev/null
    [ -n "$keep" ] || rm -rf "$into"
}

# Boots a kernel. What the guest's programs write is shown and kept in FILES.output, what its kernel writes in
# FILES.console. Returns the status that the guest says, 124 at the limit, 125 if it says none.
boot() { # IMAGE INITRAMFS FILES
    local tries code
    for tries in 3 2 1; do
        code=0
        boot_once "$@" || code=$?
        # Rarely a CPU of QEMU meets a breakpoint that the kernel has set and taken away again while it changed
        # its own code, or faults in the middle of an instruction that cannot. That says nothing of the programs.
        [[ $code = 125 && $tries -gt 1 ]] && grep -aqE '(int3|double fault): 0000' "$3.console" || return "$code"
        echo "two-node: QEMU has led the kernel astray; booting again" >&2
    done
}

boot_once() { # IMAGE INITRAMFS FILES
    # With cmpxchg16b, which QEMU's threads do not keep whole, the kernel's allocator breaks its lists.
    local libraries speed options="" status=0 said cpu=max,la57=off,cx16=off
    # Node 1 is like memory behind a cable: at distance 21, nearly three times the latency, a sixth of the
    # bandwidth. So the kernel takes it for a lower tier. Node 2 is a little of the same, for what wants several
    # destinations.
    local near=hierarchy=memory,initiator=0,target=0 far=hierarchy=memory,initiator=0,target=1
    local third=hierarchy=memory,initiator=0,target=2
    if [ -n "$icount" ]; then
        # Counts repeat only if nothing comes from outside: no clock, no random numbers.
        speed=(-accel "tcg,thread=single,tb-size=512" -icount "shift=0,sleep=off"
            -rtc "clock=vm,base=2026-01-01" -seed 1)
        options="nokaslr norandmaps"
        # Each step of a string instruction is counted; with these there is one a byte where there could be one a word.
        cpu=$cpu,erms=off,fsrm=off
    else
        speed=(-accel "tcg,thread=multi,tb-size=512")
    fi
    libraries=$cache/tools/usr/lib/x86_64-linux-gnu:$cache/tools/lib/x86_64-linux-gnu
    PATH=$PATH:$cache/tools/usr/bin LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
        timeout "$limit" qemu-system-x86_64 "${speed[@]}" -cpu "$cpu" -machine q35,hmat=on,usb=off \
        -m 2816M -smp 2 \
        -object memory-backend-ram,id=near,size=1536M -object memory-backend-ram,id=far,size=1G \
        -object memory-backend-ram,id=third,size=256M \
        -numa node,nodeid=0,memdev=near,cpus=0-1,initiator=0 -numa node,nodeid=1,memdev=far,initiator=0 \
        -numa node,nodeid=2,memdev=third,initiator=0 \
        -numa dist,src=0,dst=1,val=21 -numa dist,src=0,dst=2,val=21 -numa dist,src=1,dst=2,val=31 \
        -numa "hmat-lb,$near,data-type=access-latency,latency=90" \
        -numa "hmat-lb,$near,data-type=access-bandwidth,bandwidth=200G" \
        -numa "hmat-lb,$far,data-type=access-latency,latency=250" \
        -numa "hmat-lb,$far,data-type=access-bandwidth,bandwidth=30G" \
        -numa "hmat-lb,$third,data-type=access-latency,latency=250" \
        -numa "hmat-lb,$third,data-type=access-bandwidth,bandwidth=30G" \
        -nodefaults -no-user-config -display none -no-reboot \
        -serial stdio -serial "file:$3.console" -kernel "$1" -initrd "$2" \
        -append "console=ttyS1 panic=-1 oops=panic mitigations=off tsc=reliable no_timer_check numa_balancing=disable $options" \
        < /dev/null 2> "$3.errors" | tee "$3.output" || status=${PIPESTATUS[0]}
    # A kernel that complains may still do.
    grep -aE 'BUG:|WARNING:|Oops|Kernel panic' "$3.console" >&2 || true
    said=$(sed -nE 's/^two-node: status ([0-9]+)\r?$/\1/p' "$3.console" 2>/dev/null | tail -1)
    [ -z "$said" ] || return "$said"
    cat "$3.errors" >&2
    tail -n 25 "$3.console" >&2 || true
    if [ "$status" = 124 ]; then
        echo "two-node: not done after $limit s" >&2
        return 124
    fi
    echo "two-node: the guest broke down" >&2
    return 125
}
