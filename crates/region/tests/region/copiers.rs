//! The copier is changed while pages migrate under application threads.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;

use transhume_copy::auto::{NodePair, Route};
use transhume_copy::{CopyJob, Memcpy, SharedCopier, by_name};
use transhume_engine::{Copier, CopyAnswer, Counts};
use transhume_region::{Builder, Choice, Options, Reason, Region, Report, Switch, Tally, TierId};

use crate::Case;
use crate::herd::{self, Herd};
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "copiers::a_thousand_changes",
        &[Need::Move],
        a_thousand_changes,
    ),
    Case(
        "copiers::a_thousand_changes_mapped",
        &[Need::Blind],
        a_thousand_changes_mapped,
    ),
    Case(
        "copiers::one_switch_for_several_regions",
        &[Need::Move, Need::Blind],
        one_switch_for_several_regions,
    ),
    Case(
        "copiers::after_a_panic_another_is_chosen",
        &[Need::Move],
        after_a_panic_another_is_chosen,
    ),
    Case(
        "copiers::a_copier_is_told_the_nodes",
        &[Need::Move],
        a_copier_is_told_the_nodes,
    ),
];

const CHANGES: usize = 1000;

/// What the copiers of a test have seen.
#[derive(Default)]
struct Seen {
    jobs: AtomicU64,
    confirmed: AtomicU64,
    /// Destinations of the lists that are being copied.
    under_way: Mutex<Vec<usize>>,
}

/// A copier that gives every answer by turns, beginning with another one each, and spoils what it does
/// not confirm. It must not be asked once it was taken out.
struct Moody {
    name: String,
    first: usize,
    seen: Arc<Seen>,
    taken_out: Arc<AtomicBool>,
}

const MOODS: [CopyAnswer; 7] = [
    CopyAnswer::Copied,
    CopyAnswer::Declined,
    CopyAnswer::Copied,
    CopyAnswer::Failed,
    CopyAnswer::TimedOut,
    CopyAnswer::Copied,
    CopyAnswer::Unconfirmed,
];

impl Copier<CopyJob> for Moody {
    fn name(&self) -> &str {
        &self.name
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        assert!(!self.taken_out.load(Ordering::SeqCst), "it was taken out");
        let places = || jobs.iter().map(|job| job.destination() as usize);
        {
            // Nobody else is at the same folio.
            let mut under_way = self.seen.under_way.lock().unwrap();
            assert!(places().all(|place| !under_way.contains(&place)));
            under_way.extend(places());
        }
        let moods = MOODS.iter().cycle().skip(self.first).copied();
        for ((job, answer), mood) in jobs.iter().zip(answers).zip(moods) {
            if mood == CopyAnswer::Copied {
                Memcpy.copy(std::slice::from_ref(job), std::slice::from_mut(answer));
                self.seen.confirmed.fetch_add(1, Ordering::Relaxed);
            } else {
                // SAFETY: by the promise made with the job.
                unsafe { std::ptr::write_bytes(job.destination(), 0xA5, job.bytes()) };
                *answer = mood;
            }
        }
        self.seen
            .jobs
            .fetch_add(jobs.len() as u64, Ordering::Relaxed);
        let mut under_way = self.seen.under_way.lock().unwrap();
        under_way.retain(|place| places().all(|mine| mine != *place));
        drop(under_way);
        assert!(
            !self.taken_out.load(Ordering::SeqCst),
            "taken out meanwhile"
        );
    }
}

/// Adds up what the engine counted.
fn add(sum: &mut Counts, counts: &Counts) {
    sum.batches += counts.batches;
    sum.retries += counts.retries;
    sum.putbacks += counts.putbacks;
    sum.copied_by_copier += counts.copied_by_copier;
    sum.copied_by_cpu += counts.copied_by_cpu;
    sum.declined += counts.declined;
    sum.copy_failures += counts.copy_failures;
    sum.timed_out += counts.timed_out;
    sum.unconfirmed += counts.unconfirmed;
}

/// Each folio was copied into use once: by the copier, or by the CPU after it. One that was put back
/// may have been copied before, and that copy was not used.
fn check_copies(report: &Report<TierId>) {
    let counts = &report.counts;
    let copied = counts.copied_by_copier + counts.copied_by_cpu;
    let moved = report.moved() as u64;
    assert!(
        (moved..=moved + counts.putbacks).contains(&copied),
        "{counts:?}"
    );
}

/// The engine and the switch, which count at different places, agree exactly.
fn check_accounts(switch: &Switch, counts: &Counts) {
    let statistics = switch.statistics();
    let sum = |figure: fn(&Tally) -> u64| {
        let figures = statistics.iter().map(|copier| figure(&copier.tally));
        figures.sum::<u64>()
    };
    let tallied = (
        sum(|tally| tally.copied),
        sum(|tally| tally.declined),
        sum(|tally| tally.failed),
        sum(|tally| tally.timed_out),
        sum(|tally| tally.unconfirmed),
        sum(|tally| tally.panicked),
    );
    let counted = (
        counts.copied_by_copier,
        counts.declined,
        counts.copy_failures,
        counts.timed_out,
        counts.unconfirmed,
        0,
    );
    assert_eq!(tallied, counted);
    assert_eq!(sum(Tally::fell_back), counts.copied_by_cpu);
    assert_eq!(sum(|tally| tally.bytes), counts.copied_by_copier * 4096);
}

/// How many lists were copied.
fn batches(switch: &Switch) -> u64 {
    let all = switch.statistics().into_iter();
    all.map(|copier| copier.tally.batches).sum()
}

/// Changes the copier again and again: moody ones, threads, and for some reasons only. Between two
/// changes something is copied, while `at_work`.
fn change(switch: &Switch, times: usize, seen: &Arc<Seen>, at_work: impl Fn() -> bool) {
    let mut flags = vec![(String::new(), Arc::new(AtomicBool::new(false)))];
    for n in 0..times {
        let taken_out = Arc::new(AtomicBool::new(false));
        let copier: SharedCopier = if n % 16 == 15 {
            by_name("threads:2:memcpy", None).unwrap()
        } else {
            Arc::new(Moody {
                name: format!("moody-{}", n % MOODS.len()),
                first: n % MOODS.len(),
                seen: Arc::clone(seen),
                taken_out: Arc::clone(&taken_out),
            })
        };
        let only = ["all", "demotion", "promotion,compaction"][n % 3];
        let name = copier.name().to_owned();
        let choice = Choice::from(copier).only(only.parse().unwrap());
        let copied = batches(switch);
        while batches(switch) == copied && at_work() {
            std::thread::yield_now();
        }
        let before = switch.select(choice).unwrap();
        let (old, gone) = flags.pop().unwrap();
        assert!(n == 0 || before.copier.name() == old);
        gone.store(true, Ordering::SeqCst);
        flags.push((name, taken_out));
    }
}

fn under_a_thousand_changes(builder: Builder) {
    let region = builder.build().unwrap();
    let half = region.pages() / 2;
    let seen = Arc::new(Seen::default());
    herd::fill(&region);
    let (stop, changed) = (AtomicBool::new(false), AtomicBool::new(false));
    let (mut counts, mut moved) = (Counts::default(), 0);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        // One half always demotes, the other promotes.
        let migrators = [
            (0..half, Reason::Demotion),
            (half..2 * half, Reason::Promotion),
        ]
        .map(|(pages, reason)| {
            let (region, changed) = (&region, &changed);
            scope.spawn(move || {
                let limit = NonZeroUsize::new(64 * 4096).unwrap();
                let options = Options::new().reason(reason).limit_bytes(limit);
                let (mut counts, mut moved, mut round) = (Counts::default(), 0, 0);
                while !changed.load(Ordering::Relaxed) {
                    round += 1;
                    let tier = region.tiers()[round % 2].name();
                    let report = region.migrate(pages.clone(), tier, &options).unwrap();
                    assert!(report.is_complete(), "{:?}", report.stayed().next());
                    assert_eq!(report.moved(), pages.len());
                    check_copies(&report);
                    add(&mut counts, &report.counts);
                    moved += report.moved() as u64;
                }
                (counts, moved)
            })
        });
        let switch = region.copier_switch();
        let at_work = || !migrators.iter().any(ScopedJoinHandle::is_finished);
        let changer = AssertUnwindSafe(|| change(switch, CHANGES, &seen, at_work));
        let changer = catch_unwind(changer);
        changed.store(true, Ordering::Relaxed);
        changer.unwrap();
        for migrator in migrators {
            let (its, pages) = migrator.join().unwrap();
            add(&mut counts, &its);
            moved += pages;
        }
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
    assert!(counts.batches >= CHANGES as u64 && moved > 0);
    check_accounts(region.copier_switch(), &counts);
    let of_moody = region.copier_switch().statistics().into_iter();
    let of_moody = of_moody.filter(|copier| copier.name.starts_with("moody"));
    let (jobs, confirmed) = of_moody.fold((0, 0), |(jobs, copied), copier| {
        (jobs + copier.tally.jobs(), copied + copier.tally.copied)
    });
    assert_eq!(jobs, seen.jobs.load(Ordering::Relaxed));
    assert_eq!(confirmed, seen.confirmed.load(Ordering::Relaxed));
    assert!(confirmed > 0 && counts.copied_by_cpu > 0);
}

fn a_thousand_changes() {
    under_a_thousand_changes(two_nodes(1024));
}

fn a_thousand_changes_mapped() {
    under_a_thousand_changes(two_memfds(1024));
}

fn one_switch_for_several_regions() {
    let switch = Arc::new(Switch::default());
    let share = |builder: Builder| builder.copier_switch(Arc::clone(&switch)).build().unwrap();
    let regions = [share(two_nodes(100)), share(two_memfds(100))];
    let mut counts = Counts::default();
    let mut migrate = |region: &Region, tier: &str, options: &Options| {
        let report = region.migrate(.., tier, options).unwrap();
        assert_eq!(report.moved(), 100);
        add(&mut counts, &report.counts);
    };
    for region in &regions {
        assert!(Arc::ptr_eq(region.copier_switch(), &switch));
        migrate(region, "far", &Options::new());
    }
    let threads = by_name("threads:2:memcpy", None).unwrap();
    switch.select(threads).unwrap();
    // A request's own copier is counted with the others.
    let own = Options::new().copier(by_name("streaming", None).unwrap_or(Arc::new(Memcpy)));
    for region in &regions {
        migrate(region, "near", &Options::new());
        migrate(region, "far", &own);
    }
    check_accounts(&switch, &counts);
    let statistics = switch.statistics();
    let copied = |name| {
        let mut all = statistics.iter();
        all.find(|copier| copier.name == name)
            .map(|copier| copier.tally.copied)
    };
    assert_eq!(copied("threads:2:memcpy"), Some(200));
    assert_eq!(counts.copied_by_copier, 600);
}

struct Panics;

impl Copier<CopyJob> for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn copy(&self, _jobs: &[CopyJob], _answers: &mut [CopyAnswer]) {
        panic!("a copier that panics, on purpose");
    }
}

fn after_a_panic_another_is_chosen() {
    let region = two_nodes(64).copier(Arc::new(Panics)).build().unwrap();
    herd::fill(&region);
    let migrate = || region.migrate(.., "far", &Options::new());
    assert!(catch_unwind(AssertUnwindSafe(migrate)).is_err());
    assert!((0..64).all(|page| region.tier_of(page) == Ok("near")));
    let switch = region.copier_switch();
    let before = switch.select(Choice::named("memcpy").unwrap()).unwrap();
    assert_eq!(before.copier.name(), "panics");
    assert!(migrate().unwrap().is_complete());
    herd::sweep(region.words());
    let tallies = switch.statistics();
    let tally = tallies.iter().find(|copier| copier.name == "panics");
    assert_eq!(tally.map(|copier| copier.tally.panicked), Some(64));
}

/// Notes between which nodes it is said to copy.
#[derive(Default)]
struct Told(Mutex<Vec<Option<NodePair>>>);

impl Copier<CopyJob> for Told {
    fn name(&self) -> &str {
        "told"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        self.0.lock().unwrap().push(Route::here());
        Memcpy.copy(jobs, answers);
    }
}

fn a_copier_is_told_the_nodes() {
    let told = Arc::new(Told::default());
    let region = two_nodes(64).copier(Arc::clone(&told) as SharedCopier);
    let region = region.build().unwrap();
    let migrate = |pages| region.migrate(pages, "far", &Options::new()).unwrap();
    assert!(migrate(0..32).is_complete());
    assert!(migrate(16..64).is_complete());
    let nodes = Some(NodePair { from: 0, to: 0 });
    assert_eq!(*told.0.lock().unwrap(), [nodes, nodes]);
    assert_eq!(Route::here(), None, "it ends with the request");
}
