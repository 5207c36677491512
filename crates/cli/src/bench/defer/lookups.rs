//! Lookups of cross sections, shaped like those of XSBench (the proxy of a Monte Carlo neutron
//! transport code): for a random energy and material, a binary search in one grid of all energies, and
//! for each nuclide of the material, through an index of that grid, two neighbouring points of the
//! nuclide's own grid with five cross sections each.
//!
//! Nothing is stored to the tables once they are filled. Energies and cross sections are integers that
//! follow from their place, so each loaded word is checked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::phase::{Phases, Seen};

/// As in XSBench's small problem.
const NUCLIDES: usize = 68;
/// How many nuclides the materials have; fuel has half of all.
const MATERIALS: [usize; 12] = [34, 5, 4, 4, 27, 21, 21, 21, 21, 21, 9, 9];
/// The energy of a point and its cross sections.
const WORDS_A_POINT: usize = 6;
/// Grid points of two nuclides in a word.
const INDEX_WORDS: usize = NUCLIDES / 2;
const STEP_BITS: u32 = 20;

/// Words of one grid point of all nuclides.
const WORDS_OF_ALL: usize = NUCLIDES * (1 + INDEX_WORDS + WORDS_A_POINT);
/// The least that tables take: two points of each nuclide.
pub(super) const LEAST_BYTES: usize = 2 * WORDS_OF_ALL * size_of::<u64>();

/// Where the tables are in a region's words.
#[derive(Clone, Copy)]
pub(super) struct Tables<'w> {
    words: &'w [AtomicU64],
    /// Grid points of each nuclide.
    points: usize,
}

fn mixed(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The energy of a point of the grid of all.
fn energy(at: usize) -> u64 {
    ((at as u64) << STEP_BITS) | (mixed(at as u64) >> (u64::BITS - STEP_BITS))
}

/// A word of a nuclide's grid: its energy, and then its cross sections.
fn cross_section(nuclide: usize, point: usize, which: usize) -> u64 {
    match which {
        0 => energy(point * NUCLIDES + nuclide),
        _ => mixed(((nuclide as u64) << 48) ^ ((point as u64) << 8) ^ which as u64),
    }
}

/// The points of two nuclides at or below a point of the grid of all.
fn index(at: usize, pair: usize) -> u64 {
    let point = |nuclide: usize| (at.saturating_sub(nuclide) / NUCLIDES) as u64;
    point(2 * pair) | (point(2 * pair + 1) << 32)
}

impl<'w> Tables<'w> {
    /// Tables that fill these words, at least [`LEAST_BYTES`], as far as whole points do.
    pub(super) fn over(words: &'w [AtomicU64]) -> Self {
        Self {
            words,
            points: words.len() / WORDS_OF_ALL,
        }
    }

    fn grid(&self) -> usize {
        self.points * NUCLIDES
    }

    fn all(&self) -> impl Iterator<Item = (usize, u64)> {
        let grid = self.grid();
        let energies = (0..grid).map(energy);
        let indices = (0..grid).flat_map(|at| (0..INDEX_WORDS).map(move |pair| index(at, pair)));
        let points = self.points;
        let nuclides = (0..NUCLIDES).flat_map(move |nuclide| {
            (0..points).flat_map(move |point| {
                (0..WORDS_A_POINT).map(move |which| cross_section(nuclide, point, which))
            })
        });
        energies.chain(indices).chain(nuclides).enumerate()
    }

    pub(super) fn fill(&self) {
        for (word, value) in self.all() {
            self.words[word].store(value, Ordering::Relaxed);
        }
    }

    /// How many words do not hold what they should.
    pub(super) fn sweep(&self) -> u64 {
        let wrong =
            |(word, value): &(usize, u64)| self.words[*word].load(Ordering::Relaxed) != *value;
        self.all().filter(wrong).count() as u64
    }

    fn load(&self, word: usize, expected: u64, seen: &mut Seen) -> u64 {
        let value = self.words[word].load(Ordering::Relaxed);
        seen.loads += 1;
        seen.errors += u64::from(value != expected);
        value
    }

    /// The last point of the grid of all that is not above `wanted`.
    fn search(&self, wanted: u64, seen: &mut Seen) -> usize {
        let (mut low, mut high) = (0, self.grid());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.load(middle, energy(middle), seen) <= wanted {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// One nuclide of a lookup.
    fn gather(&self, at: usize, nuclide: usize, seen: &mut Seen) -> u64 {
        let pair = nuclide / 2;
        let word = self.grid() + at * INDEX_WORDS + pair;
        let both = self.load(word, index(at, pair), seen);
        let point = usize::try_from((both >> (32 * (nuclide % 2))) & 0xFFFF_FFFF).unwrap_or(0);
        let point = point.min(self.points - 2);
        let first =
            self.grid() * (1 + INDEX_WORDS) + (nuclide * self.points + point) * WORDS_A_POINT;
        let mut sum = 0_u64;
        for side in 0..2 {
            for which in 0..WORDS_A_POINT {
                let expected = cross_section(nuclide, point + side, which);
                let value = self.load(first + side * WORDS_A_POINT + which, expected, seen);
                sum = sum.wrapping_add(value >> 8);
            }
        }
        sum
    }

    /// Looks up until the phases end, and times each part of a lookup.
    pub(super) fn look_up(&self, thread: usize, phases: &Phases) {
        let mut random = mixed(thread as u64 + 1);
        let mut sum = 0_u64;
        let mut seen = Seen::begin(phases);
        while seen.goes_on(phases) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let material = usize::try_from(random >> 40).unwrap_or(0) % MATERIALS.len();
            let wanted = mixed(random) % ((self.grid() as u64) << STEP_BITS);
            let mut before = Instant::now();
            let at = self.search(wanted, &mut seen);
            seen.part(&mut before);
            for n in 0..MATERIALS[material] {
                let nuclide = (material * 7 + n * 2) % NUCLIDES;
                sum = sum.wrapping_add(self.gather(at, nuclide, &mut seen));
                seen.part(&mut before);
            }
            seen.lookups += 1;
        }
        // So that no load is left out.
        std::hint::black_box(sum);
        seen.hand_over(phases);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Vec<AtomicU64> {
        (0..100_000).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn tables_are_as_they_were_filled() {
        let words = memory();
        let tables = Tables::over(&words);
        tables.fill();
        assert_eq!(tables.sweep(), 0);
        let phases = Phases::new(1);
        let mut seen = Seen::begin(&phases);
        for at in [0, 1, 67, 68, tables.grid() - 1] {
            assert_eq!(tables.search(energy(at), &mut seen), at);
            for nuclide in 0..NUCLIDES {
                tables.gather(at, nuclide, &mut seen);
            }
        }
        assert!(seen.errors == 0 && seen.loads > 1000);
    }

    #[test]
    fn a_wrong_word_is_seen() {
        let words = memory();
        let tables = Tables::over(&words);
        tables.fill();
        let phases = Phases::new(1);
        let used = tables.grid() * (1 + INDEX_WORDS + WORDS_A_POINT);
        // One energy, one index, one cross section.
        for (word, at, nuclide) in [(500, 500, 3), (tables.grid(), 0, 0), (used - 1, 1400, 67)] {
            words[word].fetch_xor(1 << 33, Ordering::Relaxed);
            let mut seen = Seen::begin(&phases);
            tables.search(energy(at), &mut seen);
            for at in [at, tables.grid() - 1] {
                tables.gather(at, nuclide, &mut seen);
            }
            assert!(seen.errors > 0, "word {word}");
            assert_eq!(tables.sweep(), 1);
            words[word].fetch_xor(1 << 33, Ordering::Relaxed);
        }
    }
}
