//! What the families of calls share: errno by the C convention, and width conversions.

use std::ops::Range;

use rustix::io::Errno;

/// The answer of a raw system call.
pub(crate) fn answer(ret: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(ret).map_err(|_| {
        let errno = std::io::Error::last_os_error();
        Errno::from_io_error(&errno).unwrap_or(Errno::IO)
    })
}

/// An errno that the kernel left, negated, in a field of a structure.
pub(crate) fn errno_in_field(field: i64) -> Option<Errno> {
    const MAX_ERRNO: i64 = 4095;
    let raw = field
        .checked_neg()
        .filter(|raw| (1..=MAX_ERRNO).contains(raw))?;
    i32::try_from(raw).ok().map(Errno::from_raw_os_error)
}

/// An address or a length from the kernel; this crate is for 64-bit machines only.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the crate is empty unless usize has 64 bits"
)]
pub(crate) const fn to_usize(value: u64) -> usize {
    value as usize
}

/// An address or a length for the kernel.
pub(crate) const fn to_u64(value: usize) -> u64 {
    value as u64
}

/// The length of a range; zero if it is turned round, which the kernel refuses.
pub(crate) const fn len(range: &Range<usize>) -> usize {
    range.end.saturating_sub(range.start)
}

/// A pointer for calls that want one in their signature and use its number only.
pub(crate) const fn pointer<T>(address: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(address)
}
