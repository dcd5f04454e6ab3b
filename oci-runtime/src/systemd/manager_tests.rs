//! Against a manager and a bus of the test's own, by a socket.

use super::super::message::tests::{error, reply, signal};
use super::super::message::{FIXED_PART, Message};
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::thread::JoinHandle;

/// What the other side does with one call: the bytes that it sends, or that it goes away.
enum Answer {
    Bytes(Vec<u8>),
    HangUp,
}

/// Serves connections one after the other; `answer` is given each call's member and serial number.
struct Fake {
    dir: tempfile::TempDir,
    is_bus: bool,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Fake {
    fn new(
        is_bus: bool,
        connections: usize,
        mut answer: impl FnMut(&str, u32) -> Answer + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let thread = std::thread::spawn(move || {
            let mut members = Vec::new();
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                if greet(&mut stream).is_err() {
                    continue;
                }
                while let Ok((member, serial)) = next_call(&mut stream) {
                    members.push(member.clone());
                    match answer(&member, serial) {
                        Answer::Bytes(bytes) => stream.write_all(&bytes).unwrap(),
                        Answer::HangUp => break,
                    }
                }
            }
            members
        });
        Fake {
            dir,
            is_bus,
            thread: Some(thread),
        }
    }

    fn places(&self) -> Vec<Place> {
        let path: PathBuf = self.dir.path().join("bus");
        vec![Place {
            address: SocketAddr::from_pathname(&path).unwrap(),
            name: path.display().to_string(),
            is_bus: self.is_bus,
        }]
    }

    fn manager(&self) -> Manager {
        Manager::connect_to(self.places(), Duration::from_secs(5)).unwrap()
    }

    /// The calls that it got, once all of them are over.
    fn calls(mut self, manager: Manager) -> Vec<String> {
        drop(manager);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn greet(stream: &mut UnixStream) -> io::Result<()> {
    let expected = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got)?;
    assert_eq!(got, expected);
    stream.write_all(b"DATA\r\nOK 0123456789abcdef\r\n")
}

fn next_call(stream: &mut UnixStream) -> io::Result<(String, u32)> {
    let mut fixed = [0; FIXED_PART];
    stream.read_exact(&mut fixed)?;
    let mut bytes = fixed.to_vec();
    bytes.resize(Message::length(&fixed).unwrap(), 0);
    stream.read_exact(&mut bytes[FIXED_PART..])?;
    let serial = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    Ok((Message::parse(&bytes).unwrap().member, serial))
}

const JOB: &str = "/org/freedesktop/systemd1/job/7";

/// The answer to a call that makes a job, and how the job ends; another job's end comes first.
fn job(serial: u32, result: &str) -> Answer {
    let removed = |path: &str, result: &str| {
        let body = [
            Value::U32(7),
            Value::Path(path.to_owned()),
            Value::text("runc-a.scope"),
            Value::text(result),
        ];
        signal(INTERFACE, "JobRemoved", &body)
    };
    let mut bytes = signal("org.freedesktop.DBus.Properties", "PropertiesChanged", &[]);
    bytes.extend(reply(serial, &[Value::Path(JOB.to_owned())]));
    bytes.extend(removed("/org/freedesktop/systemd1/job/8", "failed"));
    bytes.extend(removed(JOB, result));
    Answer::Bytes(bytes)
}

fn empty(serial: u32) -> Answer {
    Answer::Bytes(reply(serial, &[]))
}

fn refused(serial: u32, name: &str) -> Answer {
    Answer::Bytes(error(serial, name, "no"))
}

#[test]
fn a_unit_is_started_when_its_job_is_done() {
    let fake = Fake::new(false, 1, |_, serial| job(serial, "done"));
    let mut manager = fake.manager();
    manager.start("runc-a.scope", &[], Some(1)).unwrap();
    assert_eq!(fake.calls(manager), ["StartTransientUnit"]);
}

#[test]
fn a_bus_is_greeted_and_listened_to_first() {
    let fake = Fake::new(true, 1, |member, serial| match member {
        "StartTransientUnit" => job(serial, "done"),
        _ => empty(serial),
    });
    let mut manager = fake.manager();
    manager.start("runc-a.scope", &[], Some(1)).unwrap();
    let calls = ["Hello", "AddMatch", "Subscribe", "StartTransientUnit"];
    assert_eq!(fake.calls(manager), calls);
}

#[test]
fn a_job_that_fails_is_told_and_the_unit_reset() {
    let fake = Fake::new(false, 1, |member, serial| match member {
        "StartTransientUnit" => job(serial, "failed"),
        _ => empty(serial),
    });
    let mut manager = fake.manager();
    let error = manager.start("runc-a.scope", &[], Some(1)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("start unit runc-a.scope: systemd's job ended as \"failed\""),
        "{error}"
    );
    assert_eq!(
        fake.calls(manager),
        ["StartTransientUnit", "ResetFailedUnit"]
    );
}

#[test]
fn a_failed_unit_of_that_name_is_reset_and_one_that_runs_is_left() {
    let fake = Fake::new(false, 1, |member, serial| match member {
        "StartTransientUnit" => refused(serial, UNIT_EXISTS),
        "GetUnitByPID" => refused(serial, NO_SUCH_UNIT),
        _ => empty(serial),
    });
    let mut manager = fake.manager();
    let error = manager.start("runc-a.scope", &[], Some(1)).unwrap_err();
    assert!(error.to_string().contains("UnitExists"), "{error}");
    let calls = [
        "StartTransientUnit",
        "GetUnitByPID",
        "ResetFailedUnit",
        "StartTransientUnit",
    ];
    assert_eq!(fake.calls(manager), calls);
}

#[test]
fn a_manager_that_starts_anew_is_asked_again_and_may_have_done_it() {
    let mut attempts = 0;
    let fake = Fake::new(false, 2, move |member, serial| match member {
        "StartTransientUnit" => {
            attempts += 1;
            if attempts == 1 {
                Answer::HangUp
            } else {
                refused(serial, UNIT_EXISTS)
            }
        }
        "GetUnitByPID" => {
            let path = "/org/freedesktop/systemd1/unit/runc_2da_2escope";
            Answer::Bytes(reply(serial, &[Value::Path(path.to_owned())]))
        }
        _ => empty(serial),
    });
    let mut manager = fake.manager();
    manager.start("runc-a.scope", &[], Some(1)).unwrap();
    assert_eq!(
        fake.calls(manager),
        ["StartTransientUnit", "StartTransientUnit", "GetUnitByPID"]
    );
}

#[test]
fn a_unit_that_is_not_there_is_stopped() {
    let fake = Fake::new(false, 1, |_, serial| refused(serial, NO_SUCH_UNIT));
    let mut manager = fake.manager();
    manager.stop("runc-a.scope").unwrap();
    assert_eq!(fake.calls(manager), ["StopUnit", "ResetFailedUnit"]);
}

#[test]
fn versions_are_read_off_packages_names() {
    for (text, version) in [
        ("252.39-1~deb12u2", 252),
        ("v245.4-1.fc32", 245),
        ("257~rc1", 257),
        ("x", 0),
    ] {
        let fake = Fake::new(false, 1, move |_, serial| {
            Answer::Bytes(reply(serial, &[Value::text(text).variant()]))
        });
        let mut manager = fake.manager();
        assert_eq!(manager.version().unwrap(), version);
        assert_eq!(fake.calls(manager), ["Get"]);
    }
}

#[test]
fn answers_that_are_none_are_errors() {
    for bytes in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        [b"l\x02\0\x01\xff\xff\xff\x7f".as_slice(), &[0; 8]].concat(),
        reply(1, &[Value::U32(5)]),
    ] {
        let fake = Fake::new(false, 1, move |_, _| Answer::Bytes(bytes.clone()));
        let mut manager = fake.manager();
        let error = manager.start("runc-a.scope", &[], Some(1)).unwrap_err();
        assert!(
            error.to_string().contains("malformed D-Bus data"),
            "{error}"
        );
        assert_eq!(fake.calls(manager), ["StartTransientUnit"]);
    }
}

#[test]
fn nobody_there_is_an_error_at_once() {
    let place = |name: &str| Place {
        address: SocketAddr::from_pathname(name).unwrap(),
        name: name.to_owned(),
        is_bus: false,
    };
    let error = Manager::connect_to(vec![place("/nonexistent/private")], PATIENCE).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("connect to systemd at /nonexistent/private: connect: "),
        "{error}"
    );
    let error = Manager::connect_to(Vec::new(), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
}

#[test]
fn a_socket_that_refuses_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    drop(UnixListener::bind(&path).unwrap());
    let place = || Place {
        address: SocketAddr::from_pathname(&path).unwrap(),
        name: String::new(),
        is_bus: false,
    };
    let short = Duration::from_millis(50);
    assert!(Manager::connect_to(vec![place()], short).is_err());
    std::fs::remove_file(&path).unwrap();
    let fake = Fake::new(false, 1, |_, serial| empty(serial));
    std::os::unix::fs::symlink(fake.dir.path().join("bus"), &path).unwrap();
    let mut manager = Manager::connect_to(vec![place()], PATIENCE).unwrap();
    manager.set("runc-a.scope", &[]).unwrap();
    assert_eq!(fake.calls(manager), ["SetUnitProperties"]);
}
