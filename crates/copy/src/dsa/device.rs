//! The portal of a real device.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::descriptor::Descriptor;
use super::instructions::{enqcmd, movdir64b};
use super::portal::{Portal, QueueMode, Shape, Submitted};

/// What the kernel maps of a queue, in bytes.
const PAGE: usize = 4 << 10;
/// Any of these places in it is the queue; taking them in turn keeps one store from waiting for
/// another.
const PLACES: usize = PAGE / 64;

/// A work queue's portal, mapped.
///
/// The file is closed once it is mapped, and a fork does not inherit the mapping, so unmapping it
/// gives the queue back to the kernel whatever children there are. The exception is a child that
/// another thread forked between the two, for as long as it neither executes another program nor
/// ends.
#[derive(Debug)]
pub(crate) struct Device {
    shape: Shape,
    page: RwLock<Option<Page>>,
    next: AtomicUsize,
}

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) struct OpenError {
    file: String,
    step: &'static str,
    error: io::Error,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, step, error } = self;
        write!(f, "{file}: {step}: {error}")?;
        match (*step, error.kind()) {
            ("open", io::ErrorKind::PermissionDenied) => {
                write!(f, "; cure: chown or chmod {file}, or root")
            }
            ("open", io::ErrorKind::ResourceBusy) => {
                write!(
                    f,
                    "; it is in use, and a dedicated queue serves one program at a time"
                )
            }
            ("map", io::ErrorKind::PermissionDenied) => write!(
                f,
                "; on this processor mapping a queue wants CAP_SYS_RAWIO (INTEL-SA-01084)"
            ),
            _ => Ok(()),
        }
    }
}

impl Device {
    /// Opens and maps a queue.
    pub(crate) fn open(file: &Path, shape: Shape) -> Result<Self, OpenError> {
        let fail = |step, error| OpenError {
            file: file.display().to_string(),
            step,
            error,
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(file)
            .map_err(|error| fail("open", error))?;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping where the kernel likes.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::WRITE,
                flags,
                &opened,
                0,
            )
        }
        .map_err(|errno| fail("map", errno.into()))?;
        Ok(Self {
            shape,
            page: RwLock::new(Some(Page {
                start: start.cast(),
                process: std::process::id(),
            })),
            next: AtomicUsize::new(0),
        })
    }
}

// SAFETY: unmapping the portal is the end of the last use of the queue's file, at which the kernel
// waits for what this process has in flight on it (cdev.c, `idxd_file_dev_release`). Submitting
// holds the lock shared, so nothing is submitted while it is unmapped, nor afterwards.
unsafe impl Portal for Device {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    unsafe fn submit(&self, descriptor: &Descriptor) -> Submitted {
        let page = self.page.read().unwrap_or_else(PoisonError::into_inner);
        let Some(page) = &*page else {
            return Submitted::Gone;
        };
        let place = self.next.fetch_add(1, Ordering::Relaxed) % PLACES;
        let portal = page.start.wrapping_add(place * 64);
        match self.shape.mode {
            QueueMode::Dedicated => {
                // SAFETY: discovery made sure of the instruction; the place is in the mapping; the
                // rest is the caller's promise.
                unsafe { movdir64b(portal, descriptor) };
                Submitted::Accepted
            }
            QueueMode::Shared => {
                // SAFETY: as above.
                if unsafe { enqcmd(portal, descriptor) } {
                    Submitted::Accepted
                } else {
                    Submitted::Retry
                }
            }
        }
    }

    fn call_off(&self) {
        let mut page = self.page.write().unwrap_or_else(PoisonError::into_inner);
        drop(page.take());
    }
}

/// The mapping of a portal.
#[derive(Debug)]
struct Page {
    start: *mut u8,
    process: u32,
}

// SAFETY: a mapping belongs to the process and not to a thread.
unsafe impl Send for Page {}
// SAFETY: what is stored there is a descriptor each, which the device takes from any number of
// threads.
unsafe impl Sync for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // A child does not have the mapping, and may have something else there.
        if self.process == std::process::id() {
            // SAFETY: the mapping is this value's, and nobody has its address any more.
            let _ = unsafe { munmap(self.start.cast(), PAGE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsa::instructions::Instructions;
    use crate::dsa::record::Record;

    fn shape() -> Shape {
        Shape {
            name: "wq0.0".to_owned(),
            mode: QueueMode::Dedicated,
            size: 8,
            max_transfer: 4096,
            max_batch: 8,
            node: None,
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let why = Device::open(Path::new("/nonexistent/wq0.0"), shape())
            .unwrap_err()
            .to_string();
        assert!(why.starts_with("/nonexistent/wq0.0: open: "), "{why}");
    }

    #[test]
    fn refusals_come_with_a_cure() {
        let said = |step, errno: rustix::io::Errno| {
            OpenError {
                file: "/dev/dsa/wq0.0".to_owned(),
                step,
                error: errno.into(),
            }
            .to_string()
        };
        use rustix::io::Errno;
        assert!(said("open", Errno::ACCESS).contains("chown or chmod /dev/dsa/wq0.0"));
        assert!(said("open", Errno::BUSY).contains("it is in use"));
        assert!(said("map", Errno::PERM).contains("CAP_SYS_RAWIO"));
    }

    /// A plain file in place of the portal: what a dedicated queue would get is in it.
    #[test]
    fn descriptors_are_stored_to_the_portal_until_it_is_unmapped() {
        if !Instructions::here().movdir64b {
            eprintln!("not tried: this processor has no MOVDIR64B");
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let device = Device::open(file.path(), shape()).unwrap();
        let record = Record::default();
        let drain = Descriptor::drain(&record);
        for _ in 0..3 {
            // SAFETY: a file executes nothing.
            assert_eq!(unsafe { device.submit(&drain) }, Submitted::Accepted);
        }
        device.call_off();
        // SAFETY: as above.
        assert_eq!(unsafe { device.submit(&drain) }, Submitted::Gone);
        device.call_off();
        let bytes = std::fs::read(file.path()).unwrap();
        let stored = |place: usize| bytes[place * 64 + 7];
        assert_eq!([0, 1, 2, 3].map(stored), [2, 2, 2, 0]);
        assert_eq!(bytes[72..80], record.address().to_le_bytes());
    }
}
