//! Where a manager's D-Bus is (D-Bus specification, "Server Addresses"; `systemd(1)`, "Sockets").

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Whose manager it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Owner {
    /// Of the machine.
    System,
    /// Of the user, of whom this process may be root in a user namespace.
    User,
}

/// One place at which to try.
#[derive(Debug)]
pub(super) struct Place {
    pub address: SocketAddr,
    /// For messages about it.
    pub name: String,
    /// A bus has the manager as one of its clients; otherwise the manager itself listens.
    pub is_bus: bool,
}

/// Where this owner's manager may be reached, the best first.
pub(super) fn places(owner: Owner, variable: impl Fn(&str) -> Option<String>) -> Vec<Place> {
    let runtime_dir = variable("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let runtime_dir = runtime_dir.map(PathBuf::from);
    let private = match owner {
        Owner::System => Some(PathBuf::from("/run/systemd/private")),
        Owner::User => runtime_dir.as_ref().map(|dir| dir.join("systemd/private")),
    };
    let (bus_variable, bus) = match owner {
        Owner::System => (
            "DBUS_SYSTEM_BUS_ADDRESS",
            Some(PathBuf::from("/run/dbus/system_bus_socket")),
        ),
        Owner::User => (
            "DBUS_SESSION_BUS_ADDRESS",
            runtime_dir.map(|dir| dir.join("bus")),
        ),
    };
    let mut places: Vec<Place> = private
        .iter()
        .filter_map(|path| at_path(path, false))
        .collect();
    match variable(bus_variable).filter(|text| !text.is_empty()) {
        Some(text) => places.extend(parse_addresses(&text)),
        None => places.extend(bus.iter().filter_map(|path| at_path(path, true))),
    }
    places
}

fn at_path(path: &Path, is_bus: bool) -> Option<Place> {
    Some(Place {
        address: SocketAddr::from_pathname(path).ok()?,
        name: path.display().to_string(),
        is_bus,
    })
}

/// Buses' addresses, `unix:path=/run/bus,guid=…;unix:abstract=…`. Those that aren't unix sockets are passed over.
fn parse_addresses(text: &str) -> Vec<Place> {
    text.split(';').filter_map(parse_address).collect()
}

fn parse_address(text: &str) -> Option<Place> {
    let pairs = text.trim().strip_prefix("unix:")?;
    pairs
        .split(',')
        .find_map(|pair| match pair.split_once('=')? {
            ("path", path) => {
                let path = std::ffi::OsString::from_vec(unescape(path)?);
                at_path(Path::new(&path), true)
            }
            ("abstract", name) => Some(Place {
                address: SocketAddr::from_abstract_name(unescape(name)?).ok()?,
                name: format!("@{name}"),
                is_bus: true,
            }),
            _ => None,
        })
}

/// `%2f` is a slash.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(owner: Owner, variables: &[(&str, &str)]) -> Vec<(String, bool)> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let places = places(owner, variable);
        places
            .into_iter()
            .map(|place| (place.name, place.is_bus))
            .collect()
    }

    #[test]
    fn the_managers_own_socket_comes_before_the_bus() {
        assert_eq!(
            names(Owner::System, &[("XDG_RUNTIME_DIR", "/run/user/0")]),
            [
                ("/run/systemd/private".to_owned(), false),
                ("/run/dbus/system_bus_socket".to_owned(), true)
            ]
        );
        assert_eq!(
            names(Owner::User, &[("XDG_RUNTIME_DIR", "/run/user/7")]),
            [
                ("/run/user/7/systemd/private".to_owned(), false),
                ("/run/user/7/bus".to_owned(), true)
            ]
        );
        assert!(names(Owner::User, &[]).is_empty());
    }

    #[test]
    fn buses_addresses_are_read() {
        let text =
            "tcp:host=x;unix:guid=1,path=/tmp/a%2cb;unix:abstract=/y,guid=2;unix:path=/%zz;;unix:";
        let found = names(Owner::User, &[("DBUS_SESSION_BUS_ADDRESS", text)]);
        assert_eq!(
            found,
            [("/tmp/a,b".to_owned(), true), ("@/y".to_owned(), true)]
        );
        let long = format!("unix:path=/{}", "a".repeat(200));
        assert!(names(Owner::User, &[("DBUS_SESSION_BUS_ADDRESS", &long)]).is_empty());
    }
}
