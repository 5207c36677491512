//! `transhume bench defer`: the tables of a lookup code change place under its threads, at once or
//! with the switch deferred (\[deferred-flush\]).

mod group;
mod lookups;
mod phase;
mod plan;
mod row;
mod show;

pub(crate) use group::run;
pub(crate) use plan::make;
pub(crate) use row::Row;
pub(crate) use show::{group as table, lines};
