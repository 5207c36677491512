//! Changing the copier of a running application from outside it (\[offload\]).
//!
//! An application that wants it calls [`Control::serve`] with its [`Switch`](crate::Switch): a thread
//! then listens at a Unix socket in the file system. [`ask`] is the other side, and
//! `transhume engines --control PATH` a program around that.
//!
//! # Who may
//!
//! The user whose process it is, and root. The file is made with mode 0600: on Linux the file gets the
//! mode that the socket has when it is bound, less what the umask takes, so it is never there with
//! another, and the umask, which belongs to all threads, stays as it is. Each connection is asked for
//! its user besides (`SO_PEERCRED`), on both sides: in a folder where others may make files, a socket
//! may be anybody's. Root asks whom it likes.
//!
//! # The protocol, version 1
//!
//! A connection carries one request, which is one line of up to 512 bytes, and its answer.
//!
//! ```text
//! transhume 1 show
//! transhume 1 use NAME [REASONS]
//! ```
//!
//! A name is one that [`by_name`](crate::by_name) takes, reasons are as in [`Reasons`](crate::Reasons).
//! The answer begins with `transhume 1 ok`, or is the one line `transhume 1 error WHY` where nothing was
//! changed, or `transhume 1 failed WHY` where something was. In the lines that follow `ok` fields are
//! parted by tabs; the last line is `end`, without which it is not whole. Lines and figures that one
//! does not know are passed over.
//!
//! ```text
//! before   NAME   REASONS                         after `use`: what was in use
//! in-use   NAME   REASONS                         what is in use now
//! engine   NAME   yes|no   WHAT-IT-IS-HERE   WHAT-IT-DOES
//! copier   NAME   batches=N   copied=N   ...      the Tally of a name; times in ns
//! end
//! ```
//!
//! A line that does not come or an answer that is not fetched within two seconds ends the connection;
//! others are served meanwhile, except while a change waits for copies to return.
//!
//! # Forks
//!
//! A child of `fork` inherits the socket and serves nobody. While such a child lives, connections to
//! the socket of a parent that has gone get no answer. Closed by `exec`.

mod ask;
mod client;
mod message;
mod serve;
mod socket;

pub use ask::{Answer, AskError, Engine, Request, ask};
pub use serve::Control;
pub use socket::ControlError;
