//! The side that serves: a thread of its own, which waits for many connections at once.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use transhume_sys::peer::Peer;
use transhume_sys::signals::HeldOff;

use super::ask::Request;
use super::client::{Client, Next};
use super::message;
use super::socket::{ControlError, Socket, answers};
use crate::{Choice, InUse, Switch, SwitchError, engines};

/// Connections that are served at once; others wait to be accepted.
const MOST_CLIENTS: usize = 32;
/// A pause where the system has nothing for another connection.
const NO_RESOURCES: Duration = Duration::from_millis(50);

/// A socket at which a [`Switch`] can be looked at and changed, until it is dropped; see
/// [`control`](super).
///
/// ```
/// use std::sync::Arc;
/// use transhume_copy::Switch;
/// use transhume_copy::control::{Control, Request, ask};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("copiers");
/// let switch = Arc::new(Switch::default());
/// let _control = Control::serve(&path, Arc::clone(&switch))?;
///
/// let only = "demotion".parse()?;
/// let answer = ask(&path, &Request::Use { name: "threads:2".to_owned(), only })?;
/// assert_eq!(answer.before.unwrap().name, "memcpy");
/// assert_eq!(switch.in_use(), answer.in_use);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Control {
    socket: Arc<Socket>,
    /// Closed, it ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl Control {
    /// Listens at this path, which is made for its owner only, and begins to serve. Copiers that are
    /// asked for are started by its thread, which may run where the calling thread may: call this
    /// before pinning it.
    ///
    /// # Errors
    ///
    /// See [`ControlError`]. Only a socket at which nobody listens is replaced.
    pub fn serve(path: impl AsRef<Path>, switch: Arc<Switch>) -> Result<Self, ControlError> {
        let path = path.as_ref();
        let socket = Arc::new(Socket::listen(path)?);
        let failed = |what| {
            move |source| ControlError::System {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let (stop, stopped) = UnixStream::pair().map_err(failed("serve"))?;
        // A handler of the application that runs here could wait for a page that is cut off, and who
        // asks would wait with it. The thread inherits this.
        let _handlers = HeldOff::begin();
        let serving = Serving {
            socket: Arc::clone(&socket),
            stopped,
            switch,
        };
        let thread = std::thread::Builder::new()
            .name("transhume-ctl".to_owned())
            .spawn(move || serving.run())
            .map_err(failed("start a thread for"))?;
        Ok(Self {
            socket,
            stop: Some(stop),
            thread: Some(thread),
            process: std::process::id(),
        })
    }

    /// Where it listens, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.socket.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let thread = self.thread.take();
        if self.process != std::process::id() {
            // The thread is the parent's, and so is what its handle stands for.
            return std::mem::forget(thread);
        }
        drop(self.stop.take());
        if let Some(thread) = thread {
            // It panics only where a copier of the application did when it was dropped.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Serving {
    socket: Arc<Socket>,
    stopped: UnixStream,
    switch: Arc<Switch>,
}

impl Serving {
    fn run(self) {
        let mut clients: Vec<Client> = Vec::new();
        while let Some(ready) = self.wait(&clients) {
            // Each goes on, whether it is ready or its time is over.
            clients.retain_mut(|client| self.serve(client));
            if ready {
                self.accept(&mut clients);
            }
        }
    }

    /// Waits until there is something to do; says whether somebody wants to connect. Nothing when it
    /// is to stop.
    fn wait(&self, clients: &[Client]) -> Option<bool> {
        let first = clients.iter().map(Client::until).min();
        let patience = first.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, or the last nanoseconds would be spent asking.
        let patience = patience.map(|patience| patience + Duration::from_millis(1));
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let mut fds = vec![PollFd::new(&self.stopped, PollFlags::IN)];
        fds.extend(
            clients
                .iter()
                .map(|client| PollFd::from_borrowed_fd(client.fd(), client.waits_for())),
        );
        if clients.len() < MOST_CLIENTS {
            let listener = self.socket.listener.as_fd();
            fds.push(PollFd::from_borrowed_fd(listener, PollFlags::IN));
        }
        // Interrupted, or out of memory for a moment: everything is looked at again.
        let _ = poll(&mut fds, patience.as_ref());
        let is_ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
        if is_ready(fds.first()) {
            return None;
        }
        Some(clients.len() < MOST_CLIENTS && is_ready(fds.last()))
    }

    fn accept(&self, clients: &mut Vec<Client>) {
        while clients.len() < MOST_CLIENTS {
            match self.socket.listener.accept() {
                Ok((stream, _)) => {
                    // Where it cannot be made not to wait it is not served.
                    if stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let mut client = Client::new(stream);
                    if !Peer::of(client.fd()).is_ok_and(|peer| answers(peer.uid)) {
                        client.answer(message::write_error("another user's process is not served"));
                    }
                    if self.serve(&mut client) {
                        clients.push(client);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return std::thread::sleep(NO_RESOURCES),
            }
        }
    }

    /// Goes on with a connection; whether there is more to come.
    fn serve(&self, client: &mut Client) -> bool {
        loop {
            match client.go_on() {
                Next::Wait => return true,
                Next::End => return false,
                Next::Answer(line) => client.answer(self.answer(&line)),
            }
        }
    }

    fn answer(&self, line: &[u8]) -> String {
        let request = match message::read_request(line) {
            Ok(request) => request,
            Err(why) => return message::write_error(&why),
        };
        let before = match request {
            Request::Show => None,
            Request::Use { name, only } => {
                let choice = match Choice::named(&name) {
                    Ok(choice) => choice.only(only),
                    Err(unknown) => return message::write_error(&unknown.to_string()),
                };
                match self.switch.select(choice) {
                    Ok(before) => Some(InUse {
                        name: before.copier.name().to_owned(),
                        only: before.only,
                    }),
                    Err(late @ SwitchError::NotReturned { .. }) => {
                        return message::write_failed(&late.to_string());
                    }
                    Err(refused) => return message::write_error(&refused.to_string()),
                }
            }
        };
        message::write_answer(
            before.as_ref(),
            &self.switch.in_use(),
            &engines(),
            &self.switch.statistics(),
        )
    }
}
