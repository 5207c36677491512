//! A small buffer pool whose pages migrate between two tiers under its transactions.
//!
//! The pool keeps buffers of 2 KiB, two to a page of a region, and a latch for each buffer. Worker
//! threads move money between buffers, a journal thread writes every change to a log, in order, and
//! meanwhile all pages go from one tier to the other and back. The journal holds the latch of a
//! buffer while it waits for the latch of the log's: were a migration to wait for the one while it
//! had the other, both would wait for ever. So the pool takes part as the owner of the pages: in a
//! batch its latches are only tried, and a page in use is left for later.
//!
//! ```sh
//! cargo run --release -p transhume-region --example buffer_pool
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use transhume_region::owner::{Alone, FolioOwner, Place, Refused, all_or_none};
use transhume_region::{
    Failure, Folio, KernelAccess, Mode, Options, Pins, Region, Step, Tier, Why,
};

const PAGES: usize = 1024;
const BUFFERS_A_PAGE: usize = 2;
const BUFFERS: usize = PAGES * BUFFERS_A_PAGE;
/// The log is in the last buffers, which are written in turn. So whoever takes a data buffer's
/// latch and then one of the log takes them in ascending order, as everybody does.
const LOG: usize = 64;
const ACCOUNTS: usize = BUFFERS - LOG;
const WORDS: usize = 4096 / BUFFERS_A_PAGE / size_of::<AtomicU64>();
/// What each of the two workers does.
const TRANSACTIONS: usize = 10_000;
const OPENING_BALANCE: u64 = 1_000;
/// How long a migration of a single page waits for the page's latches.
const PATIENCE: Duration = Duration::from_millis(100);

type Failed = Box<dyn Error + Send + Sync>;

/// Keeps others away from a buffer.
#[derive(Default)]
struct Latch {
    is_held: Mutex<bool>,
    given: Condvar,
}

impl Latch {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for nothing, not even for a thread that is just taking it.
    fn try_take(&self) -> Result<(), Refused> {
        match self.is_held.try_lock() {
            Ok(mut is_held) if !*is_held => *is_held = true,
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn take_within(&self, patience: Duration) -> Result<(), Refused> {
        let waited = self
            .given
            .wait_timeout_while(self.lock(), patience, |is_held| *is_held);
        let (mut is_held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *is_held, true) {
            return Err(Refused);
        }
        Ok(())
    }

    fn take(&self) {
        while self.take_within(PATIENCE).is_err() {}
    }

    fn give(&self) {
        *self.lock() = false;
        self.given.notify_one();
    }
}

/// The latches of all buffers, which own the pages: whoever migrates a page takes them first.
struct Latches(Vec<Latch>);

impl Latches {
    /// Those of the buffers in a folio, which counts in base pages, as this region does.
    fn of(&self, folio: Folio) -> &[Latch] {
        let number = |pages: u64| usize::try_from(pages).unwrap_or(PAGES) * BUFFERS_A_PAGE;
        let first = number(folio.page());
        &self.0[first..first + number(folio.base_pages())]
    }
}

impl FolioOwner for Latches {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        all_or_none(self.of(folio), Latch::try_take, Latch::give)
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        let take = |latch: &Latch| latch.take_within(PATIENCE);
        all_or_none(self.of(folio), take, Latch::give)
    }

    fn attach(&self, folio: Folio, _at: Place) {
        self.of(folio).iter().for_each(Latch::give);
    }
}

struct Pool {
    region: Region,
    latches: Arc<Latches>,
}

/// A buffer, latched.
struct Buffer<'p> {
    number: usize,
    words: &'p [AtomicU64],
    latch: &'p Latch,
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.latch.give();
    }
}

/// What is in a buffer: which change was the last, and an amount. The other words are filled by the
/// number of the change, so that a buffer of which a part was lost has a wrong checksum.
#[derive(Clone, Copy)]
struct Contents {
    sequence: u64,
    amount: u64,
}

impl Pool {
    fn create() -> Result<Self, Failed> {
        let latches = Latches((0..BUFFERS).map(|_| Latch::default()).collect());
        let latches = Arc::new(latches);
        // On a machine with several NUMA nodes the tiers would be on two of them.
        let region = Region::builder()
            .tier(Tier::node("fast", 0))
            .tier(Tier::node("slow", 0))
            .pages(PAGES)
            .pins(Pins::Declared)
            .kernel_access(KernelAccess::Never)
            .owner(Arc::clone(&latches) as Arc<dyn FolioOwner>)
            .build()?;
        let pool = Self { region, latches };
        for number in 0..BUFFERS {
            pool.latch(number).write(Contents {
                sequence: 0,
                amount: OPENING_BALANCE,
            });
        }
        Ok(pool)
    }

    fn latch(&self, number: usize) -> Buffer<'_> {
        let latch = &self.latches.0[number];
        latch.take();
        Buffer {
            number,
            words: &self.region.words()[number * WORDS..][..WORDS],
            latch,
        }
    }
}

fn fold(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

impl Buffer<'_> {
    fn write(&self, contents: Contents) {
        let (body, sum) = self.words.split_at(WORDS - 1);
        let fields = [contents.sequence, contents.amount];
        let filling = (2..).map(|n: u64| n ^ contents.sequence);
        let mut checksum = 0;
        for (word, value) in body.iter().zip(fields.into_iter().chain(filling)) {
            word.store(value, Ordering::Relaxed);
            checksum = fold(checksum, value);
        }
        sum[0].store(checksum, Ordering::Relaxed);
    }

    fn read(&self) -> Result<Contents, Failed> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (body, sum) = self.words.split_at(WORDS - 1);
        if body.iter().map(load).fold(0, fold) != load(&sum[0]) {
            return Err(format!("buffer {} has a wrong checksum", self.number).into());
        }
        Ok(Contents {
            sequence: load(&body[0]),
            amount: load(&body[1]),
        })
    }
}

/// A change that the journal is to write: its number, and the buffer.
type Change = (u64, usize);

/// Numbers the changes in the order in which the journal gets them.
struct Queue {
    last: u64,
    changes: Sender<Change>,
}

impl Queue {
    fn send(&mut self, buffer: usize) -> Result<u64, Failed> {
        self.last += 1;
        self.changes.send((self.last, buffer))?;
        Ok(self.last)
    }
}

/// Moves one coin from one buffer to the other. The latches are given back when both are written.
fn transaction(pool: &Pool, queue: &Mutex<Queue>, from: usize, to: usize) -> Result<(), Failed> {
    let (low, high) = (pool.latch(from.min(to)), pool.latch(from.max(to)));
    let (from, to) = if low.number == from {
        (&low, &high)
    } else {
        (&high, &low)
    };
    for (buffer, change) in [(from, u64::MAX), (to, 1)] {
        let amount = buffer.read()?.amount.wrapping_add(change);
        let sequence = queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(buffer.number)?;
        buffer.write(Contents { sequence, amount });
    }
    Ok(())
}

fn worker(pool: &Pool, queue: &Mutex<Queue>, seed: usize) -> Result<(), Failed> {
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ (seed + 1);
    for _ in 0..TRANSACTIONS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let from = random % ACCOUNTS;
        let to = (from + 1 + (random >> 32) % (ACCOUNTS - 1)) % ACCOUNTS;
        transaction(pool, queue, from, to)?;
    }
    Ok(())
}

/// Writes each change to the log, and holds the changed buffer's latch meanwhile. Says how many.
fn journal(pool: &Pool, changes: Receiver<Change>) -> Result<u64, Failed> {
    let mut written = 0;
    for ((sequence, buffer), log) in changes.into_iter().zip((ACCOUNTS..BUFFERS).cycle()) {
        if sequence != written + 1 {
            return Err(format!("change {sequence} follows {written}").into());
        }
        let changed = pool.latch(buffer);
        let contents = changed.read()?;
        if contents.sequence < sequence {
            return Err(format!("change {sequence} of buffer {buffer} is lost").into());
        }
        let log = pool.latch(log);
        log.read()?;
        log.write(Contents {
            sequence,
            ..contents
        });
        written = sequence;
    }
    Ok(written)
}

/// Moves every `step`th page; one may only stay because it is in use. Says how many moved and stayed.
fn migrate(pool: &Pool, step: usize, tier: &str, mode: Mode) -> Result<[usize; 2], Failed> {
    let pages = (0..PAGES).step_by(step).collect::<Vec<_>>();
    let report = pool
        .region
        .migrate(pages, tier, &Options::new().mode(mode))?;
    let in_use = Failure::new(Step::Unmap, Why::Busy);
    match report.stayed().find(|(_, failure)| *failure != in_use) {
        Some((folio, failure)) => Err(format!("{folio:?} stayed: {failure}").into()),
        None => Ok([report.moved(), report.stayed().count()]),
    }
}

/// Runs the transactions, moves the pages to and fro until they have ended, and checks everything.
/// Says in one line what was done.
pub(crate) fn run() -> Result<String, Failed> {
    let pool = Pool::create()?;
    let (changes, received) = channel();
    let queue = Arc::new(Mutex::new(Queue { last: 0, changes }));
    let (written, moved, in_use) = std::thread::scope(|scope| {
        let pool = &pool;
        let journal = scope.spawn(move || journal(pool, received));
        let workers = [0, 1].map(|seed| {
            let queue = Arc::clone(&queue);
            scope.spawn(move || worker(pool, &queue, seed))
        });
        // The journal ends when the last worker has.
        drop(queue);
        let (mut moved, mut in_use) = (0, 0);
        while !workers.iter().all(|worker| worker.is_finished()) {
            for (step, tier, mode) in [
                (1, "slow", Mode::Async),
                (3, "fast", Mode::Sync),
                (1, "fast", Mode::Async),
            ] {
                let [went, stayed] = migrate(pool, step, tier, mode)?;
                moved += went;
                in_use += stayed;
            }
        }
        // If the journal has failed, the workers have for that reason.
        let written = journal.join().map_err(|_| "the journal panicked")??;
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok::<_, Failed>((written, moved, in_use))
    })?;

    let [left, stayed] = migrate(&pool, 1, "slow", Mode::Async)?;
    if stayed > 0 || moved + left == 0 {
        return Err(format!("{stayed} pages stayed, which nobody uses any more").into());
    }
    let mut sum = 0_u64;
    for number in 0..ACCOUNTS {
        sum = sum.wrapping_add(pool.latch(number).read()?.amount);
    }
    if sum != OPENING_BALANCE * ACCOUNTS as u64 {
        return Err(format!("the accounts hold {sum} together").into());
    }
    Ok(format!(
        "{written} changes in the log; {moved} pages moved meanwhile, {in_use} times one stayed because \
         it was in use; every checksum and the sum of the accounts is right"
    ))
}

fn main() -> ExitCode {
    match run() {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("buffer_pool: {error}");
            ExitCode::FAILURE
        }
    }
}
