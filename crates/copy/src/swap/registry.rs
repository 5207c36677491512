//! Swappers by name.

use std::num::NonZeroUsize;
use std::sync::Arc;

use transhume_engine::Swapper;

use super::{Buffered, Registers, SwapJob, Threads, ThreadsOptions};
use crate::threads::ThreadsError;
use crate::{Isa, Topology, Unavailable};

/// A swapper that can be shared.
pub type SharedSwapper = Arc<dyn Swapper<SwapJob> + Send + Sync>;

/// The names, for those who asked for another.
const NAMES: &str =
    "buffered, registers, registers-avx512, registers-avx2, registers-sse2, threads[:N]";

/// One swapper of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwapperInfo {
    /// The name that [`swapper_by_name`] takes.
    pub name: &'static str,
    /// What it is here, or why this machine does not have it.
    pub available: Result<String, Unavailable>,
    /// What it does.
    pub what: &'static str,
}

/// Why a name stands for no swapper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownSwapper {
    /// There is no such name.
    #[error("no swapper is named '{0}'; the swappers are {NAMES}")]
    Name(String),
    /// The number of threads is not one.
    #[error("'{0}': the number of threads must be 1 or more")]
    ThreadCount(String),
    /// The machine does not have it.
    #[error("swapper '{name}' is not available here: {why}")]
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

/// All swappers of this program, whether this machine has them or not.
#[must_use]
pub fn swappers() -> Vec<SwapperInfo> {
    let registers = |isa: Isa| Registers::with(isa).map(|_| format!("{isa} registers"));
    let info = |name, available, what| SwapperInfo {
        name,
        available,
        what,
    };
    vec![
        info(
            "buffered",
            Ok("any processor".to_owned()),
            "one thread, through a buffer in the cache",
        ),
        info(
            "registers",
            Registers::detect().map(|best| format!("{} registers", best.isa())),
            "one thread, both sides through registers, the widest there are",
        ),
        info(
            "registers-avx512",
            registers(Isa::Avx512),
            "one thread, 64 bytes a register",
        ),
        info(
            "registers-avx2",
            registers(Isa::Avx2),
            "one thread, 32 bytes a register",
        ),
        info(
            "registers-sse2",
            registers(Isa::Sse2),
            "one thread, 16 bytes a register",
        ),
        info(
            "threads",
            Ok(format!("up to {} CPUs", Topology::here().len().max(1))),
            "a pinned pool that splits large pairs and shares many",
        ),
    ]
}

/// The swapper of this name: `buffered`, `registers`, `registers-avx2` and so on, `threads`,
/// `threads:4`. `threads` without a number takes `threads`, and that defaults to all CPUs.
///
/// # Errors
///
/// [`UnknownSwapper`], in one line.
pub fn swapper_by_name(
    name: &str,
    threads: Option<NonZeroUsize>,
) -> Result<SharedSwapper, UnknownSwapper> {
    let unknown = || UnknownSwapper::Name(name.to_owned());
    let unavailable = |why| UnknownSwapper::Unavailable {
        name: name.to_owned(),
        why,
    };
    let (word, count) = match name.split_once(':') {
        Some((word, count)) => (word, Some(count)),
        None => (name, None),
    };
    let swapper: SharedSwapper = match (word, count) {
        ("buffered", None) => Arc::new(Buffered),
        ("registers", None) => Arc::new(Registers::detect().map_err(unavailable)?),
        ("threads", count) => {
            let all = || NonZeroUsize::new(Topology::here().len()).unwrap_or(NonZeroUsize::MIN);
            let count = match count {
                None => threads.unwrap_or_else(all),
                Some(count) => {
                    let count = count.parse::<usize>().map_err(|_| unknown())?;
                    let count = NonZeroUsize::new(count);
                    count.ok_or_else(|| UnknownSwapper::ThreadCount(name.to_owned()))?
                }
            };
            Arc::new(Threads::start(ThreadsOptions::new(count))?)
        }
        (other, None) => {
            let isa = Isa::ALL
                .into_iter()
                .find(|isa| other.strip_prefix("registers-") == Some(isa.name()));
            Arc::new(Registers::with(isa.ok_or_else(unknown)?).map_err(unavailable)?)
        }
        _ => return Err(unknown()),
    };
    Ok(swapper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_swapper_can_be_named() {
        for info in swappers().iter().filter(|info| info.available.is_ok()) {
            assert!(swapper_by_name(info.name, None).is_ok(), "{}", info.name);
        }
        let named = |name| {
            let swapper = swapper_by_name(name, NonZeroUsize::new(3)).unwrap();
            swapper.name().to_owned()
        };
        assert_eq!(named("buffered"), "buffered");
        assert_eq!(
            (named("threads"), named("threads:2")),
            ("threads:3".into(), "threads:2".into())
        );
    }

    #[test]
    fn other_names_are_refused_in_one_line() {
        for name in [
            "",
            "regsters",
            "threads:x",
            "threads:2:memcpy",
            "buffered:2",
            "registers-avx",
        ] {
            let line = swapper_by_name(name, None)
                .map(drop)
                .unwrap_err()
                .to_string();
            assert!(
                line.contains("the swappers are buffered") && !line.contains('\n'),
                "{line}"
            );
        }
        let zero = swapper_by_name("threads:0", None).map(drop).unwrap_err();
        assert_eq!(
            zero.to_string(),
            "'threads:0': the number of threads must be 1 or more"
        );
    }
}
