//! Finding the tracepoint, also where tracefs is not mounted.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::Unavailable;

/// The tracepoint, as perf_event_open(2) wants it.
#[derive(Debug)]
pub(super) struct TlbFlush {
    pub(super) id: u64,
    /// The number of the reason "remote ipi send".
    pub(super) send_ipi: u64,
}

const EVENT: &str = "events/tlb/tlb_flush";
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

pub(super) fn tlb_flush() -> Result<TlbFlush, Unavailable> {
    let root = root()?;
    let id = read_at(&root, &format!("{EVENT}/id"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or(Unavailable::Tracepoint("does not exist"))?;
    let send_ipi = read_at(&root, &format!("{EVENT}/format"))
        .ok()
        .and_then(|format| reason(&format, "remote ipi send"))
        .ok_or(Unavailable::Tracepoint("has no reason \"remote ipi send\""))?;
    Ok(TlbFlush { id, send_ipi })
}

/// The root of tracefs, where it is mounted or in a mount of our own.
fn root() -> Result<OwnedFd, Unavailable> {
    let mut mounted = Errno::NOENT;
    for place in PLACES {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Before tracefs is mounted there is an empty directory.
        let found = rustix::fs::openat(CWD, place, flags, Mode::empty())
            .and_then(|root| open_at(&root, "events").map(|_| root));
        match found {
            Ok(root) => return Ok(root),
            // The most telling of the refusals: absent is the least.
            Err(Errno::NOENT) => {}
            Err(errno) => mounted = errno,
        }
    }
    detached_mount().map_err(|own| Unavailable::Tracefs { mounted, own })
}

/// Mounts tracefs nowhere: the mount goes when the descriptor is closed.
fn detached_mount() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn open_at(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn read_at(root: &OwnedFd, path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::from(open_at(root, path)?).read_to_string(&mut text)?;
    Ok(text)
}

/// The number of a name in the print format, `{ 4, "remote IPI send" }`. Kernels differ in the case.
fn reason(format: &str, name: &str) -> Option<u64> {
    let format = format.to_ascii_lowercase();
    let (before, _) = format.split_once(&format!("\"{}\"", name.to_ascii_lowercase()))?;
    before
        .rsplit_once('{')?
        .1
        .trim()
        .strip_suffix(',')?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_read_from_the_print_format() {
        let format = "print fmt: \"pages:%ld reason:%s (%d)\", REC->pages, \
                      __print_symbolic(REC->reason, { 0, \"flush on task switch\" }, \
                      { 4, \"remote IPI send\" }), REC->reason";
        assert_eq!(reason(format, "remote ipi send"), Some(4));
        assert_eq!(reason(format, "flush on task switch"), Some(0));
        assert_eq!(reason(format, "something else"), None);
        assert_eq!(
            reason("{ NAME, \"remote ipi send\" }", "remote ipi send"),
            None
        );
    }
}
