//! What a plugin is asked to do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Dns, Error, NetResult, Version};

/// A variable beyond the specification, by which a runtime says with DEL that it ends the namespace right after. The
/// interface is then only made unusable, which takes 0.3 ms, and goes with the namespace; deleting it takes 16 ms.
pub const NETNS_ENDS: &str = "CNI_ORLOP_NETNS_ENDS";

/// `CNI_COMMAND`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// Which attachment of a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct AttachmentKey {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// A request, checked as far as all plugins share it.
#[derive(Debug)]
pub struct Request {
    /// The environment, for plugins that are delegated to.
    pub env: BTreeMap<String, String>,
    /// The configuration as it was read, for the same.
    pub stdin: Vec<u8>,
    /// The configuration.
    pub config: Value,
    /// Its version, which the result will have too.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// The attachment; empty strings with GC and STATUS.
    pub attachment: AttachmentKey,
    /// The namespace's path; none if it is gone (DEL).
    pub netns: Option<PathBuf>,
    /// The result of the plugin before this one in the chain; of the whole chain with CHECK and DEL.
    pub previous: Option<NetResult>,
    /// With GC, the attachments that exist.
    pub valid_attachments: Vec<AttachmentKey>,
}

impl Command {
    /// Reads `CNI_COMMAND`.
    ///
    /// # Errors
    /// Code 4.
    pub fn parse(env: &BTreeMap<String, String>) -> Result<Self, Error> {
        match env.get("CNI_COMMAND").map(String::as_str) {
            Some("ADD") => Ok(Self::Add),
            Some("DEL") => Ok(Self::Del),
            Some("CHECK") => Ok(Self::Check),
            Some("GC") => Ok(Self::Gc),
            Some("STATUS") => Ok(Self::Status),
            Some("VERSION") => Ok(Self::Version),
            None | Some("") => Err(missing(&["CNI_COMMAND"])),
            Some(other) => Err(Error::environment(format!("unknown CNI_COMMAND: {other}"))),
        }
    }

    /// The variables that it can't do without. `CNI_PATH` is not among them: it is asked for when a plugin that is
    /// not in this program is needed.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }

    /// As in `CNI_COMMAND`.
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The version that introduced it.
    fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }
}

impl Request {
    /// Reads a request; an error comes with the version to report it in, if that was readable.
    ///
    /// # Errors
    /// Codes 1, 4, 6 and 7.
    pub fn parse(
        command: Command,
        env: &BTreeMap<String, String>,
        stdin: &[u8],
    ) -> Result<Self, (Option<String>, Error)> {
        let mut config: Value = serde_json::from_slice(stdin).map_err(|cause| {
            (
                None,
                Error::decode(format!("decode network configuration: {cause}")),
            )
        })?;
        normalize(&mut config);
        let version = Version::of(&config).map_err(|error| (None, error))?;
        Self::checked(command, env, stdin, config, version)
            .map_err(|error| (Some(version.name().to_owned()), error))
    }

    fn checked(
        command: Command,
        env: &BTreeMap<String, String>,
        stdin: &[u8],
        config: Value,
        version: Version,
    ) -> Result<Self, Error> {
        let variable = |name: &str| env.get(name).cloned().unwrap_or_default();
        let absent: Vec<_> = command
            .required()
            .iter()
            .filter(|name| variable(name).is_empty())
            .copied()
            .collect();
        if !absent.is_empty() {
            return Err(missing(&absent));
        }
        if version < command.since() {
            return Err(Error::too_old(command.name()));
        }
        let attachment = AttachmentKey {
            container_id: variable("CNI_CONTAINERID"),
            ifname: variable("CNI_IFNAME"),
        };
        if !command.required().is_empty() {
            check_container_id(&attachment.container_id)?;
            check_ifname(&attachment.ifname)?;
        }
        let network = config
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        check_network_name(&network)?;
        let previous = match config.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(result) => Some(NetResult::decode(result)?),
        };
        let valid = config
            .get("cni.dev/valid-attachments")
            .or_else(|| config.get("cni.dev/attachments"));
        let valid_attachments = match valid {
            Some(list) => decode(list, "cni.dev/valid-attachments")?,
            None => Vec::new(),
        };
        Ok(Self {
            env: env.clone(),
            stdin: stdin.to_vec(),
            version,
            network,
            attachment,
            netns: Some(variable("CNI_NETNS"))
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            previous,
            valid_attachments,
            config,
        })
    }

    /// The plugin's own view of the configuration.
    ///
    /// # Errors
    /// Code 6, naming the key.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, Error> {
        decode(&self.config, "network configuration")
    }

    /// The result of the plugin before this one.
    ///
    /// # Errors
    /// Code 7 if there is none: the plugin can't stand first in a list.
    pub fn required_previous(&self) -> Result<&NetResult, Error> {
        self.previous
            .as_ref()
            .ok_or_else(|| Error::config("prevResult: missing, must be called as chained plugin"))
    }

    /// `CNI_ARGS`, for the plugins that have a use for it.
    ///
    /// # Errors
    /// Code 4.
    pub fn args(&self) -> Result<BTreeMap<String, String>, Error> {
        parse_args(self.env.get("CNI_ARGS").map_or("", String::as_str))
    }

    /// The namespace's path as it was given; empty if it is gone.
    pub fn netns_path(&self) -> &str {
        self.env
            .get("CNI_NETNS")
            .map(String::as_str)
            .unwrap_or_default()
    }

    /// The configuration's own resolver settings, which go before an address plugin's.
    /// Also empty lists do.
    pub fn dns(&self) -> Option<Dns> {
        let stated = self.config.get("dns")?;
        let states = |key| stated.get(key).is_some_and(|value| *value != "");
        ["nameservers", "search", "options", "domain"]
            .into_iter()
            .any(states)
            .then(|| serde_json::from_value(stated.clone()).ok())?
    }

    /// Whether the runtime ends the namespace after this DEL ([`NETNS_ENDS`]).
    pub fn netns_ends(&self) -> bool {
        self.env.get(NETNS_ENDS).is_some_and(|value| value == "1")
    }
}

/// What Go's programs write and read: a `null` for what is absent, and keys in any case. Runtimes make use of the latter in
/// what they add themselves: containerd writes `HostPort` and `IngressRate`.
fn normalize(config: &mut Value) {
    drop_nulls(config);
    let Some(object) = config.as_object_mut() else {
        return;
    };
    respell(object, &[RUNTIME_CONFIG]);
    if let Some(added) = object.get_mut(RUNTIME_CONFIG) {
        respell_all(added);
    }
}

const RUNTIME_CONFIG: &str = "runtimeConfig";

/// Every key that a plugin reads in `runtimeConfig` (CNI conventions, Dynamic Plugin specific fields).
const ADDED_BY_RUNTIMES: [&str; 19] = [
    "portMappings",
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    "bandwidth",
    "ingressRate",
    "ingressBurst",
    "egressRate",
    "egressBurst",
    "ips",
    "ipRanges",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "mac",
    "deviceID",
    "aliases",
];

fn respell_all(value: &mut Value) {
    match value {
        Value::Object(object) => {
            respell(object, &ADDED_BY_RUNTIMES);
            object.values_mut().for_each(respell_all);
        }
        Value::Array(list) => list.iter_mut().for_each(respell_all),
        _ => {}
    }
}

/// Gives keys that are `known` but for their case their right one; one that is there in its right case stays.
fn respell(object: &mut serde_json::Map<String, Value>, known: &[&str]) {
    for right in known {
        let other = object
            .keys()
            .find(|key| key != right && key.eq_ignore_ascii_case(right));
        if let Some(value) = other.cloned().and_then(|other| object.remove(&other)) {
            object.entry(*right).or_insert(value);
        }
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn decode<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let key = error.path().to_string();
        Error::decode(format!("decode {what}: {key}: {}", error.into_inner()))
    })
}

fn missing(names: &[&str]) -> Error {
    Error::environment(format!(
        "required env variables [{}] missing",
        names.join(",")
    ))
}

/// Alphanumeric first, then alphanumerics, `_`, `.`, `-`.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_container_id(id: &str) -> Result<(), Error> {
    if is_identifier(id) {
        return Ok(());
    }
    Err(Error::environment("invalid characters in containerID")
        .details(format!("CNI_CONTAINERID is {id:?}")))
}

fn check_network_name(name: &str) -> Result<(), Error> {
    match name {
        "" => Err(Error::config("name: missing network name")),
        name if is_identifier(name) => Ok(()),
        name => Err(Error::config(format!(
            "name: invalid characters found in network name {name:?}"
        ))),
    }
}

/// What the kernel takes as a name of an interface.
fn check_ifname(name: &str) -> Result<(), Error> {
    let reason = if name.len() > 15 {
        "interface name is too long: more than 15 bytes"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        "interface name contains / or : or whitespace characters"
    } else {
        return Ok(());
    };
    Err(Error::environment(reason).details(format!("CNI_IFNAME is {name:?}")))
}

/// `A=1;B=2`
fn parse_args(args: &str) -> Result<BTreeMap<String, String>, Error> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::environment(format!(
            "CNI_ARGS: invalid pair {pair:?}"
        ))),
    };
    args.split(';')
        .filter(|part| !part.is_empty())
        .map(pair)
        .collect()
}
