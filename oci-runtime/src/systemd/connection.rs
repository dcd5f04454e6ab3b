//! One D-Bus connection, used by one thread that waits for each answer.

use super::message::{Call, FIXED_PART, Kind, Message};
use super::value::{Malformed, Value};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Signals that came while something else was waited for; more are not kept.
const MOST_SIGNALS: usize = 1024;

/// An authentication's line; the specification's are short.
const LONGEST_LINE: usize = 1024;

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    #[error("{operation}: {cause}")]
    Io {
        operation: &'static str,
        cause: io::Error,
    },
    /// The other side is gone, as a manager is that starts anew.
    #[error("the connection was closed")]
    Closed,
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("authentication was refused: {0:?}")]
    Unauthenticated(String),
    /// The other side's error.
    #[error("{text} ({name})")]
    Refused { name: String, text: String },
}

impl BusError {
    /// Whether it is this error of the other side.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        matches!(self, BusError::Refused { name, .. } if name == wanted)
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    is_bus: bool,
    serial: u32,
    signals: VecDeque<Message>,
}

/// When an operation is to be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    pub fn after(after: Duration) -> Self {
        Deadline {
            at: Instant::now() + after,
            after,
        }
    }

    pub fn left(&self) -> Result<Duration, BusError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(BusError::TimedOut(self.after))
        } else {
            Ok(left)
        }
    }
}

impl Connection {
    /// Makes itself known on a new stream.
    pub fn open(stream: UnixStream, is_bus: bool, deadline: Deadline) -> Result<Self, BusError> {
        let mut connection = Connection {
            stream,
            is_bus,
            serial: 0,
            signals: VecDeque::new(),
        };
        connection.authenticate(deadline)?;
        if is_bus {
            connection.call_bus("Hello", vec![], deadline)?;
        }
        Ok(connection)
    }

    /// By the credentials of the socket, which are true in a user namespace too, where this process knows itself by
    /// another number. All in one piece, as systemd's own clients do: a manager that reads BEGIN together with the first
    /// call doesn't look at the call until more comes.
    fn authenticate(&mut self, deadline: Deadline) -> Result<(), BusError> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", deadline)?;
        let mut line = self.line(deadline)?;
        if line == "DATA" || line.starts_with("DATA ") {
            line = self.line(deadline)?;
        }
        if line == "OK" || line.starts_with("OK ") {
            Ok(())
        } else {
            Err(BusError::Unauthenticated(line))
        }
    }

    fn line(&mut self, deadline: Deadline) -> Result<String, BusError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == LONGEST_LINE {
                return Err(Malformed("a line of the authentication is too long").into());
            }
            let mut byte = [0];
            self.receive(&mut byte, deadline)?;
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn call_bus(
        &mut self,
        member: &str,
        body: Vec<Value>,
        deadline: Deadline,
    ) -> Result<(), BusError> {
        let call = Call {
            destination: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            body,
        };
        self.exchange(&call, deadline).map(drop)
    }

    /// From here on signals that match are delivered; without a bus all are.
    pub fn listen(&mut self, rule: &str, deadline: Deadline) -> Result<(), BusError> {
        if !self.is_bus {
            return Ok(());
        }
        self.call_bus("AddMatch", vec![Value::text(rule)], deadline)
    }

    /// Calls a method of the service, and waits for what it returns.
    pub fn call(&mut self, mut call: Call<'_>, deadline: Deadline) -> Result<Vec<Value>, BusError> {
        if !self.is_bus {
            call.destination = None;
        }
        self.exchange(&call, deadline)
    }

    fn exchange(&mut self, call: &Call<'_>, deadline: Deadline) -> Result<Vec<Value>, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.to_bytes(serial), deadline)?;
        loop {
            let message = self.message(deadline)?;
            match message.kind {
                Some(Kind::Return) if message.reply_serial == Some(serial) => {
                    return Ok(message.values()?);
                }
                Some(Kind::Error) if message.reply_serial == Some(serial) => {
                    let text = match message.values().unwrap_or_default().into_iter().next() {
                        Some(Value::Text(text)) => text,
                        _ => String::new(),
                    };
                    return Err(BusError::Refused {
                        name: message.error_name,
                        text,
                    });
                }
                Some(Kind::Signal) if self.signals.len() < MOST_SIGNALS => {
                    self.signals.push_back(message)
                }
                _ => {}
            }
        }
    }

    /// Waits for a signal of which `wanted` makes something.
    pub fn await_signal<T>(
        &mut self,
        interface: &str,
        member: &str,
        mut wanted: impl FnMut(&[Value]) -> Option<T>,
        deadline: Deadline,
    ) -> Result<T, BusError> {
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.message(deadline)?,
            };
            if message.kind == Some(Kind::Signal)
                && message.interface == interface
                && message.member == member
                && let Some(found) = wanted(&message.values()?)
            {
                return Ok(found);
            }
        }
    }

    fn message(&mut self, deadline: Deadline) -> Result<Message, BusError> {
        let mut fixed = [0; FIXED_PART];
        self.receive(&mut fixed, deadline)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(Message::length(&fixed)?, 0);
        self.receive(&mut bytes[FIXED_PART..], deadline)?;
        Ok(Message::parse(&bytes)?)
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Deadline) -> Result<(), BusError> {
        while !bytes.is_empty() {
            let set = self.stream.set_write_timeout(Some(deadline.left()?));
            match set.and_then(|()| self.stream.write(bytes)) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) => retry("write", error)?,
            }
        }
        Ok(())
    }

    fn receive(&mut self, mut buffer: &mut [u8], deadline: Deadline) -> Result<(), BusError> {
        while !buffer.is_empty() {
            let set = self.stream.set_read_timeout(Some(deadline.left()?));
            match set.and_then(|()| self.stream.read(buffer)) {
                Ok(0) => return Err(BusError::Closed),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) => retry("read", error)?,
            }
        }
        Ok(())
    }
}

/// Whether there is a next time, at which the deadline is looked at.
fn retry(operation: &'static str, cause: io::Error) -> Result<(), BusError> {
    match cause.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(BusError::Closed),
        _ => Err(BusError::Io { operation, cause }),
    }
}
