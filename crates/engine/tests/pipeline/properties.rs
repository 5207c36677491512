//! Any request, any troubles: the machine asserts what must hold, at every call and at the end.

use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use proptest::prelude::*;
use transhume_engine::{CopyAnswer, Folio, Limit, Mode, Reason, Request, Why, migrate};

use crate::machine::{
    Act, Call, Machine, ScriptedCopier, TIERS, Tier, Trouble, What, fails, folio, panics,
};

#[derive(Clone, Debug)]
struct Case {
    folios: Vec<(Folio, Tier)>,
    /// Positions in `folios`, in the order of the request.
    named: Vec<usize>,
    to: Tier,
    /// How much room the destination has, in hundredths of what is asked for.
    room: u64,
    mode: Mode,
    limit: Limit,
    troubles: Vec<Trouble>,
    script: Vec<Act>,
    shootdown_cost: Duration,
    copy_cost: Duration,
}

impl Case {
    fn machine(&self) -> Machine {
        let mut machine = Machine::new(&self.folios);
        machine.set_troubles(&self.troubles);
        machine.shootdown_cost = self.shootdown_cost;
        machine.copy_cost = self.copy_cost;
        let wanted: u64 = self.folios.iter().map(|(f, _)| f.base_pages()).sum();
        machine.leave_room(self.to, wanted * self.room / 100);
        machine
    }

    fn request(&self) -> Request<Tier> {
        Request {
            folios: self.named.iter().map(|&n| self.folios[n].0).collect(),
            to: self.to,
            mode: self.mode,
            limit: self.limit,
            reason: Reason::Demotion,
        }
    }
}

pub(crate) fn orders() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => Just(0),
        4 => 0..=4_u8,
        2 => 5..=9_u8,
        1 => Just(9),
        1 => Just(12),
    ]
}

pub(crate) fn tiers() -> impl Strategy<Value = Tier> {
    (0..TIERS).prop_map(Tier)
}

pub(crate) fn causes() -> impl Strategy<Value = Why> {
    prop_oneof![
        4 => Just(Why::Busy),
        4 => Just(Why::Again),
        2 => Just(Why::Pinned),
        2 => Just(Why::CopyFailed),
        2 => Just(Why::Shared),
        1 => Just(Why::Absent),
        1 => Just(Why::NotPermitted),
        1 => Just(Why::Unsupported),
        1 => Just(Why::System),
        1 => Just(Why::NoMemory),
    ]
}

pub(crate) fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Async), Just(Mode::Sync)]
}

/// A call that fails for one of some folios.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mishap {
    call: Call,
    index: prop::sample::Index,
    why: Why,
    times: u32,
    gone_by_waiting: bool,
}

impl Mishap {
    pub(crate) fn among(self, folios: &[(Folio, Tier)]) -> Trouble {
        let (folio, _) = folios[self.index.index(folios.len())];
        Trouble {
            gone_by_waiting: self.gone_by_waiting,
            ..fails(self.call, folio, self.why, self.times)
        }
    }
}

/// One of these calls fails.
pub(crate) fn mishaps(steps: impl Strategy<Value = Call>) -> impl Strategy<Value = Mishap> {
    let times = prop_oneof![1..=12_u32, Just(u32::MAX)];
    let index = any::<prop::sample::Index>();
    (steps, index, causes(), times, any::<bool>()).prop_map(
        |(call, index, why, times, gone_by_waiting)| Mishap {
            call,
            index,
            why,
            times,
            gone_by_waiting,
        },
    )
}

/// The calls that can fail; the others can only panic.
fn steps() -> impl Strategy<Value = Call> {
    prop::sample::select(vec![
        Call::Lock,
        Call::Reserve,
        Call::Detach,
        Call::Unmap,
        Call::Shootdown,
        Call::IsEligible,
        Call::CopyOnCpu,
        Call::Remap,
    ])
}

fn script() -> impl Strategy<Value = Vec<Act>> {
    let answers = prop_oneof![
        4 => Just(CopyAnswer::Copied),
        1 => Just(CopyAnswer::Declined),
        1 => Just(CopyAnswer::Failed),
        1 => Just(CopyAnswer::TimedOut),
        1 => Just(CopyAnswer::Unconfirmed),
    ];
    prop::collection::vec(answers.prop_map(Act::Answer), 1..8)
}

pub(crate) fn limits() -> impl Strategy<Value = Limit> {
    let base_pages = prop_oneof![
        1..=8_u64,
        1..=1024_u64,
        Just(512),
        1024..=16_384_u64,
        Just(u64::MAX)
    ];
    let max_stall = prop::option::of((0..10_000_u64).prop_map(Duration::from_micros));
    (base_pages, max_stall).prop_map(|(base_pages, max_stall)| Limit {
        base_pages: NonZeroU64::new(base_pages).unwrap(),
        max_stall,
    })
}

/// Places the folios one after the other, each where it is aligned.
pub(crate) fn place(shapes: Vec<(u8, Tier)>) -> Vec<(Folio, Tier)> {
    let mut page = 0_u64;
    shapes
        .into_iter()
        .map(|(order, tier)| {
            let first = page.next_multiple_of(1 << order);
            page = first + (1 << order);
            (folio(first, order), tier)
        })
        .collect()
}

fn cases() -> impl Strategy<Value = Case> {
    let shapes = prop::collection::vec((orders(), tiers()), 1..24);
    let duplicates = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ];
    let troubles = prop::collection::vec(mishaps(steps()), 0..16);
    let room = prop_oneof![3 => Just(100_u64), 1 => 0..100_u64];
    (
        (shapes.prop_map(place), duplicates, troubles),
        (tiers(), room, modes(), limits(), script()),
        (0..200_u64, 0..20_u64),
    )
        .prop_map(
            |((folios, duplicates, troubles), (to, room, mode, limit, script), costs)| {
                let mut named: Vec<usize> = (0..folios.len()).collect();
                for index in duplicates {
                    let at = index.index(named.len());
                    named.insert(at, index.index(folios.len()));
                }
                let troubles = troubles
                    .into_iter()
                    .map(|mishap: Mishap| mishap.among(&folios))
                    .collect();
                Case {
                    folios,
                    named,
                    to,
                    room,
                    mode,
                    limit,
                    troubles,
                    script,
                    shootdown_cost: Duration::from_micros(costs.0),
                    copy_cost: Duration::from_micros(costs.1),
                }
            },
        )
        .prop_flat_map(|case| {
            let named = Just(case.named.clone()).prop_shuffle();
            (Just(case), named).prop_map(|(case, named)| Case { named, ..case })
        })
}

/// Calls that may panic, also those that cannot fail.
fn panicking() -> impl Strategy<Value = Call> {
    prop_oneof![
        steps(),
        prop::sample::select(vec![
            Call::Tier,
            Call::Job,
            Call::Putback,
            Call::Attach,
            Call::Release,
        ]),
    ]
}

/// Whatever fails at most nine times in all can be overcome in ten passes.
pub(crate) fn can_be_overcome(troubles: &mut Vec<Trouble>) {
    troubles.truncate(3);
    for trouble in troubles {
        trouble.what = What::Fail(Why::Again);
        trouble.times = trouble.times.min(3);
    }
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn every_folio_has_one_true_outcome(case in cases()) {
        let copier = ScriptedCopier::new(&case.script);
        let report = case.machine().migrate(&copier, case.request());
        prop_assert_eq!(report.folios().len(), case.named.len());
    }

    #[test]
    fn what_never_fails_for_good_moves(mut case in cases()) {
        can_be_overcome(&mut case.troubles);
        case.room = 100;
        let copier = ScriptedCopier::new(&case.script);
        let report = case.machine().migrate(&copier, case.request());
        prop_assert!(report.is_complete());
    }

    #[test]
    fn a_panic_anywhere_leaves_the_machine_whole(
        mut case in cases(),
        calls in prop::collection::vec((panicking(), any::<prop::sample::Index>()), 0..3),
        copier_panics in any::<prop::sample::Index>(),
    ) {
        for (call, index) in calls {
            let (folio, _) = case.folios[index.index(case.folios.len())];
            case.troubles.insert(0, panics(call, folio));
            // The unwinding calls these, and must not panic again.
            if matches!(call, Call::Putback | Call::Attach | Call::Release) {
                case.troubles.retain(|trouble| trouble.call == call || trouble.what != What::Panic);
                break;
            }
        }
        let mut script = case.script.clone();
        if case.troubles.iter().all(|trouble| trouble.what != What::Panic) {
            script.insert(copier_panics.index(script.len()), Act::Panic);
        }
        let mut machine = case.machine();
        let copier = ScriptedCopier::new(&script);
        let request = case.request();
        let _unwound = catch_unwind(AssertUnwindSafe(|| migrate(&mut machine, &copier, request)));
        machine.check();
    }
}
