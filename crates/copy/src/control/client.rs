//! One connection on the side that serves.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::message::{LONGEST_REQUEST, write_error};

/// How long its line may take to come, and then its answer to go.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A connection that does not wait.
pub(super) struct Client {
    stream: UnixStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
    until: Instant,
}

/// What is to be done with it.
pub(super) enum Next {
    /// It waits for the other side.
    Wait,
    /// This line came, and wants an answer.
    Answer(Vec<u8>),
    /// It is over.
    End,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            request: Vec::with_capacity(LONGEST_REQUEST),
            answer: Vec::new(),
            sent: 0,
            until: Instant::now() + PATIENCE,
        }
    }

    /// When it has taken too long.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn waits_for(&self) -> PollFlags {
        if self.answer.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::OUT
        }
    }

    /// Goes on as far as it goes without waiting.
    pub(super) fn go_on(&mut self) -> Next {
        let gone = if self.answer.is_empty() {
            self.receive()
        } else {
            self.send()
        };
        match gone {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= self.until {
                    return self.take_leave();
                }
                Next::Wait
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Next::Wait,
            Err(_) => Next::End,
        }
    }

    /// It has taken too long. If it was to say something, it is told that this is over.
    fn take_leave(&mut self) -> Next {
        if self.answer.is_empty() {
            self.refuse(&format!("no line within {} seconds", PATIENCE.as_secs()));
            // As much as goes: the other side had its time.
            let _ = self.send();
        }
        Next::End
    }

    fn receive(&mut self) -> io::Result<Next> {
        let mut bytes = [0; LONGEST_REQUEST];
        loop {
            // One byte more than there may be is enough to know that there are too many.
            let room = LONGEST_REQUEST + 1 - self.request.len();
            let room = room.min(bytes.len());
            let count = self.stream.read(&mut bytes[..room])?;
            self.request.extend_from_slice(&bytes[..count]);
            if let Some(end) = self.request.iter().position(|&byte| byte == b'\n') {
                self.request.truncate(end);
                return Ok(Next::Answer(std::mem::take(&mut self.request)));
            }
            if self.request.len() > LONGEST_REQUEST {
                self.refuse(&format!("a request has up to {LONGEST_REQUEST} bytes"));
                return self.send();
            }
            if count == 0 {
                if self.request.is_empty() {
                    return Ok(Next::End);
                }
                self.refuse("the request ended before its line did");
                return self.send();
            }
        }
    }

    fn refuse(&mut self, why: &str) {
        self.answer(write_error(why));
    }

    /// Sets what is to be sent.
    pub(super) fn answer(&mut self, text: String) {
        self.answer = text.into_bytes();
        self.until = Instant::now() + PATIENCE;
    }

    fn send(&mut self) -> io::Result<Next> {
        while let Some(left) = self.answer.get(self.sent..).filter(|left| !left.is_empty()) {
            match self.stream.write(left)? {
                0 => break,
                sent => self.sent += sent,
            }
        }
        Ok(Next::End)
    }
}
