//! Copiers by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use transhume_engine::Copier;

use crate::auto::{self, Auto};
use crate::dsa::{Dsa, DsaModel, DsaOptions, ModelOptions};
use crate::streaming::Isa;
use crate::threads::ThreadsError;
use crate::{CopyJob, Inner, Memcpy, Streaming, Threads, ThreadsOptions, Topology, Unavailable};

/// A copier that can be shared.
pub type SharedCopier = Arc<dyn Copier<CopyJob> + Send + Sync>;

/// The names, for those who asked for another.
const NAMES: &str = "memcpy, streaming, streaming-avx512, streaming-avx2, streaming-sse2, threads[:N[:memcpy|:streaming]], dsa, dsa-model, auto";

/// One copier of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The name that [`by_name`] takes.
    pub name: &'static str,
    /// What it is here, or why this machine does not have it.
    pub available: Result<String, Unavailable>,
    /// What it does.
    pub what: &'static str,
}

/// Whether the copier of this name only stands in for hardware, so that no time it takes is a figure of
/// anything.
#[must_use]
pub fn is_for_tests(name: &str) -> bool {
    name == DsaModel::NAME
}

/// Why a name stands for no copier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownCopier {
    /// There is no such name.
    #[error("no copier is named '{0}'; the copiers are {NAMES}")]
    Name(String),
    /// The number of threads is not one.
    #[error("'{0}': the number of copy threads must be 1 or more")]
    ThreadCount(String),
    /// The machine does not have it.
    #[error("copier '{name}' is not available here: {why}")]
    Unavailable {
        /// The name.
        name: String,
        /// Why.
        why: Unavailable,
    },
    /// Its threads could not be started.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// All copiers of this program, whether this machine has them or not.
#[must_use]
pub fn engines() -> Vec<EngineInfo> {
    engines_on(&Topology::here())
}

fn engines_on(cpus: &Topology) -> Vec<EngineInfo> {
    let streaming = |isa: Isa| Streaming::with(isa).map(|_| format!("{isa} stores"));
    vec![
        EngineInfo {
            name: "memcpy",
            available: Ok("the C library's".to_owned()),
            what: "one thread, through the cache",
        },
        EngineInfo {
            name: "streaming",
            available: Streaming::detect().map(|best| format!("{} stores", best.isa())),
            what: "one thread, non-temporal stores, the widest there are",
        },
        EngineInfo {
            name: "streaming-avx512",
            available: streaming(Isa::Avx512),
            what: "one thread, 64 bytes a store",
        },
        EngineInfo {
            name: "streaming-avx2",
            available: streaming(Isa::Avx2),
            what: "one thread, 32 bytes a store",
        },
        EngineInfo {
            name: "streaming-sse2",
            available: streaming(Isa::Sse2),
            what: "one thread, 16 bytes a store",
        },
        EngineInfo {
            name: "threads",
            // `Threads` starts on any machine, with little use on some.
            available: Ok(match cpus.len() {
                0 => "unknown CPUs, 1 thread unless told".to_owned(),
                1 => "1 CPU, nothing to gain".to_owned(),
                cpus => format!("up to {cpus} CPUs"),
            }),
            what: "a pinned pool that splits large folios and shares many",
        },
        EngineInfo {
            name: "dsa",
            available: Dsa::shared().map(|dsa| dsa.describe()),
            what: "Intel's Data Streaming Accelerator, lists of 2 MiB or more",
        },
        EngineInfo {
            name: DsaModel::NAME,
            available: Ok("software model, for tests: never DSA speed".to_owned()),
            what: "executes the descriptors of dsa on threads",
        },
        EngineInfo {
            name: Auto::NAME,
            available: Ok(Auto::known().map_or_else(
                || "not calibrated yet: first use takes 2.5 s".to_owned(),
                |entries| auto::describe(&entries),
            )),
            what: "each list by the copier that was measured to be best for its shape",
        },
    ]
}

/// How many threads `threads` has that is not told.
fn all_of(cpus: &Topology) -> NonZeroUsize {
    NonZeroUsize::new(cpus.len()).unwrap_or(NonZeroUsize::MIN)
}

/// The copier of this name: `memcpy`, `streaming`, `streaming-avx2` and so on, `threads` (by
/// streaming stores where there are any), `threads:4`, `threads:4:memcpy`, `dsa`, `dsa-model`, `auto`. `threads` without a
/// number takes `threads`, and that defaults to all CPUs. The first `auto` on a machine takes some
/// seconds, see [`Auto`].
///
/// # Errors
///
/// [`UnknownCopier`], in one line.
pub fn by_name(name: &str, threads: Option<NonZeroUsize>) -> Result<SharedCopier, UnknownCopier> {
    let unknown = || UnknownCopier::Name(name.to_owned());
    let unavailable = |why| UnknownCopier::Unavailable {
        name: name.to_owned(),
        why,
    };
    let mut words = name.split(':');
    let copier: SharedCopier = match words.next().unwrap_or_default() {
        "memcpy" => Arc::new(Memcpy),
        "streaming" => Arc::new(Streaming::detect().map_err(unavailable)?),
        "threads" => {
            let count = match words.next() {
                None => threads.unwrap_or_else(|| all_of(&Topology::here())),
                Some(count) => {
                    let count = count.parse::<usize>().map_err(|_| unknown())?;
                    let count = NonZeroUsize::new(count);
                    count.ok_or_else(|| UnknownCopier::ThreadCount(name.to_owned()))?
                }
            };
            let inner = match words.next() {
                None => Inner::best(),
                Some("streaming") => Inner::Streaming(Streaming::detect().map_err(unavailable)?),
                Some("memcpy") => Inner::Memcpy,
                Some(_) => return Err(unknown()),
            };
            if words.next().is_some() {
                return Err(unknown());
            }
            Arc::new(Threads::start(ThreadsOptions {
                inner,
                ..ThreadsOptions::new(count)
            })?)
        }
        "dsa" => Dsa::shared().map_err(unavailable)?,
        DsaModel::NAME => {
            let model = DsaModel::start(&ModelOptions::default())
                .map_err(|error| unavailable(Unavailable(error.to_string())))?;
            Arc::new(Dsa::over_model(&model, DsaOptions::for_tests()))
        }
        Auto::NAME => Arc::new(Auto::new().map_err(unavailable)?),
        other => {
            let isa = Isa::ALL
                .into_iter()
                .find(|isa| other.strip_prefix("streaming-") == Some(isa.name()));
            Arc::new(Streaming::with(isa.ok_or_else(unknown)?).map_err(unavailable)?)
        }
    };
    if words.next().is_some() {
        return Err(unknown());
    }
    Ok(copier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> String {
        by_name(name, None)
            .map(|copier| copier.name().to_owned())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn every_available_engine_can_be_named() {
        for engine in engines().iter().filter(|engine| engine.available.is_ok()) {
            if engine.name == Auto::NAME {
                continue; // It would leave figures in the user's folder; `tests/auto.rs` names its own.
            }
            assert!(by_name(engine.name, None).is_ok(), "{}", engine.name);
        }
        let named = |name| {
            by_name(name, NonZeroUsize::new(3))
                .unwrap()
                .name()
                .to_owned()
        };
        assert_eq!(named("memcpy"), "memcpy");
        assert_eq!(named("threads:2:memcpy"), "threads:2:memcpy");
        assert!(named("threads").starts_with("threads:3:"));
    }

    fn says_of_threads(cpus: &Topology) -> String {
        let mut engines = engines_on(cpus).into_iter();
        let threads = engines.find(|engine| engine.name == "threads").unwrap();
        threads.available.unwrap()
    }

    #[test]
    fn threads_are_to_be_had_on_any_number_of_cpus() {
        let nowhere = std::path::Path::new("/nonexistent");
        let cpus = |count: usize| Topology::read(nowhere, &(0..count).collect());
        assert!(says_of_threads(&cpus(0)).contains("1 thread"));
        assert!(says_of_threads(&cpus(1)).contains("1 CPU,"));
        assert!(says_of_threads(&cpus(2)).contains("2 CPUs"));
        assert_eq!([0, 1, 2].map(|n| all_of(&cpus(n)).get()), [1, 1, 2]);
    }

    #[test]
    fn threads_start_on_one_cpu() {
        let pinned = std::thread::spawn(|| {
            let mut one = rustix::thread::CpuSet::new();
            one.set(Topology::here().cpus()[0].number);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            assert!(says_of_threads(&Topology::here()).contains("1 CPU,"));
            let name = |name| by_name(name, None).unwrap().name().to_owned();
            assert!(name("threads").starts_with("threads:1:"));
            assert_eq!(name("threads:3:memcpy"), "threads:3:memcpy");
        });
        pinned.join().unwrap();
    }

    #[test]
    fn other_names_are_refused_in_one_line() {
        for name in [
            "",
            "mempcy",
            "threads:x",
            "threads:2:dma",
            "threads:2:memcpy:x",
            "memcpy:2",
            "streaming-avx",
        ] {
            let line = refused(name);
            assert!(
                line.contains("the copiers are memcpy, streaming") && !line.contains('\n'),
                "{line}"
            );
        }
        let many = refused("threads:18446744073709551615");
        assert!(many.contains("too many") && !many.contains('\n'), "{many}");
        assert_eq!(
            refused("threads:0"),
            "'threads:0': the number of copy threads must be 1 or more"
        );
    }
}
