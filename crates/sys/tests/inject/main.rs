//! Tests of the injection layer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

#[path = "../common/mod.rs"]
mod common;

mod every;
mod partial;
mod plans;

fn main() {
    let mut suite = common::Suite::default();
    plans::add(&mut suite);
    partial::add(&mut suite);
    every::add(&mut suite);
    suite.run();
}
