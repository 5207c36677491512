# What comes from Debian: kernels, QEMU, busybox. Sourced by `run`; uses $cache, $work and die.
#
# All of it is unpacked below $cache and nothing is installed: that needs no root, and QEMU of one version
# would push out what the machine has of another. apt works with folders of its own, checks signatures as
# always, and asks the mirror that the machine already uses.
# shellcheck shell=bash disable=SC2154

# Makes $apt ready for one suite. How the machine reaches its mirror holds here too, such as a proxy.
open_suite() { # SUITE
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg mirror
    command -v apt-get >/dev/null || die "needs apt-get, to fetch kernels and QEMU from Debian"
    [ -e "$keys" ] || die "needs $keys: apt-get install debian-archive-keyring"
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -v '^ *#' | grep -oE -m1 'https?://[^ ]+/debian/?( |$)' | tr -d ' ') || mirror=
    mkdir -p "$apt"/{etc,lists/partial,cache/archives/partial}
    echo "deb [arch=amd64 signed-by=$keys] ${mirror:-http://deb.debian.org/debian} $1 main" > "$apt/etc/sources.list"
    {
        apt-config dump | grep "^Acquire::" | grep -v "^Acquire::IndexTargets"
        cat <<END
Dir::Etc "$apt/etc";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
END
    } > "$apt/etc/apt.conf"
    quietly apt-get update
}

# Downloads packages and unpacks them.
unpack() { # FOLDER PACKAGE...
    local into=$1 deb
    shift
    (cd "$apt/cache" && quietly apt-get download "$@")
    for deb in "$apt"/cache/*.deb; do
        dpkg-deb -x "$deb" "$into"
    done
}

# A command with this apt; what it says is shown only if it fails.
quietly() {
    APT_CONFIG=$apt/etc/apt.conf "$@" > "$apt/log" 2>&1 || {
        cat "$apt/log" >&2
        die "failed: $*"
    }
}

# QEMU if the machine has none, and a static busybox.
get_tools() {
    local apt packages=(busybox-static)
    [ ! -d "$cache/tools" ] || ! PATH=$PATH:$cache/tools/usr/bin command -v qemu-system-x86_64 >/dev/null || return 0
    echo "two-node: fetching QEMU and busybox" >&2
    apt=$work/tools
    # shellcheck source=/dev/null
    open_suite "$(. /etc/os-release && echo "$VERSION_CODENAME")"
    if ! command -v qemu-system-x86_64 >/dev/null; then
        # What would be installed is what the machine lacks.
        quietly apt-get install -s --no-install-recommends qemu-system-x86
        mapfile -t -O 1 packages < <(sed -n 's/^Inst \([^ ]*\).*/\1/p' "$apt/log")
    fi
    unpack "$apt/root" "${packages[@]}"
    # In one step, so that a folder that is there is whole.
    mv -T "$apt/root" "$cache/tools" 2>/dev/null || [ -d "$cache/tools" ]
    rm -rf "$apt"
}

# The newest image that Debian has of a kernel. The cloud flavour: it is small, and needs no modules here.
get_kernel() { # NAME
    local apt suite version release kind
    [ ! -d "$cache/kernels/$1" ] || return 0
    case $1 in
        6.1) suite=bookworm version='6\.1\.' ;;
        6.12) suite=trixie version='6\.12\.' ;;
        # As new as sid, with a list of packages of a thirtieth the size.
        newest) suite=trixie-backports version='[0-9]' ;;
    esac
    echo "two-node: fetching kernel $1" >&2
    apt=$work/kernel-$1
    open_suite "$suite"
    quietly apt-cache pkgnames linux-
    release=$(sed -nE "s/^linux-(image|binary|binary-unsigned)-($version.*-cloud-amd64)$/\2/p" "$apt/log" |
        grep -v -e -rt- | sort -V | tail -1)
    [ -n "$release" ] || die "no kernel $1 in $suite"
    # From 6.19 on the image is in linux-binary, and linux-image only depends on it.
    for kind in binary binary-unsigned image; do
        ! grep -qxF "linux-$kind-$release" "$apt/log" || break
    done
    unpack "$apt/root" "linux-$kind-$release"
    mkdir -p "$apt/image" "$cache/kernels"
    find "$apt/root" -name "vmlinuz*" -type f -exec mv {} "$apt/image/vmlinuz-$release" \;
    [ -e "$apt/image/vmlinuz-$release" ] || die "no image in linux-$kind-$release"
    mv -T "$apt/image" "$cache/kernels/$1" 2>/dev/null || [ -d "$cache/kernels/$1" ]
    rm -rf "$apt"
}

kernel_image() { # NAME
    echo "$cache/kernels/$1"/vmlinuz-*
}
