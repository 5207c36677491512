//! The copier on portals that misbehave in ways that the model does not.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use super::*;
use crate::dsa::descriptor::{Descriptor, DescriptorCell};
use crate::dsa::portal::{Shape, Submitted};
use crate::dsa::{Fault, Faults, ModelOptions, ModelQueue};

/// A portal of a model that does something else from the `n`-th submission on.
struct Moody {
    inner: Box<dyn Portal>,
    left: Arc<AtomicUsize>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    Panics,
    IsGone,
    IsFull,
}

// SAFETY: what was submitted is the inner portal's, which is called off before this one says that
// it is gone.
unsafe impl Portal for Moody {
    fn shape(&self) -> &Shape {
        self.inner.shape()
    }

    unsafe fn submit(&self, descriptor: &Descriptor) -> Submitted {
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        match (left, self.then) {
            // SAFETY: the caller's promise.
            (Ok(_), _) => unsafe { self.inner.submit(descriptor) },
            // Without a message, which takes longer to print than what is late is late by.
            (Err(_), Then::Panics) => resume_unwind(Box::new("on purpose")),
            (Err(_), Then::IsFull) => Submitted::Retry,
            (Err(_), Then::IsGone) => {
                self.inner.call_off();
                Submitted::Gone
            }
        }
    }

    fn call_off(&self) {
        self.inner.call_off();
    }
}

struct Rig {
    dsa: Dsa,
    left: Arc<AtomicUsize>,
    source: Vec<u8>,
    target: Vec<u8>,
}

const JOBS: usize = 8;
const BYTES: usize = 64 << 10;

impl Rig {
    fn new(then: Then, faults: Faults, floor: Duration) -> Self {
        let model = DsaModel::start(&ModelOptions {
            queues: vec![ModelQueue {
                max_batch: 1,
                ..ModelQueue::default()
            }],
            faults,
            ..ModelOptions::default()
        })
        .unwrap();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let portal = Moody {
            inner: model.portals().remove(0),
            left: Arc::clone(&left),
            then,
        };
        let options = DsaOptions {
            floor,
            callers: NonZeroUsize::MIN,
            ..DsaOptions::for_tests()
        };
        Self {
            dsa: Dsa::over(vec![Box::new(portal)], options, "dsa"),
            left,
            source: (0..JOBS * BYTES)
                .map(|at| (at % 253).to_le_bytes()[0])
                .collect(),
            target: vec![0; JOBS * BYTES],
        }
    }

    fn copy(&mut self) -> [CopyAnswer; JOBS] {
        let mut answers = [CopyAnswer::Unconfirmed; JOBS];
        let (from, to) = (self.source.as_ptr(), self.target.as_mut_ptr());
        let job = |n: usize| {
            // SAFETY: two vectors, not used otherwise while the job is.
            unsafe {
                CopyJob::new(
                    from.wrapping_add(n * BYTES),
                    to.wrapping_add(n * BYTES),
                    BYTES,
                )
            }
        };
        let jobs = (0..JOBS).map(job).collect::<Vec<_>>();
        self.dsa.copy(&jobs, &mut answers);
        answers
    }

    /// Nothing writes to what is not confirmed.
    fn stays_untouched(&mut self, answers: &[CopyAnswer]) {
        for (n, answer) in answers.iter().enumerate() {
            let range = n * BYTES..(n + 1) * BYTES;
            if *answer == CopyAnswer::Copied {
                assert!(self.target[range.clone()] == self.source[range]);
            } else {
                self.target[range].fill(0xA5);
            }
        }
        std::thread::sleep(Duration::from_millis(40));
        for (n, answer) in answers.iter().enumerate() {
            let mut bytes = self.target[n * BYTES..(n + 1) * BYTES].iter();
            assert!(*answer == CopyAnswer::Copied || bytes.all(|&byte| byte == 0xA5));
        }
    }
}

#[test]
fn a_panic_leaves_nothing_on_its_way() {
    let late = Faults::seeded(1).with(Fault::Late, 1000);
    let mut rig = Rig::new(Then::Panics, late, Duration::from_secs(60));
    rig.left.store(3, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| rig.copy())).is_err());
    rig.stays_untouched(&[CopyAnswer::Unconfirmed; JOBS]);
    // The slot and the queue serve again; the room of the dedicated queue is all there.
    rig.left.store(usize::MAX, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(rig.copy(), [CopyAnswer::Copied; JOBS]);
    }
}

#[test]
fn a_queue_that_goes_away_is_used_no_more() {
    let mut rig = Rig::new(Then::IsGone, Faults::default(), Duration::from_secs(60));
    assert_eq!(rig.copy(), [CopyAnswer::Copied; JOBS]);
    rig.left.store(3, Ordering::Relaxed);
    let answers = rig.copy();
    assert_eq!(answers[3..], [CopyAnswer::Failed; JOBS - 3]);
    rig.stays_untouched(&answers);
    rig.left.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(rig.copy(), [CopyAnswer::Declined; JOBS]);
    assert!(rig.dsa.describe().contains("out of use"));
}

#[test]
fn a_queue_that_stays_full_costs_a_deadline() {
    let mut rig = Rig::new(Then::IsFull, Faults::default(), Duration::from_millis(5));
    rig.left.store(0, Ordering::Relaxed);
    let answers = rig.copy();
    assert_eq!(answers, [CopyAnswer::TimedOut; JOBS]);
    rig.stays_untouched(&answers);
    // Three are taken, then it is full for work and drain alike.
    rig.left.store(3, Ordering::Relaxed);
    let answers = rig.copy();
    assert_eq!(answers[3..], [CopyAnswer::TimedOut; JOBS - 3]);
    rig.stays_untouched(&answers);
}

#[test]
fn without_a_device_it_says_why() {
    let nowhere = std::path::Path::new("/nonexistent");
    let places = Places {
        sysfs: nowhere,
        files: nowhere,
    };
    let why = Dsa::open_at(places, Instructions::here(), DsaOptions::default()).unwrap_err();
    assert!(why.to_string().contains("modprobe idxd"));
    // A queue whose file is not there.
    let sysfs = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("dsa0/state", "enabled"),
        ("wq0.0/type", "user"),
        ("wq0.0/state", "enabled"),
        ("wq0.0/mode", "dedicated"),
    ] {
        let file = sysfs.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, value).unwrap();
    }
    let places = Places {
        sysfs: sysfs.path(),
        files: nowhere,
    };
    let both = Instructions {
        movdir64b: true,
        enqcmd: true,
    };
    let why = Dsa::open_at(places, both, DsaOptions::default()).unwrap_err();
    assert!(why.to_string().contains("/nonexistent/wq0.0: open: "));
}

/// The portal of a real queue, on a plain file: what `MOVDIR64B` stores there is carried on to a
/// model.
#[test]
fn a_list_goes_through_a_mapped_portal() {
    let has = Instructions::here();
    if !has.movdir64b {
        eprintln!("not tried: this processor has no MOVDIR64B");
        return;
    }
    let sysfs = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("dsa0/numa_node", "0"),
        ("wq0.0/type", "user"),
        ("wq0.0/state", "enabled"),
        ("wq0.0/mode", "dedicated"),
        ("wq0.0/size", "16"),
        ("wq0.0/max_transfer_size", "2097152"),
        ("wq0.0/max_batch_size", "32"),
    ] {
        let file = sysfs.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, value).unwrap();
    }
    let portal = std::fs::File::create_new(files.path().join("wq0.0")).unwrap();
    portal.set_len(4096).unwrap();
    let places = Places {
        sysfs: sysfs.path(),
        files: files.path(),
    };
    let mut rig = Rig::new(Then::IsFull, Faults::default(), Duration::from_secs(60));
    rig.dsa = Dsa::open_at(places, has, DsaOptions::for_tests()).unwrap();
    assert_eq!(rig.dsa.describe(), "wq0.0 (dedicated, 16 entries, node 0)");
    let model = DsaModel::start(&ModelOptions {
        queues: vec![ModelQueue::default()],
        ..ModelOptions::default()
    })
    .unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| carry(&files.path().join("wq0.0"), &*model.portals()[0], &stop));
        for _ in 0..50 {
            rig.target.fill(0);
            assert_eq!(rig.copy(), [CopyAnswer::Copied; JOBS]);
            assert!(rig.target == rig.source);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Hands the descriptors that come to the places of a portal, one after the other, to another portal.
fn carry(file: &std::path::Path, to: &dyn Portal, stop: &AtomicBool) {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let file = std::fs::File::options().read(true).write(true).open(file);
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping where the kernel likes.
    let page = unsafe {
        mmap(
            std::ptr::null_mut(),
            4096,
            protection,
            MapFlags::SHARED,
            file.unwrap(),
            0,
        )
    }
    .unwrap();
    // SAFETY: a page is 64 descriptors, of atomics, and is mapped until the end of this function.
    let cells = unsafe { std::slice::from_raw_parts(page.cast::<DescriptorCell>(), 64) };
    let mut places = cells.iter().cycle().peekable();
    while !stop.load(Ordering::Relaxed) {
        if places.peek().unwrap().load().operation == 0 {
            std::thread::yield_now();
            continue;
        }
        // All of it was stored at once.
        fence(Ordering::Acquire);
        let descriptor = places.peek().unwrap().load();
        places.next().unwrap().store(&Descriptor::default());
        // SAFETY: whoever stored it made the promise, and the model completes it.
        assert_eq!(unsafe { to.submit(&descriptor) }, Submitted::Accepted);
    }
    // SAFETY: the mapping is this function's.
    unsafe { munmap(page, 4096) }.unwrap();
}
