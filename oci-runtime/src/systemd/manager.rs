//! systemd's manager, as far as a container's unit takes it (`org.freedesktop.systemd1(5)`).

use super::SystemdError;
use super::address::{Owner, Place, places};
use super::connection::{BusError, Connection, Deadline};
use super::message::Call;
use super::properties::Property;
use super::value::{Malformed, Value};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SERVICE: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// How long an operation may take, its job included; as runc.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait before another attempt to connect, at first and at most: a manager that starts anew listens again
/// within a second or two.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Whether this machine was booted with systemd (`sd_booted(3)`).
pub(crate) fn is_running() -> bool {
    std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir())
}

/// A connection to the manager, made anew when the manager starts anew.
#[derive(Debug)]
pub(crate) struct Manager {
    places: Vec<Place>,
    connection: Connection,
}

impl Manager {
    /// Connects to this owner's manager.
    ///
    /// # Errors
    /// If no place is known, or nobody answers at any.
    pub(crate) fn connect(owner: Owner) -> Result<Self, SystemdError> {
        Self::connect_to(places(owner, |name| std::env::var(name).ok()), PATIENCE)
    }

    fn connect_to(places: Vec<Place>, patience: Duration) -> Result<Self, SystemdError> {
        let connection = open_any(&places, Deadline::after(patience))?;
        Ok(Manager { places, connection })
    }

    fn reconnect(&mut self, deadline: Deadline) -> Result<(), SystemdError> {
        self.connection = open_any(&self.places, deadline)?;
        Ok(())
    }

    /// systemd's version, as in 252; what can't be read as one is taken as an old one.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub(crate) fn version(&mut self) -> Result<u32, SystemdError> {
        let text = self.property("Version")?;
        let digits = text
            .trim_start_matches('v')
            .split(|c: char| !c.is_ascii_digit())
            .next();
        Ok(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    /// The cgroup below which its units' cgroups are.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub(crate) fn control_group(&mut self) -> Result<String, SystemdError> {
        self.property("ControlGroup")
    }

    fn property(&mut self, name: &'static str) -> Result<String, SystemdError> {
        let call = || Call {
            destination: Some(SERVICE),
            path: OBJECT,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            body: vec![Value::text(INTERFACE), Value::text(name)],
        };
        let values = self.insist("ask systemd for its", name, call)?;
        if let Some(Value::Variant(value)) = values.into_iter().next()
            && let Value::Text(text) = *value
        {
            return Ok(text);
        }
        Err(failed("ask systemd for its", name)(
            Malformed("not a string").into(),
        ))
    }

    /// Starts a transient unit, and waits until it has started; `pid` is of the process that it begins with.
    ///
    /// # Errors
    /// If systemd refuses, for instance because there is such a unit; if its job fails, or takes too long.
    pub(crate) fn start(
        &mut self,
        unit: &str,
        properties: &[Property],
        pid: Option<i32>,
    ) -> Result<(), SystemdError> {
        const WHAT: &str = "start unit";
        let deadline = Deadline::after(PATIENCE);
        let body = vec![
            Value::text(unit),
            Value::text("replace"),
            property_list(properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let mut was_reset = false;
        loop {
            match self.run_job("StartTransientUnit", body.clone(), deadline) {
                Ok(result) if result == "done" => return Ok(()),
                Ok(result) => {
                    self.reset_failed(unit);
                    return Err(SystemdError::Job {
                        operation: WHAT,
                        unit: unit.to_owned(),
                        result,
                    });
                }
                Err(BusError::Closed) => self.reconnect(deadline)?,
                // By this call before the connection was lost; or it has failed once, and is still known.
                Err(error) if error.is(UNIT_EXISTS) && !was_reset => {
                    if let Some(pid) = pid
                        && self.holds(unit, pid)
                    {
                        return Ok(());
                    }
                    was_reset = true;
                    self.reset_failed(unit);
                }
                Err(error) => return Err(failed(WHAT, unit)(error)),
            }
        }
    }

    /// Whether a process is in this unit.
    fn holds(&mut self, unit: &str, pid: i32) -> bool {
        let body = vec![Value::U32(u32::try_from(pid).unwrap_or(0))];
        let found = self.connection.call(
            manager_call("GetUnitByPID", body),
            Deadline::after(PATIENCE),
        );
        let path = Value::Path(format!("{OBJECT}/unit/{}", escape_label(unit)));
        found.is_ok_and(|values| values.first() == Some(&path))
    }

    /// Stops a unit, and waits until it has; one that isn't there is stopped.
    ///
    /// # Errors
    /// As [`Manager::start`].
    pub(crate) fn stop(&mut self, unit: &str) -> Result<(), SystemdError> {
        const WHAT: &str = "stop unit";
        let deadline = Deadline::after(PATIENCE);
        let stopped = loop {
            let body = vec![Value::text(unit), Value::text("replace")];
            match self.run_job("StopUnit", body, deadline) {
                Ok(result) if result == "done" => break Ok(()),
                Ok(result) => {
                    break Err(SystemdError::Job {
                        operation: WHAT,
                        unit: unit.to_owned(),
                        result,
                    });
                }
                Err(BusError::Closed) => self.reconnect(deadline)?,
                Err(error) if error.is(NO_SUCH_UNIT) => break Ok(()),
                Err(error) => break Err(failed(WHAT, unit)(error)),
            }
        };
        self.reset_failed(unit);
        stopped
    }

    /// Changes what is in force of a unit, until it ends.
    ///
    /// # Errors
    /// If systemd refuses, for instance because there is no such unit.
    pub(crate) fn set(&mut self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let body = || {
            vec![
                Value::text(unit),
                Value::Bool(true),
                property_list(properties),
            ]
        };
        self.insist("set properties of unit", unit, || {
            manager_call("SetUnitProperties", body())
        })
        .map(drop)
    }

    /// Lets systemd forget a unit that has failed. One that hasn't is an error, which is none here.
    fn reset_failed(&mut self, unit: &str) {
        let call = manager_call("ResetFailedUnit", vec![Value::text(unit)]);
        let _ = self.connection.call(call, Deadline::after(PATIENCE));
    }

    /// A call that may be made twice.
    fn insist<'a>(
        &mut self,
        operation: &'static str,
        unit: &str,
        call: impl Fn() -> Call<'a>,
    ) -> Result<Vec<Value>, SystemdError> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            match self.connection.call(call(), deadline) {
                Err(BusError::Closed) => self.reconnect(deadline)?,
                other => return other.map_err(failed(operation, unit)),
            }
        }
    }

    /// Calls a method that makes a job, and waits for the job's result.
    fn run_job(
        &mut self,
        member: &'static str,
        body: Vec<Value>,
        deadline: Deadline,
    ) -> Result<String, BusError> {
        let mut values = self
            .connection
            .call(manager_call(member, body), deadline)?
            .into_iter();
        let Some(Value::Path(job)) = values.next() else {
            return Err(Malformed("the answer is not a job").into());
        };
        // (id, job, unit, result)
        let ended = |values: &[Value]| match values {
            [_, Value::Path(path), _, Value::Text(result)] if *path == job => Some(result.clone()),
            _ => None,
        };
        self.connection
            .await_signal(INTERFACE, "JobRemoved", ended, deadline)
    }
}

fn manager_call(member: &'static str, body: Vec<Value>) -> Call<'static> {
    Call {
        destination: Some(SERVICE),
        path: OBJECT,
        interface: INTERFACE,
        member,
        body,
    }
}

fn failed(operation: &'static str, unit: &str) -> impl FnOnce(BusError) -> SystemdError {
    let unit = unit.to_owned();
    move |cause| SystemdError::Call {
        operation,
        unit,
        cause,
    }
}

fn property_list(properties: &[Property]) -> Value {
    let pair = |property: &Property| {
        Value::Struct(vec![
            Value::text(&property.name),
            property.value.clone().variant(),
        ])
    };
    Value::Array("(sv)".to_owned(), properties.iter().map(pair).collect())
}

/// The last part of a unit's object path.
fn escape_label(unit: &str) -> String {
    let escaped = unit.bytes().enumerate().map(|(at, byte)| {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            char::from(byte).to_string()
        } else {
            format!("_{byte:02x}")
        }
    });
    escaped.collect()
}

/// Connects to the first place at which there is something, and waits for it if it is about to be.
fn open_any(places: &[Place], deadline: Deadline) -> Result<Connection, SystemdError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut last = SystemdError::NoAddress;
        let mut is_coming = false;
        for place in places {
            match open(place, deadline) {
                Ok(connection) => return Ok(connection),
                Err(cause) => {
                    is_coming |= is_starting(&cause);
                    last = SystemdError::Connect {
                        place: place.name.clone(),
                        cause,
                    };
                }
            }
        }
        if !is_coming || deadline.left().is_err() {
            return Err(last);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether somebody listened there a moment ago: a manager that starts anew, or has many callers.
fn is_starting(cause: &BusError) -> bool {
    match cause {
        BusError::Closed => true,
        BusError::Io { cause, .. } => {
            matches!(
                cause.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
            )
        }
        BusError::Refused { name, .. } => name == "org.freedesktop.DBus.Error.ServiceUnknown",
        _ => false,
    }
}

fn open(place: &Place, deadline: Deadline) -> Result<Connection, BusError> {
    let stream = UnixStream::connect_addr(&place.address).map_err(|cause| BusError::Io {
        operation: "connect",
        cause,
    })?;
    let mut connection = Connection::open(stream, place.is_bus, deadline)?;
    if place.is_bus {
        let rule =
            format!("type='signal',sender='{SERVICE}',interface='{INTERFACE}',member='JobRemoved'");
        connection.listen(&rule, deadline)?;
        connection.call(manager_call("Subscribe", Vec::new()), deadline)?;
    }
    Ok(connection)
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
