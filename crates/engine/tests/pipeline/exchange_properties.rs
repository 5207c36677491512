//! Any exchange, any troubles: the machine asserts what must hold, at every call and at the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use proptest::prelude::*;
use transhume_engine::{ExchangeRequest, Folio, Limit, Mode, Reason, exchange};

use crate::machine::{Call, Machine, ScriptedSwapper, SwapAct, Tier, Trouble, What, panics};
use crate::properties::{can_be_overcome, config, limits, mishaps, modes, orders, place, tiers};

#[derive(Clone, Debug)]
struct Case {
    folios: Vec<(Folio, Tier)>,
    /// Positions in `folios`; any two, so that some pairs make no sense.
    pairs: Vec<(usize, usize)>,
    mode: Mode,
    limit: Limit,
    troubles: Vec<Trouble>,
    script: Vec<SwapAct>,
    shootdown_cost: Duration,
}

impl Case {
    fn machine(&self) -> Machine {
        let mut machine = Machine::new(&self.folios);
        machine.set_troubles(&self.troubles);
        machine.shootdown_cost = self.shootdown_cost;
        // There is no free frame anywhere.
        for &(_, tier) in &self.folios {
            machine.leave_room(tier, 0);
        }
        machine
    }

    fn request(&self) -> ExchangeRequest {
        let folio = |n: usize| self.folios[n].0;
        ExchangeRequest {
            pairs: self
                .pairs
                .iter()
                .map(|&(a, b)| (folio(a), folio(b)))
                .collect(),
            mode: self.mode,
            limit: self.limit,
            reason: Reason::Promotion,
        }
    }
}

/// The calls that can fail; the others can only panic.
fn steps() -> impl Strategy<Value = Call> {
    prop::sample::select(vec![
        Call::Lock,
        Call::Pair,
        Call::Unmap,
        Call::Shootdown,
        Call::IsEligible,
        Call::CopyOnCpu,
        Call::Remap,
        Call::Remap,
    ])
}

/// Calls that may panic, also those that cannot fail.
fn panicking() -> impl Strategy<Value = Call> {
    prop_oneof![
        steps(),
        prop::sample::select(vec![
            Call::SwapJob,
            Call::SwapBack,
            Call::Follow,
            Call::Putback,
            Call::Release
        ]),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    // Pairs of one order most of the time.
    let shapes = prop::collection::vec((orders(), tiers(), tiers()), 1..16);
    let more = prop::collection::vec(
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        0..6,
    );
    let troubles = prop::collection::vec(mishaps(steps()), 0..20);
    let acts = prop_oneof![3 => Just(SwapAct::Swap), 1 => Just(SwapAct::Leave)];
    (
        (shapes, more, troubles),
        (
            modes(),
            limits(),
            prop::collection::vec(acts, 1..8),
            0..200_u64,
        ),
    )
        .prop_map(|((shapes, more, troubles), (mode, limit, script, cost))| {
            let count = shapes.len();
            let first = shapes.iter().map(|&(order, tier, _)| (order, tier));
            let second = shapes.iter().map(|&(order, _, tier)| (order, tier));
            let folios = place(first.chain(second).collect());
            let mut pairs: Vec<(usize, usize)> = (0..count).map(|n| (n, count + n)).collect();
            for (a, b) in more {
                let at = a.index(pairs.len());
                pairs.insert(at, (a.index(folios.len()), b.index(folios.len())));
            }
            let troubles = troubles.into_iter().map(|mishap| mishap.among(&folios));
            Case {
                troubles: troubles.collect(),
                folios,
                pairs,
                mode,
                limit,
                script,
                shootdown_cost: Duration::from_micros(cost),
            }
        })
        .prop_flat_map(|case| {
            let pairs = Just(case.pairs.clone()).prop_shuffle();
            (Just(case), pairs).prop_map(|(case, pairs)| Case { pairs, ..case })
        })
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn every_pair_has_one_true_outcome(case in cases()) {
        let swapper = ScriptedSwapper::new(&case.script);
        let report = case.machine().exchange(&swapper, case.request());
        prop_assert_eq!(report.pairs().len(), case.pairs.len());
    }

    #[test]
    fn what_never_fails_for_good_trades_places(mut case in cases()) {
        can_be_overcome(&mut case.troubles);
        let swapper = ScriptedSwapper::new(&case.script);
        let report = case.machine().exchange(&swapper, case.request());
        prop_assert!(report.pairs().all(|pair| !matches!(
            pair.outcome,
            transhume_engine::PairOutcome::Stayed(..)
        )));
    }

    #[test]
    fn a_panic_anywhere_leaves_the_machine_whole(
        mut case in cases(),
        calls in prop::collection::vec((panicking(), any::<prop::sample::Index>()), 0..3),
        swapper_panics in any::<prop::sample::Index>(),
    ) {
        const UNWINDING: [Call; 3] = [Call::SwapBack, Call::Putback, Call::Release];
        for (call, index) in calls {
            let (folio, _) = case.folios[index.index(case.folios.len())];
            case.troubles.insert(0, panics(call, folio));
            // The unwinding calls these, and must not panic again.
            if UNWINDING.contains(&call) {
                let mut first = true;
                case.troubles.retain(|trouble| {
                    trouble.what != What::Panic || std::mem::take(&mut first)
                });
                break;
            }
        }
        let mut script = case.script.clone();
        if case.troubles.iter().all(|trouble| trouble.what != What::Panic) {
            script.insert(swapper_panics.index(script.len()), SwapAct::Panic);
        }
        let mut machine = case.machine();
        let swapper = ScriptedSwapper::new(&script);
        let request = case.request();
        machine.expect_pairs(&request);
        let run = AssertUnwindSafe(|| exchange(&mut machine, &swapper, request));
        let _unwound = catch_unwind(run);
        machine.check();
    }
}
