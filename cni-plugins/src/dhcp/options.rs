//! The configuration of `dhcp`, in upstream's keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::message::option;
use crate::protocol::{Error, Request};

/// Where the daemon listens unless it is told otherwise; upstream's place.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

#[derive(Deserialize)]
struct NetConf {
    ipam: Ipam,
}

/// All of it, as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(default)]
    daemon_socket_path: String,
    #[serde(default)]
    provide: Vec<Provide>,
    #[serde(default)]
    request: Vec<Wanted>,
    priority: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provide {
    option: String,
    #[serde(default)]
    value: String,
    /// A key of `CNI_ARGS`.
    #[serde(default)]
    from_arg: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    #[serde(default)]
    option: String,
    #[serde(default)]
    skip_default: bool,
}

/// What is to be asked for, all checked.
#[derive(Debug)]
pub struct Options {
    /// What every message tells the server.
    pub provided: BTreeMap<u8, Vec<u8>>,
    /// The metric of the routes.
    pub priority: Option<u32>,
}

/// Where the daemon of this request listens.
///
/// # Errors
/// Code 6 naming the key, code 7 for a path that isn't absolute.
pub fn socket(request: &Request) -> Result<PathBuf, Error> {
    let path = request.config::<NetConf>()?.ipam.daemon_socket_path;
    match path.as_str() {
        "" => Ok(SOCKET.into()),
        path if Path::new(path).is_absolute() => Ok(path.into()),
        path => Err(Error::config(format!(
            "ipam.daemonSocketPath: {path:?} is not an absolute path"
        ))),
    }
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// Codes 6 and 7, naming the key.
    pub fn read(request: &Request) -> Result<Self, Error> {
        let ipam = request.config::<NetConf>()?.ipam;
        let (args, mut provided) = (request.args()?, BTreeMap::new());
        for (number, entry) in ipam.provide.iter().enumerate() {
            let key = format!("ipam.provide[{number}]");
            let code = code(&entry.option).map_err(|error| error.during(&key))?;
            let argument = args.get(&entry.from_arg);
            let values = Some(&entry.value).filter(|value| !value.is_empty());
            for value in values.into_iter().chain(argument) {
                if value.len() > 255 {
                    return Err(Error::config(format!(
                        "{key}: the value of option {:?} is longer than 255 bytes",
                        entry.option
                    )));
                }
                provided.insert(code, value.as_bytes().to_vec());
            }
        }
        let mut wanted = Vec::new();
        for (number, entry) in ipam.request.iter().enumerate() {
            if !entry.option.is_empty() {
                let key = format!("ipam.request[{number}]");
                wanted.push(code(&entry.option).map_err(|error| error.during(&key))?);
            }
        }
        if !ipam.request.iter().any(|entry| entry.skip_default) {
            wanted.extend([option::ROUTERS, option::SUBNET_MASK]);
        }
        if !wanted.is_empty() {
            provided.insert(option::PARAMETERS, wanted);
        }
        Ok(Self {
            provided,
            priority: ipam.priority.filter(|priority| *priority != 0),
        })
    }
}

/// An option by its name or number.
fn code(name: &str) -> Result<u8, Error> {
    match name {
        "dhcp-client-identifier" => Ok(option::CLIENT_ID),
        "subnet-mask" => Ok(option::SUBNET_MASK),
        "routers" => Ok(option::ROUTERS),
        "host-name" => Ok(option::HOST_NAME),
        "user-class" => Ok(option::USER_CLASS),
        "vendor-class-identifier" => Ok(option::VENDOR_CLASS),
        number => number.parse().map_err(|_| {
            Error::config(format!(
                "option {name:?} is neither a name that is known here nor a number up to 255"
            ))
        }),
    }
}
