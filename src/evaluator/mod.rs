//! The evaluator child: loads one model, runs shards, knows neither database nor dataset.

mod calibrate;
pub mod confine;
mod corrupting;
pub(crate) mod counted;
mod examine;
mod resuming;
mod session;
mod settle;

pub(crate) use calibrate::calibrate;
pub(crate) use corrupting::clock;
pub(crate) use settle::{new_profile, platform};

use std::io::BufReader;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use uuid::Uuid;

use crate::wire::{self, Answer, Call, Reply, SOCKET_FD, WireError};
use session::Session;

/// The child's main loop: answers requests on the inherited socket until the supervisor closes it.
pub fn serve() -> anyhow::Result<()> {
    print_by_lines();
    // SAFETY: the supervisor put the socket there and nothing else in this process uses it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(SOCKET_FD) });
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = Line { socket, nonce: Uuid::nil() };
    let mut session = Session::new();
    loop {
        let (call, payload) = match wire::receive::<Call>(&mut reader) {
            Ok(frame) => frame,
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        line.nonce = call.nonce;
        let (reply, payload) = session.answer(call.request, payload, &mut line);
        line.say(reply, &payload)?;
    }
}

/// Has what models print leave this process line by line: what waits in a buffer would miss the log of its attempt, or be lost
/// in a crash.
fn print_by_lines() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: C's own stream, before anything has been written to it; without a buffer given, it makes its own.
    unsafe { libc::setvbuf(stdout, std::ptr::null_mut(), libc::_IOLBF, 0) };
}

/// The way back to the supervisor, while one question is open.
struct Line {
    socket: UnixStream,
    nonce: Uuid,
}

impl Line {
    fn say(&mut self, reply: Reply, payload: &[u8]) -> Result<(), WireError> {
        wire::send(&mut self.socket, &Answer { nonce: self.nonce, reply }, payload)
    }
}
