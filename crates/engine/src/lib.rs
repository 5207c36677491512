//! The migration engine of Transhume.
#![no_std]
#![forbid(unsafe_code)]

mod copier;

pub use copier::{Copier, CopyAnswer};
