//! Threads that read or copy memory from end to end, all at once.

use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::context::Context;

/// Words between two looks at the clock: 1 MiB.
const CHUNK: usize = 1 << 17;

/// What the threads wait for, so that they begin together.
const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// What the threads do with their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Write a word of each page, so that all of it is there. Goes through it once.
    Touch,
    /// Read every word.
    Read,
    /// Copy the first half to the second, by memcpy.
    Copy,
}

/// A thread's own part of the memory, and how far it has come.
pub(super) struct Part<'m> {
    cpu: usize,
    words: &'m mut [u64],
    at: usize,
}

/// Divides memory among CPUs.
pub(super) fn divide<'m>(words: &'m mut [u64], cpus: &[usize]) -> Vec<Part<'m>> {
    let share = words.len().div_ceil(cpus.len().max(1)).max(1);
    let parts = words.chunks_mut(share).zip(cpus);
    let part = parts.map(|(words, &cpu)| Part { cpu, words, at: 0 });
    part.collect()
}

/// Lets a thread for each part work for `time`; says how many bytes a second all of them did. A
/// byte that is copied counts once. Ends early at Ctrl-C.
pub(super) fn rate(
    parts: &mut [Part<'_>],
    work: Work,
    time: Duration,
    context: &Context,
) -> Result<f64, String> {
    let gate = AtomicU8::new(CLOSED);
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(parts.len());
        for part in parts {
            let gate = &gate;
            let thread = Builder::new().spawn_scoped(scope, move || {
                let pinned = pin(part.cpu);
                while gate.load(Ordering::Relaxed) == CLOSED {
                    std::thread::yield_now();
                }
                match gate.load(Ordering::Relaxed) {
                    OPEN => pinned.map(|()| part.work(work, time, context)),
                    _ => Ok(0.0),
                }
            });
            threads.push(thread.map_err(|error| {
                // Those that have been started must not wait for ever.
                gate.store(GIVEN_UP, Ordering::Relaxed);
                format!("cannot start a thread: {error}")
            })?);
        }
        gate.store(OPEN, Ordering::Relaxed);
        let mut sum = 0.0;
        for thread in threads {
            sum += thread
                .join()
                .map_err(|_| "a thread panicked".to_owned())??;
        }
        Ok(sum)
    })
}

/// Keeps the calling thread on a CPU.
pub(super) fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| format!("cannot run on CPU {cpu}: {error}"))
}

impl Part<'_> {
    /// Bytes per second.
    fn work(&mut self, work: Work, time: Duration, context: &Context) -> f64 {
        let began = Instant::now();
        let mut words = 0;
        let mut sum = 0_u64;
        while !context.is_interrupted() {
            words += match work {
                Work::Touch => self.touch(),
                Work::Read => self.read(&mut sum),
                Work::Copy => self.copy(),
            };
            let is_through = work == Work::Touch && self.at == 0;
            if is_through || (work != Work::Touch && began.elapsed() >= time) {
                break;
            }
        }
        black_box(sum);
        (words * size_of::<u64>()) as f64 / began.elapsed().as_secs_f64()
    }

    /// The next chunk of the first `len` words.
    fn chunk(&mut self, len: usize) -> std::ops::Range<usize> {
        let end = (self.at + CHUNK).min(len);
        let chunk = self.at.min(end)..end;
        self.at = if end == len { 0 } else { end };
        chunk
    }

    fn touch(&mut self) -> usize {
        /// Words of a page, or of a part of one.
        const PAGE: usize = 512;
        let chunk = self.chunk(self.words.len());
        let words = &mut self.words[chunk];
        words.iter_mut().step_by(PAGE).for_each(|word| *word = 1);
        words.len()
    }

    fn read(&mut self, sum: &mut u64) -> usize {
        let chunk = self.chunk(self.words.len());
        let words = &self.words[chunk];
        *sum = words.iter().fold(*sum, |sum, &word| sum.wrapping_add(word));
        words.len()
    }

    fn copy(&mut self) -> usize {
        let half = self.words.len() / 2;
        let chunk = self.chunk(half);
        let (from, to) = self.words.split_at_mut(half);
        to[chunk.clone()].copy_from_slice(&from[chunk.clone()]);
        chunk.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_gone_through_from_end_to_end() {
        let len = 5 * CHUNK / 2;
        let mut words = vec![0; len];
        let mut part = divide(&mut words, &[0]).remove(0);
        let lens = [part.touch(), part.touch(), part.touch(), part.touch()];
        assert_eq!(lens, [CHUNK, CHUNK, CHUNK / 2, CHUNK]);
        part.at = 0;
        let mut sum = 0;
        let read = (0..3).map(|_| part.read(&mut sum)).sum::<usize>();
        assert_eq!((read, sum), (len, len as u64 / 512));
        assert_eq!((part.at, part.copy(), part.copy()), (0, CHUNK, CHUNK / 4));
        assert_eq!(words[..len / 2], words[len / 2..]);
    }

    #[test]
    fn every_cpu_has_its_share() {
        let mut words = vec![0; 1000];
        let shares = |words: &mut [u64], cpus: &[usize]| {
            let parts = divide(words, cpus);
            parts
                .iter()
                .map(|part| part.words.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(shares(&mut words, &[0, 2, 4]), [334, 334, 332]);
        assert!(shares(&mut words, &[]).is_empty());
        assert_eq!(shares(&mut words[..1], &[0, 1]), [1]);
    }
}
