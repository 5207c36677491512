//! The side that asks.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use transhume_sys::peer::Peer;

use super::message;
use super::socket::{Connection, believes, connect};
use crate::{CopierTally, InUse, Reasons};

/// How long an answer may take: a change waits for copies to return.
const PATIENCE: Duration = Duration::from_secs(15);
/// A pause where too many wait to be served already.
const PAUSE: Duration = Duration::from_millis(10);
/// No answer is longer, in bytes.
const LONGEST_ANSWER: u64 = 4 << 20;

/// What one can ask of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What copiers it has, which is in use, and what was counted.
    Show,
    /// That it uses another, and then the same.
    Use {
        /// A name as [`by_name`](crate::by_name) takes it.
        name: String,
        /// For which reasons.
        only: Reasons,
    },
}

/// What an application says.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The process, if it can be seen from here.
    pub pid: Option<u32>,
    /// What was in use before, if another was asked for.
    pub before: Option<InUse>,
    /// What is in use now.
    pub in_use: InUse,
    /// The copiers that it knows by name.
    pub engines: Vec<Engine>,
    /// What was counted of those that have been in use, `memcpy` first.
    pub copiers: Vec<CopierTally>,
}

impl Default for Answer {
    fn default() -> Self {
        let in_use = InUse {
            name: String::new(),
            only: Reasons::ALL,
        };
        Self {
            pid: None,
            before: None,
            in_use,
            engines: Vec::new(),
            copiers: Vec::new(),
        }
    }
}

/// A copier that an application knows by name; see [`EngineInfo`](crate::EngineInfo).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// The name.
    pub name: String,
    /// Whether its machine has it.
    pub available: bool,
    /// What it is there, or why it is not.
    pub detail: String,
    /// What it does.
    pub what: String,
}

/// Why there is no answer. The path is not in the text, since whoever asks knows it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// There is no such file.
    #[error("there is no such socket; cure: name the path that the application serves")]
    Absent,
    /// The file is no socket.
    #[error("it is not a socket")]
    NotASocket,
    /// Nobody listens there.
    #[error("no application listens there any more; it removes the socket when it serves again")]
    NobodyListens,
    /// The socket is another user's.
    #[error("it belongs to another user; cure: ask as the user whose process it is, or as root")]
    NotAllowed,
    /// No copier can have such a name.
    #[error("'{}' cannot be the name of a copier", .0.escape_debug())]
    Name(String),
    /// The application answered that it does not do it, for this reason. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The application answered that something of it failed.
    #[error("{0}")]
    Failed(String),
    /// What came is no answer, or not all of one.
    #[error("what answers there is not this protocol, or it stopped in the middle")]
    NotWhole,
    /// The application does not answer in time.
    #[error("no answer within {} seconds", PATIENCE.as_secs())]
    Silent,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

/// Asks the application that serves this path.
///
/// # Errors
///
/// See [`AskError`].
pub fn ask(path: impl AsRef<Path>, request: &Request) -> Result<Answer, AskError> {
    let path = path.as_ref();
    let request = message::write_request(request)?;
    let until = Instant::now() + PATIENCE;
    let mut stream = loop {
        match connect(path).map_err(AskError::Io)? {
            Connection::Made(stream) => break stream,
            Connection::Absent => return Err(AskError::Absent),
            Connection::NotASocket => return Err(AskError::NotASocket),
            Connection::Refused => return Err(AskError::NobodyListens),
            Connection::Forbidden => return Err(AskError::NotAllowed),
            Connection::Full if Instant::now() >= until => return Err(AskError::Silent),
            Connection::Full => std::thread::sleep(PAUSE),
        }
    };
    let peer = Peer::of(&stream).map_err(|error| AskError::Io(error.errno.into()))?;
    if !believes(peer.uid) {
        return Err(AskError::NotAllowed);
    }
    let answer = exchange(&mut stream, &request).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent,
        io::ErrorKind::InvalidData => AskError::NotWhole,
        _ => AskError::Io(error),
    })?;
    let answer = message::read_answer(&answer).ok_or(AskError::NotWhole)?;
    answer.map(|answer| Answer {
        pid: peer.pid,
        ..answer
    })
}

fn exchange(stream: &mut UnixStream, request: &str) -> io::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Who is refused is told so and cut off, and may find out while it writes or after it has read that.
    let cut_off = |error: &io::Error| {
        let kind = error.kind();
        matches!(
            kind,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        )
    };
    match stream.write_all(request.as_bytes()) {
        Err(error) if !cut_off(&error) => return Err(error),
        _ => {}
    }
    let mut answer = Vec::new();
    match stream.take(LONGEST_ANSWER).read_to_end(&mut answer) {
        Err(error) if !cut_off(&error) => return Err(error),
        _ => {}
    }
    String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
