//! Tests against the running kernel. What the machine cannot do is reported as ignored, with the
//! reason.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

#[path = "../common/mod.rs"]
mod common;

mod advise;
mod events;
mod map;
mod numa;
mod pagemap;
mod shootdown;
mod uffd;

fn main() {
    let mut suite = common::Suite::default();
    uffd::add(&mut suite);
    events::add(&mut suite);
    pagemap::add(&mut suite);
    numa::add(&mut suite);
    advise::add(&mut suite);
    map::add(&mut suite);
    shootdown::add(&mut suite);
    suite.run();
}
