//! The socket in the file system: made for its owner only, never in the place of one that is in use.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::geteuid;

/// How long the folder may be in another's hands, who makes or removes a socket there.
const FOLDER_PATIENCE: Duration = Duration::from_secs(3);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Somebody serves it.
    #[error("{} is in use by another application; name another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something else.
    #[error("{} exists and is not a socket; name another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The file would not be the owner's alone.
    #[error(
        "{}: this file system lets others at the socket (mode {mode:03o}); name a path on another", path.display()
    )]
    NotAlone {
        /// The path.
        path: PathBuf,
        /// The mode that the file got.
        mode: u32,
    },
    /// A step failed.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a connection came to.
pub(super) enum Connection {
    Made(UnixStream),
    /// Somebody listens who has more connections than he looks at.
    Full,
    Refused,
    Forbidden,
    Absent,
    NotASocket,
}

/// Connects without waiting. The stream does not wait either.
pub(super) fn connect(path: &Path) -> io::Result<Connection> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(match rustix::net::connect(&socket, &address) {
        Ok(()) => Connection::Made(socket.into()),
        Err(Errno::AGAIN) => Connection::Full,
        // The kernel says so too of what is no socket.
        Err(Errno::CONNREFUSED) => match fs::metadata(path) {
            Ok(file) if file.file_type().is_socket() => Connection::Refused,
            _ => Connection::NotASocket,
        },
        Err(Errno::ACCESS | Errno::PERM) => Connection::Forbidden,
        Err(Errno::NOENT) => Connection::Absent,
        Err(other) => return Err(other.into()),
    })
}

/// Whether this process answers that user: its own, and root.
pub(super) fn answers(user: u32) -> bool {
    is_trusted(geteuid().as_raw(), user)
}

/// Whether this process believes what that user's process answers. Root asks everybody's.
pub(super) fn believes(user: u32) -> bool {
    let own = geteuid().as_raw();
    own == ROOT || is_trusted(own, user)
}

const ROOT: u32 = 0;

const fn is_trusted(own: u32, other: u32) -> bool {
    other == ROOT || other == own
}

/// A listening socket and its file, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    /// Which file it is: another may have taken its place.
    file: (u64, u64),
    process: u32,
}

impl Socket {
    /// Listens at this path. What a process left there that has ended is replaced.
    pub(super) fn listen(path: &Path) -> Result<Self, ControlError> {
        // The working directory may be another when it is removed.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |what, source: io::Error| ControlError::System {
            what,
            path: path.clone(),
            source,
        };
        let folder = hold_folder(&path).map_err(|error| failed("have the folder of", error))?;
        remove_stale(&path)?;
        let address = SocketAddrUnix::new(&path).map_err(|error| failed("bind", error.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let bound = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // The file gets the mode that the socket has now.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &address)?;
            Ok::<_, Errno>(socket)
        };
        let socket = bound().map_err(|error| failed("bind", error.into()))?;
        let file = fs::symlink_metadata(&path).map_err(|error| failed("look at", error))?;
        let socket = Self {
            listener: socket.into(),
            path: path.clone(),
            file: identity(&file),
            process: std::process::id(),
        };
        // Given up before the socket, which holds the folder when it is dropped.
        let _folder = folder;
        // Nobody can have connected yet.
        let mode = file.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ControlError::NotAlone {
                path: path.clone(),
                mode,
            });
        }
        listen(&socket.listener, BACKLOG).map_err(|error| failed("listen at", error.into()))?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // It is the parent's.
            return;
        }
        // Where the folder cannot be had, a file is more likely to be left than taken from another.
        let _folder = hold_folder(&self.path);
        if fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.file) {
            // Whoever serves there next replaces what cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Keeps other processes that make and remove sockets out of the folder of this path, so that none
/// takes another's new socket for a stale one.
fn hold_folder(path: &Path) -> io::Result<File> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let folder = File::open(folder)?;
    let until = Instant::now() + FOLDER_PATIENCE;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(fs::TryLockError::Error(error)) => return Err(error),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process has it locked"));
            }
        }
    }
}

/// Removes a socket that nobody listens at. Anything else that is there is left alone.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let failed = |what, source| ControlError::System {
        what,
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ControlError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match connect(path).map_err(|error| failed("connect to", error))? {
        Connection::Refused => {
            fs::remove_file(path).map_err(|error| failed("replace the stale socket", error))
        }
        Connection::Absent => Ok(()),
        _ => Err(ControlError::InUse {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_user_and_root_are_trusted() {
        for (own, other, trusted) in [
            (1000, 1000, true),
            (1000, ROOT, true),
            (ROOT, ROOT, true),
            (1000, 1001, false),
            (ROOT, 1000, false),
        ] {
            assert_eq!(is_trusted(own, other), trusted, "{own} {other}");
        }
        let own = geteuid().as_raw();
        assert!(answers(own) && believes(own));
        assert!(!answers(own + 1));
        assert_eq!(believes(own + 1), own == ROOT);
    }
}
