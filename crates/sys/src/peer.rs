//! Who is at the other end of a Unix socket.
//!
//! `rustix` has this call too, but gives the number of the process as one that is never zero, and it
//! is zero where this process cannot see the other (pid namespaces).

use std::os::fd::{AsFd, AsRawFd};

use crate::abi::answer;
use crate::{Call, CallError, hook};

/// The length of what the kernel answers: three numbers of 32 bits.
const BYTES: libc::socklen_t = 12;
const _: () = assert!(size_of::<libc::ucred>() == BYTES as usize);

/// The other end of a connection, as it was when it connected or began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The process, if it can be seen from here.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
}

impl Peer {
    /// Who is at the other end of this Unix socket.
    ///
    /// # Errors
    ///
    /// `ENOTSOCK` for what is no socket.
    ///
    /// # References
    ///
    /// `SO_PEERCRED` in unix(7).
    pub fn of(socket: impl AsFd) -> Result<Self, CallError> {
        let mut credentials = libc::ucred {
            pid: 0,
            uid: libc::uid_t::MAX,
            gid: libc::gid_t::MAX,
        };
        let mut length = BYTES;
        let socket = socket.as_fd().as_raw_fd();
        let got = hook::whole(Call::PeerCredentials).and_then(|()| {
            // SAFETY: the kernel writes at most `length` bytes, and that is how long they are.
            let ret = unsafe {
                libc::getsockopt(
                    socket,
                    libc::SOL_SOCKET,
                    libc::SO_PEERCRED,
                    (&raw mut credentials).cast(),
                    &raw mut length,
                )
            };
            answer(ret.into())
        });
        got.map_err(|errno| CallError::new(Call::PeerCredentials, errno))?;
        Ok(Self {
            pid: u32::try_from(credentials.pid).ok().filter(|&pid| pid > 0),
            uid: credentials.uid,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_pair_is_of_this_process() {
        let (one, other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(Peer::of(&other).unwrap(), peer);
    }

    #[test]
    fn a_file_has_no_other_end() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Peer::of(file).unwrap_err().errno, Errno::NOTSOCK);
    }
}
