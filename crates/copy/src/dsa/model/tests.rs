//! The model against the specification, descriptor by descriptor.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::engine::LATE_BY;
use super::*;
use crate::dsa::descriptor::{Descriptor, DescriptorCell, flags, opcode};
use crate::dsa::portal::Submitted;
use crate::dsa::record::{Completion, Record, Status};

const VALID: u32 = flags::RECORD_VALID;
const WANTED: u32 = flags::RECORD_WANTED;

fn model(queue: ModelQueue, faults: Faults) -> (DsaModel, Box<dyn Portal>) {
    let model = DsaModel::start(&ModelOptions {
        queues: vec![queue],
        faults,
        ..ModelOptions::default()
    })
    .unwrap();
    let portal = model.portals().remove(0);
    (model, portal)
}

fn descriptor(opcode: u8, flags: u32, record: &Record) -> Descriptor {
    Descriptor {
        operation: u32::from(opcode) << 24 | flags,
        record: record.address(),
        ..Descriptor::default()
    }
}

/// A copy within one vector.
fn copy(bytes: &mut [u8], from: usize, to: usize, size: u32, record: &Record) -> Descriptor {
    let start = bytes.as_mut_ptr().expose_provenance() as u64;
    Descriptor {
        source: start + from as u64,
        destination: start + to as u64,
        size,
        ..descriptor(opcode::MEMMOVE, VALID | WANTED, record)
    }
}

fn submit(portal: &dyn Portal, descriptor: &Descriptor) {
    // SAFETY: the tests wait for what they submit, or call it off, before its memory is gone or
    // looked at.
    assert_eq!(unsafe { portal.submit(descriptor) }, Submitted::Accepted);
}

fn wait(record: &Record) -> Completion {
    let began = Instant::now();
    loop {
        if let Some(completion) = record.read() {
            return completion;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no completion");
        std::thread::yield_now();
    }
}

fn run(portal: &dyn Portal, descriptor: &Descriptor, record: &Record) -> Completion {
    record.clear();
    submit(portal, descriptor);
    wait(record)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

#[test]
fn operations_end_with_the_specified_status() {
    let (_model, portal) = model(ModelQueue::default(), Faults::default());
    let portal = &*portal;
    let record = Record::default();
    let mut bytes = pattern(8192);
    let status = |descriptor: &Descriptor| run(portal, descriptor, &record);
    let of = |opcode, flags| descriptor(opcode, flags, &record);
    let good = copy(&mut bytes, 0, 4096, 4096, &record);
    assert_eq!(status(&good), Completion::of(Status::SUCCESS));
    assert_eq!(bytes[..4096], bytes[4096..]);
    for opcode in [opcode::NOOP, opcode::DRAIN] {
        assert_eq!(status(&of(opcode, VALID | WANTED)).status, Status::SUCCESS);
    }
    // Memory fill exists on the device, and is not modelled.
    assert_eq!(status(&of(0x04, VALID | WANTED)).status, Status::BAD_OPCODE);
    assert_eq!(status(&of(0xFF, VALID | WANTED)).status, Status::BAD_OPCODE);
    for wrong in [flags::BLOCK_ON_FAULT, flags::FENCE, 0x80_0000] {
        let flawed = Descriptor {
            operation: good.operation | wrong,
            ..good
        };
        let completion = status(&flawed);
        assert_eq!(completion.status, Status::INVALID_FLAGS);
        assert_eq!(completion.invalid_flags, wrong);
    }
    for size in [0, (2 << 20) + 1, u32::MAX] {
        let flawed = Descriptor { size, ..good };
        assert_eq!(status(&flawed).status, Status::TRANSFER_SIZE);
    }
    let flawed = Descriptor {
        reserved: 1,
        ..good
    };
    assert_eq!(status(&flawed).status, Status::RESERVED_FIELD);
    for size in [0, 1, 33] {
        let flawed = Descriptor {
            size,
            ..of(opcode::BATCH, VALID | WANTED)
        };
        assert_eq!(status(&flawed).status, Status::BATCH_SIZE);
    }
    let flawed = Descriptor {
        source: 32,
        size: 2,
        ..of(opcode::BATCH, VALID | WANTED)
    };
    assert_eq!(status(&flawed).status, Status::LIST_ALIGNMENT);
}

#[test]
fn a_record_is_written_at_success_only_where_it_is_wanted() {
    let (_model, portal) = model(ModelQueue::default(), Faults::default());
    let (record, drained) = (Record::default(), Record::default());
    submit(&*portal, &descriptor(opcode::NOOP, VALID, &record));
    submit(&*portal, &Descriptor::drain(&drained));
    assert_eq!(wait(&drained).status, Status::SUCCESS);
    assert_eq!(record.read(), None);
    submit(&*portal, &descriptor(0x55, VALID, &record));
    assert_eq!(wait(&record).status, Status::BAD_OPCODE);
}

#[test]
fn a_batch_reports_its_members_and_itself() {
    let (_model, portal) = model(ModelQueue::default(), Faults::default());
    let mut bytes = pattern(4 * 4096);
    let before = bytes.clone();
    let records: [Record; 4] = Default::default();
    let cells: [DescriptorCell; 4] = Default::default();
    cells[0].store(&copy(&mut bytes, 0, 8192, 4096, &records[0]));
    cells[1].store(&copy(&mut bytes, 0, 4096, 0, &records[1]));
    // Neither has a place in a batch.
    cells[2].store(&Descriptor::drain(&records[2]));
    cells[3].store(&copy(&mut bytes, 4096, 12288, 4096, &records[3]));
    let of_batch = Record::default();
    let completion = run(&*portal, &Descriptor::batch(&cells, &of_batch), &of_batch);
    assert_eq!(completion.status, Status::BATCH_FAILED);
    assert_eq!(completion.done, 4);
    let statuses = records.each_ref().map(|record| wait(record).status);
    assert_eq!(
        statuses,
        [
            Status::SUCCESS,
            Status::TRANSFER_SIZE,
            Status::BAD_OPCODE,
            Status::SUCCESS
        ]
    );
    assert_eq!(bytes[8192..], before[..8192]);
    // A fence after a failure ends the batch.
    let fenced = Descriptor {
        operation: cells[3].load().operation | flags::FENCE,
        ..cells[3].load()
    };
    cells[3].store(&fenced);
    records.iter().for_each(Record::clear);
    let completion = run(&*portal, &Descriptor::batch(&cells, &of_batch), &of_batch);
    assert_eq!(completion.status, Status::BATCH_FAILED);
    assert!(records[0].read().is_some() && records[3].read().is_none());
}

#[test]
fn a_fault_says_how_far_it_got() {
    for (fault, wrote) in [(Fault::ReadFaults, false), (Fault::WriteFaults, true)] {
        let faults = Faults::seeded(3).with(fault, 1000);
        let (model, portal) = model(ModelQueue::default(), faults);
        for round in 0..20 {
            let mut bytes = pattern(200_000);
            bytes[100_000..].fill(0xEE);
            let record = Record::default();
            let descriptor = copy(&mut bytes, 0, 100_000, 100_000, &record);
            let completion = run(&*portal, &descriptor, &record);
            assert_eq!(completion.status.code(), Status::PAGE_FAULT, "{round}");
            assert_eq!(completion.status != Status::PAGE_FAULT, wrote);
            assert_eq!(completion.result, 0);
            let done = completion.done as usize;
            let side = if wrote {
                descriptor.destination
            } else {
                descriptor.source
            };
            assert_eq!(completion.fault, side + done as u64);
            assert_eq!(bytes[100_000..100_000 + done], bytes[..done]);
            assert!(bytes[100_000 + done..].iter().all(|&byte| byte == 0xEE));
        }
        assert_eq!(model.injected(fault), 20);
    }
}

#[test]
fn a_drain_waits_for_what_was_submitted_before_it() {
    let faults = Faults::seeded(5)
        .with(Fault::Delays, 500)
        .with(Fault::Reorders, 500);
    let (model, portal) = model(ModelQueue::default(), faults);
    for _ in 0..200 {
        let mut bytes = pattern(20 * 4096);
        let records: [Record; 9] = Default::default();
        for (n, record) in records.iter().enumerate() {
            submit(
                &*portal,
                &copy(&mut bytes, n * 4096, (n + 10) * 4096, 4096, record),
            );
        }
        let drained = Record::default();
        submit(&*portal, &Descriptor::drain(&drained));
        wait(&drained);
        assert!(records.iter().all(|record| record.read().is_some()));
        assert_eq!(bytes[..9 * 4096], bytes[10 * 4096..19 * 4096]);
    }
    assert!(model.injected(Fault::Delays) > 0);
}

#[test]
fn what_is_called_off_touches_nothing_any_more() {
    let kinds = [
        Fault::Hangs,
        Fault::Late,
        Fault::RecordsLate,
        Fault::Delays,
        Fault::Reorders,
    ];
    for fault in kinds {
        let faults = Faults::seeded(9).with(fault, 1000);
        let (_model, portal) = model(ModelQueue::default(), faults);
        let mut bytes = pattern(4 << 20);
        let records: [Record; 4] = Default::default();
        for (n, record) in records.iter().enumerate() {
            let (from, to) = (n << 19, (n + 4) << 19);
            submit(&*portal, &copy(&mut bytes, from, to, 1 << 19, record));
        }
        std::thread::sleep(Duration::from_micros(50));
        portal.call_off();
        bytes[2 << 20..].fill(0xA5);
        records.iter().for_each(Record::clear);
        std::thread::sleep(2 * LATE_BY);
        assert!(
            bytes[2 << 20..].iter().all(|&byte| byte == 0xA5),
            "{fault:?}"
        );
        assert!(records.iter().all(|record| record.read().is_none()));
        // The queue is as new.
        let drained = Record::default();
        submit(&*portal, &Descriptor::drain(&drained));
        assert_eq!(wait(&drained).status, Status::SUCCESS);
    }
}

#[test]
fn a_full_queue_says_so_or_drops() {
    for mode in [QueueMode::Shared, QueueMode::Dedicated] {
        let queue = ModelQueue {
            mode,
            size: 2,
            ..ModelQueue::default()
        };
        let (_model, portal) = model(queue, Faults::seeded(1).with(Fault::Hangs, 1000));
        let mut bytes = pattern(8192);
        let records: [Record; 3] = Default::default();
        let copies = records
            .each_ref()
            .map(|record| copy(&mut bytes, 0, 4096, 4096, record));
        submit(&*portal, &copies[0]);
        submit(&*portal, &copies[1]);
        let full = match mode {
            QueueMode::Shared => Submitted::Retry,
            QueueMode::Dedicated => Submitted::Accepted,
        };
        // SAFETY: called off below.
        assert_eq!(unsafe { portal.submit(&copies[2]) }, full);
        portal.call_off();
        assert!(records.iter().all(|record| record.read().is_none()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A copy is a memmove: the sides overlap in either direction.
    #[test]
    fn copies_are_as_memmove(
        from in 0..70_000_usize,
        to in 0..70_000_usize,
        size in 1..60_000_u32,
    ) {
        let (_model, portal) = model(ModelQueue::default(), Faults::default());
        let mut bytes = pattern(130_000);
        let mut wanted = bytes.clone();
        wanted.copy_within(from..from + size as usize, to);
        let record = Record::default();
        let descriptor = copy(&mut bytes, from, to, size, &record);
        prop_assert_eq!(run(&*portal, &descriptor, &record).status, Status::SUCCESS);
        prop_assert!(bytes == wanted);
    }

    /// Of overlapping sides too, what a fault leaves is what it says, from the end that it says.
    #[test]
    fn a_fault_of_an_overlapping_copy_can_be_resumed(
        shift in 1..5_000_usize,
        up in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let faults = Faults::seeded(seed).with(Fault::ReadFaults, 1000);
        let (_model, portal) = model(ModelQueue::default(), faults);
        let (from, to) = if up { (0, shift) } else { (shift, 0) };
        let mut bytes = pattern(60_000);
        let mut wanted = bytes.clone();
        let size = 50_000_usize;
        wanted.copy_within(from..from + size, to);
        let record = Record::default();
        let descriptor = copy(&mut bytes, from, to, 50_000, &record);
        let completion = run(&*portal, &descriptor, &record);
        let left = size - completion.done as usize;
        prop_assert_eq!(completion.result, u8::from(up));
        let skip = if up { 0 } else { completion.done as usize };
        bytes.copy_within(from + skip..from + skip + left, to + skip);
        prop_assert!(bytes == wanted);
    }
}
