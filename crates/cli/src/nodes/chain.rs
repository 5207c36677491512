//! A chain through memory: each cache line says which is the next, in an order that no prefetcher
//! foresees, and the last one leads back to the first. Only one load at a time can be under way.

use crate::error::CliError;

/// Words of a cache line.
const LINE: usize = 8;

/// Lines between two looks at whether to stop.
const CHECK: usize = 1 << 20;

/// The line after this one, of a power of two of them: a linear congruential generator, which comes
/// to every line once before it repeats (Hull and Dobell: an odd increment, and a multiplier that is
/// one more than a multiple of four).
fn next(line: usize, lines: usize) -> usize {
    const MULTIPLIER: usize = 6_364_136_223_846_793_005;
    const INCREMENT: usize = 1_442_695_040_888_963_407;
    line.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT) & (lines - 1)
}

/// Lays the chain through `words`, a power of two of lines. It is laid in the order in which it will
/// be followed, so that the caches hold its end and not its beginning.
pub(super) fn lay(
    words: &mut [u64],
    mut check: impl FnMut() -> Result<(), CliError>,
) -> Result<(), CliError> {
    let lines = words.len() / LINE;
    let mut line = 0;
    for n in 0..lines {
        if n.is_multiple_of(CHECK) {
            check()?;
        }
        let after = next(line, lines);
        words[line * LINE] = (after * LINE) as u64;
        line = after;
    }
    Ok(())
}

/// Follows the chain for so many loads from the word `from`, and says at which word it ends.
pub(super) fn follow(words: &[u64], from: usize, loads: usize) -> usize {
    let mut at = from;
    for _ in 0..loads {
        at = usize::try_from(words[at]).unwrap_or_default();
    }
    at
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_comes_to_every_line_once() {
        for lines in [1, 2, 8, 1 << 12, 1 << 16] {
            let mut words = vec![u64::MAX; lines * LINE];
            lay(&mut words, || Ok(())).unwrap();
            let mut seen = vec![false; lines];
            let mut at = 0;
            for _ in 0..lines {
                assert!(!std::mem::replace(&mut seen[at / LINE], true));
                at = follow(&words, at, 1);
            }
            assert_eq!(at, 0, "it is closed");
        }
    }

    #[test]
    fn its_steps_have_no_rhythm() {
        const STEPS: usize = 4096;
        /// Lines of a page.
        const PAGE: usize = 64;
        let lines = 1 << 20;
        let chain = std::iter::successors(Some(0), |&line| Some(next(line, lines)));
        let chain = chain.take(STEPS).collect::<Vec<_>>();
        let distinct = |figures: Vec<usize>| figures.into_iter().collect::<BTreeSet<_>>().len();
        let steps = chain.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]));
        assert_eq!(distinct(steps.collect()), STEPS - 1);
        // By chance it would be 3624 of the 16384.
        let pages = distinct(chain.iter().map(|line| line / PAGE).collect());
        assert!((3000..4000).contains(&pages), "{pages}");
    }

    #[test]
    fn it_can_be_stopped() {
        let mut words = vec![0; 1 << 10];
        assert!(lay(&mut words, || Err(CliError::Interrupted)).is_err());
    }
}
