//! `transhume bench move`: the memory of a process at work moves between two nodes.

mod cell;
mod drive;
mod group;
mod keeper;
mod plan;
mod row;
mod show;
mod summary;

pub(crate) use group::run;
pub(crate) use plan::make;
pub(crate) use row::Row;
pub(crate) use show::group as table;
pub(crate) use summary::lines;
