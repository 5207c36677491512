//! The copier that chooses (\[offload\]).
//!
//! Which copier is best depends on the machine, on how long a list is and how large its jobs are, and on
//! where the memory is. So the copiers are measured, once a machine, and each list then goes to the
//! one that was best for lists of its shape.

mod calibrate;
mod candidate;
mod figures;
mod file;
mod key;
mod route;
mod shape;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use transhume_engine::{Copier, CopyAnswer};

use crate::{CopyJob, SharedCopier, Unavailable};
use candidate::{Candidate, candidates};
use figures::Figures;
pub use figures::NodePair;
use file::PATIENCE;
use key::Key;
pub use route::Route;
pub use shape::Shape;
use shape::{COUNT, nearest};

/// What copies the lists of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Between which nodes. Lists whose nodes nobody knows, or that were not measured, have none.
    pub nodes: Option<NodePair>,
    /// The lists.
    pub shape: Shape,
    /// The copier's name.
    pub copier: String,
}

/// Entries in one line: what copies the lists of each size of jobs, between unknown nodes.
pub(crate) fn describe(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut before: Option<&Entry> = None;
    for entry in entries.iter().filter(|entry| entry.nodes.is_none()) {
        let Shape { job_bytes, jobs } = entry.shape;
        let same_size = before.filter(|before| before.shape.job_bytes == job_bytes);
        match same_size {
            Some(before) if before.copier == entry.copier => {}
            Some(_) => text.push_str(&format!(", from {jobs} on {}", entry.copier)),
            None => {
                let size = match job_bytes {
                    shape::HUGE => "2m",
                    _ => "4k",
                };
                let comma = if before.is_some() { "; " } else { "" };
                text.push_str(&format!("{comma}{size}: {}", entry.copier));
            }
        }
        before = Some(entry);
    }
    text
}

/// Hands each list to the copier that was measured to be best for its shape (\[offload\]).
///
/// # What is measured
///
/// `memcpy`, the streaming stores that the processor has, threads by both, two of them, four and so on
/// up to all CPUs, and `dsa` where there is one; each on lists of 1, 8, 64 and 512 jobs of 4 KiB and of
/// 1, 4 and 16 jobs of 2 MiB, and on machines with several nodes also between those. It takes about
/// 2.5 s, and up to 384 MiB of memory and all CPUs while it lasts. Of copiers that are equally fast, as
/// far as the figures tell, the simpler one is chosen.
///
/// The figures are kept in a file of the user's, under what they depend on: processor, how many CPUs
/// the process may use, nodes, kernel, the version of this program, and the copiers that there are.
/// Under anything else they are taken anew, as they are where the file is damaged, another user's, or
/// cannot be kept. [`calibrated`](Self::calibrated) takes them anew whatever there is.
///
/// # What a list is taken for
///
/// Its jobs have the size that is nearer to their mean, 4 KiB or 2 MiB; then the measured list counts
/// whose bytes are nearer. Both as ratios, so the border is at the geometric mean. What is known of
/// the nodes is what the thread says by [`Route`], as regions do; lists between other nodes than those
/// that were measured are copied as those of which nothing is known.
///
/// # What it costs
///
/// The bytes of a list are added up and a table is looked at. Nothing is allocated and no lock is
/// taken. Only the copiers that are chosen for something exist, so there are threads only if there is
/// a shape that they are best for; they start, as those of [`Threads`](crate::Threads), where the thread
/// may run that makes it.
///
/// What a chosen copier declines is declined.
pub struct Auto {
    figures: Arc<Figures>,
    /// For each pair, the candidate of each shape.
    chosen: Vec<[usize; COUNT]>,
    /// By candidate; of those that are chosen.
    copiers: Vec<Option<SharedCopier>>,
}

impl Auto {
    /// Its name.
    pub const NAME: &str = "auto";

    /// With the figures that this process or an earlier one has taken on this machine, or else takes them
    /// now, which is a matter of 2.5 s.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] where there is no memory to measure with.
    pub fn new() -> Result<Self, Unavailable> {
        Self::choose(Here::find().figures_of_this_process()?)
    }

    /// With figures that are taken now, whatever there are, and kept in their place: on a machine that
    /// was busy when they were taken.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn calibrated() -> Result<Self, Unavailable> {
        let here = Here::find();
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = Arc::new(here.measured(file::folder().as_deref())?);
        *taken = Some((here.key, Arc::clone(&figures)));
        drop(taken);
        Self::choose(figures)
    }

    /// The same as [`new`](Self::new) with the figures in a file in `folder`, which is made where it is
    /// absent.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_cache(folder: &Path) -> Result<Self, Unavailable> {
        Self::choose(Arc::new(Here::find().figures(Some(folder), PATIENCE)?))
    }

    /// What it would choose on this machine, if the figures were taken already: it measures nothing and
    /// waits for nobody who does.
    #[must_use]
    pub fn known() -> Option<Vec<Entry>> {
        let here = Here::find();
        let taken = TAKEN.try_lock().ok();
        let taken = taken.and_then(|taken| here.among(&taken));
        let figures = taken.or_else(|| here.known(&file::folder()?).map(Arc::new))?;
        Some(figures.entries(&figures.choose(|_| true)?))
    }

    /// What it has chosen.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.figures.entries(&self.chosen)
    }

    /// The name of the copier of lists of so many jobs with so many bytes in all, where the nodes are not
    /// known.
    #[must_use]
    pub fn choice(&self, jobs: usize, bytes: usize) -> &str {
        self.choice_between(None, jobs, bytes).name()
    }

    fn choice_between(
        &self,
        nodes: Option<NodePair>,
        jobs: usize,
        bytes: usize,
    ) -> &dyn Copier<CopyJob> {
        let is_it = |pair: &figures::OfPair| nodes.is_some() && pair.pair == nodes;
        let pair = self.figures.pairs.iter().position(is_it).unwrap_or(0);
        let chosen = self
            .chosen
            .get(pair)
            .and_then(|chosen| chosen.get(nearest(jobs, bytes)));
        let copier = chosen.and_then(|&chosen| self.copiers.get(chosen)?.as_deref());
        // There is a copier for each shape, see `choose`.
        copier.map_or(&crate::Memcpy, |copier| copier)
    }

    /// Makes the copiers that are chosen. One that cannot be made gives way to the next.
    fn choose(figures: Arc<Figures>) -> Result<Self, Unavailable> {
        let mut can = vec![true; figures.candidates.len()];
        let mut copiers: Vec<Option<SharedCopier>> = vec![None; can.len()];
        loop {
            let chosen = figures.choose(|candidate| can[candidate]);
            let chosen = chosen
                .ok_or_else(|| Unavailable("no copier copied all shapes of lists".to_owned()))?;
            let mut all_made = true;
            for &candidate in chosen.iter().flatten() {
                if copiers[candidate].is_none() && can[candidate] {
                    copiers[candidate] = figures.candidates[candidate].make().ok();
                    can[candidate] = copiers[candidate].is_some();
                    all_made &= can[candidate];
                }
            }
            if all_made {
                // What was chosen on the way to this only.
                for (candidate, copier) in copiers.iter_mut().enumerate() {
                    copier.take_if(|_| !chosen.iter().flatten().any(|&one| one == candidate));
                }
                return Ok(Self {
                    figures,
                    chosen,
                    copiers,
                });
            }
        }
    }
}

impl Copier<CopyJob> for Auto {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        let sum = |sum: usize, job: &CopyJob| sum.saturating_add(job.bytes());
        let bytes = jobs.iter().fold(0, sum);
        self.choice_between(Route::here(), jobs.len(), bytes)
            .copy(jobs, answers);
    }
}

impl fmt::Debug for Auto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auto")
            .field("entries", &self.entries())
            .finish()
    }
}

/// The figures that this process has taken or read. Whoever takes them has the lock, so that others of
/// this process wait for them.
static TAKEN: Mutex<Option<(Key, Arc<Figures>)>> = Mutex::new(None);

/// This machine, as far as figures depend on it.
struct Here {
    candidates: Vec<Candidate>,
    key: Key,
}

impl Here {
    fn find() -> Self {
        // By affinity and by quota.
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let candidates = candidates(cpus);
        let key = Key::here(cpus, &candidates);
        Self { candidates, key }
    }

    fn among(&self, taken: &Option<(Key, Arc<Figures>)>) -> Option<Arc<Figures>> {
        let (key, figures) = taken.as_ref()?;
        (*key == self.key).then(|| Arc::clone(figures))
    }

    fn figures_of_this_process(self) -> Result<Arc<Figures>, Unavailable> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(figures) = self.among(&taken) {
            return Ok(figures);
        }
        let figures = Arc::new(self.figures(file::folder().as_deref(), PATIENCE)?);
        *taken = Some((self.key, Arc::clone(&figures)));
        Ok(figures)
    }

    fn known(&self, folder: &Path) -> Option<Figures> {
        file::load(
            &file::path_in(folder, &self.key),
            &self.key,
            &self.candidates,
        )
    }

    /// Loads or measures. Who measures already is waited for so long.
    fn figures(&self, folder: Option<&Path>, patience: Duration) -> Result<Figures, Unavailable> {
        let known = || self.known(folder?);
        known().map_or_else(
            || {
                let _turn = folder.and_then(|folder| file::turn(folder, patience));
                // Another process may have measured meanwhile.
                known().map_or_else(|| self.measure(folder), Ok)
            },
            Ok,
        )
    }

    /// Measures, when nobody else does.
    fn measured(&self, folder: Option<&Path>) -> Result<Figures, Unavailable> {
        let _turn = folder.and_then(|folder| file::turn(folder, PATIENCE));
        self.measure(folder)
    }

    fn measure(&self, folder: Option<&Path>) -> Result<Figures, Unavailable> {
        let figures = calibrate::measure(self.candidates.clone())?;
        if let Some(folder) = folder {
            // Where they cannot be kept they are taken again next time.
            let _ = file::store(&file::path_in(folder, &self.key), &self.key, &figures);
        }
        Ok(figures)
    }
}

#[cfg(test)]
mod tests;
