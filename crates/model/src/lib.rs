//! A simulated machine under the real engine, and a checker that explores the orders of its events.
//!
//! `transhume-engine` runs here unchanged, as it runs on memory: it locks folios, unmaps them, shoots
//! translations down, copies and maps. But the CPUs, their TLBs, the page tables, the interrupts and
//! the frames are simulated, and each thing that one can see of another is a step. Which step comes next is
//! decided by a search, so that orders are met which a machine shows once in years.
//!
//! With a clock the same machine predicts: steps take the time that [`Costs`] says, and [`predict`] tells what a
//! [`Plan`] would take. [`Published`] has what others measured, to hold against it.
#![forbid(unsafe_code)]

mod account;
mod act;
mod actor;
mod bug;
mod case;
mod check;
mod costs;
mod explore;
mod machine;
mod oracle;
mod platform;
mod published;
mod roles;
mod seed;
mod setup;
mod timed;
mod timeline;

pub use bug::Bug;
pub use case::Case;
pub use check::{NoFit, Orders, Progress, Verdict, Violation, check, replay};
pub use costs::{BadCost, Costs};
pub use published::{Cell, Figure, LeftOut, Published, Reproduced, Shape, TOLERANCE};
pub use seed::{NoSeed, Seed, Written};
pub use timed::{
    BadPlan, CopyBy, MOST_BASE_PAGES, MOST_CPUS, NoPrediction, Plan, Prediction, predict,
};
pub use timeline::Timeline;
