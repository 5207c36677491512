//! Copiers by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use transhume_engine::Copier;

use crate::streaming::Isa;
use crate::threads::ThreadsError;
use crate::{CopyJob, Inner, Memcpy, Streaming, Threads, ThreadsOptions, Topology, Unavailable};

/// A copier that can be shared.
pub type SharedCopier = Arc<dyn Copier<CopyJob> + Send + Sync>;

/// The names, for those who asked for another.
const NAMES: &str = "memcpy, streaming, streaming-avx512, streaming-avx2, streaming-sse2, threads[:N[:memcpy|:streaming]]";

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
    let streaming = |isa: Isa| Streaming::with(isa).map(|_| format!("{isa} stores"));
    let cpus = Topology::here().len();
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
            available: match cpus {
                0 | 1 => Err(Unavailable(
                    "this process may run on one CPU only".to_owned(),
                )),
                cpus => Ok(format!("up to {cpus} CPUs")),
            },
            what: "a pinned pool that splits large folios and shares many",
        },
    ]
}

/// The copier of this name: `memcpy`, `streaming`, `streaming-avx2` and so on, `threads` (by
/// streaming stores where there are any), `threads:4`, `threads:4:memcpy`. `threads` without a
/// number takes `threads`, and that defaults to all CPUs.
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
                None => threads.or(NonZeroUsize::new(Topology::here().len())),
                Some(count) => {
                    let count = count.parse::<usize>().map_err(|_| unknown())?;
                    let count = NonZeroUsize::new(count);
                    Some(count.ok_or_else(|| UnknownCopier::ThreadCount(name.to_owned()))?)
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
            let threads = count.unwrap_or(NonZeroUsize::MIN);
            Arc::new(Threads::start(ThreadsOptions {
                inner,
                ..ThreadsOptions::new(threads)
            })?)
        }
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
