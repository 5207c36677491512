//! The kernel, as the fault loop meets it. `tests/fault_loop` runs the files that name it against a
//! model.

pub(crate) use transhume_sys::limits;
pub(crate) use transhume_sys::signals::HeldOff;
pub(crate) use transhume_sys::uffd::Uffd;
