//! The two instructions that submit a descriptor.

use super::descriptor::Descriptor;

/// Which of them this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instructions {
    pub(crate) movdir64b: bool,
    pub(crate) enqcmd: bool,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use super::{Descriptor, Instructions};

    impl Instructions {
        pub(crate) fn here() -> Self {
            let leaf = if __cpuid(0).eax < 7 {
                0
            } else {
                __cpuid_count(7, 0).ecx
            };
            Self {
                movdir64b: leaf & (1 << 28) != 0,
                enqcmd: leaf & (1 << 29) != 0,
            }
        }
    }

    /// Writes a descriptor to a dedicated queue's portal, in one piece.
    ///
    /// # Safety
    ///
    /// The processor has `MOVDIR64B`. `portal` is a multiple of 64 at which 64 bytes may be
    /// written, and what that causes is promised by the caller.
    pub(crate) unsafe fn movdir64b(portal: *mut u8, descriptor: &Descriptor) {
        // The store is weakly ordered: the fence puts before it what the device will read.
        // SAFETY: it writes where the caller allowed it, and reads 64 bytes of a descriptor.
        unsafe {
            asm!(
                "sfence",
                "movdir64b {to}, [{from}]",
                to = in(reg) portal,
                from = in(reg) std::ptr::from_ref(descriptor),
                options(nostack, preserves_flags),
            );
        }
    }

    /// Offers a descriptor to a shared queue; whether it was accepted.
    ///
    /// # Safety
    ///
    /// As [`movdir64b`], with `ENQCMD`.
    pub(crate) unsafe fn enqcmd(portal: *mut u8, descriptor: &Descriptor) -> bool {
        let refused: u8;
        // SAFETY: as above. The zero flag is set where the queue was full.
        unsafe {
            asm!(
                "sfence",
                "enqcmd {to}, [{from}]",
                "setz {refused}",
                to = in(reg) portal,
                from = in(reg) std::ptr::from_ref(descriptor),
                refused = out(reg_byte) refused,
                options(nostack),
            );
        }
        refused == 0
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{enqcmd, movdir64b};

/// Elsewhere there is neither the device nor an instruction; no portal is opened.
#[cfg(not(target_arch = "x86_64"))]
mod other {
    use super::{Descriptor, Instructions};

    impl Instructions {
        pub(crate) fn here() -> Self {
            Self {
                movdir64b: false,
                enqcmd: false,
            }
        }
    }

    /// # Safety
    ///
    /// There is no processor on which it may be called.
    pub(crate) unsafe fn movdir64b(_portal: *mut u8, _descriptor: &Descriptor) {}

    /// # Safety
    ///
    /// As [`movdir64b`].
    pub(crate) unsafe fn enqcmd(_portal: *mut u8, _descriptor: &Descriptor) -> bool {
        false
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use other::{enqcmd, movdir64b};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsa::descriptor::DescriptorCell;

    #[test]
    fn movdir64b_moves_a_descriptor_whole() {
        if !Instructions::here().movdir64b {
            eprintln!("not tried: this processor has no MOVDIR64B");
            return;
        }
        let descriptor = Descriptor {
            owner: 1,
            operation: 0x0300_000C,
            record: 2,
            source: u64::MAX,
            destination: 4,
            size: 5,
            interrupt: 6,
            reserved: 7,
            specific: [8, 9, u64::MAX - 1],
        };
        let cells: [DescriptorCell; 3] = Default::default();
        let to = std::ptr::from_ref(&cells[1]).cast_mut().cast::<u8>();
        // SAFETY: the cell is aligned memory of this test, of atomics, and nobody else looks.
        unsafe { movdir64b(to, &descriptor) };
        assert_eq!(cells[1].load(), descriptor);
        assert_eq!(cells[0].load(), Descriptor::default());
        assert_eq!(cells[2].load(), Descriptor::default());
    }
}
