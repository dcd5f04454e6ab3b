//! The configuration of `tuning`, in upstream's keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use linux::netlink::{LinkChange, MacAddress};
use serde::Deserialize;

use super::allowlist;
use crate::attach::MacConf;
use crate::protocol::{Error, Request};

/// Upstream's keys.
#[derive(Deserialize)]
struct NetConf {
    #[serde(default, rename = "sysctl")]
    sysctls: BTreeMap<String, String>,
    #[serde(default)]
    args: Args,
    #[serde(flatten)]
    mac: MacConf,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    promisc: bool,
    #[serde(default)]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen")]
    tx_queue_len: Option<u32>,
    #[serde(default, rename = "dataDir")]
    data_dir: String,
}

/// What the caller asks for, which goes before the configuration's own.
#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Overrides,
}

#[derive(Default, Deserialize)]
struct Overrides {
    #[serde(default, rename = "sysctl")]
    sysctls: BTreeMap<String, String>,
    #[serde(default)]
    mac: String,
    mtu: Option<u32>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<u32>,
}

/// Keys as they are written, to find one that is written twice.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    sysctl: Option<WrittenKeys>,
}

struct WrittenKeys(Vec<String>);

impl<'de> Deserialize<'de> for WrittenKeys {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> serde::de::Visitor<'de> for Keys {
            type Value = WrittenKeys;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("sysctls by name")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<WrittenKeys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(WrittenKeys(keys))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Of two values for a sysctl nobody could say which is meant.
fn refuse_duplicates(request: &Request) -> Result<(), Error> {
    let written: Written = serde_json::from_slice(&request.stdin)
        .map_err(|cause| Error::decode(format!("decode network configuration: {cause}")))?;
    let mut keys = written.sysctl.map(|keys| keys.0).unwrap_or_default();
    keys.sort();
    match keys.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(Error::config(format!(
            "sysctl: duplicated key {:?}",
            pair.first()
        ))),
        None => Ok(()),
    }
}

/// Where a host's administrator lists the sysctls that may be set, a regular expression a line; any may be if it is not
/// there. Upstream's place.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

/// What is to be changed, all checked.
pub(super) struct Config {
    /// The sysctls as they were named.
    names: Vec<String>,
    /// Paths below `/proc/sys`, with their values.
    pub sysctls: Vec<(Vec<String>, String)>,
    pub mac: Option<MacAddress>,
    pub mtu: Option<u32>,
    pub promiscuous: Option<bool>,
    pub all_multicast: Option<bool>,
    pub tx_queue_len: Option<u32>,
    pub backup: PathBuf,
}

const DATA_DIR: &str = "/run/cni/tuning";

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self, Error> {
        let mut conf: NetConf = request.config()?;
        let asked = conf.args.cni;
        conf.sysctls.extend(asked.sysctls);
        let ifname = &request.attachment.ifname;
        let sysctl =
            |(key, value): (&String, &String)| Ok((sysctl_path(key, ifname)?, value.clone()));
        let data_dir = if conf.data_dir.is_empty() {
            DATA_DIR
        } else {
            &conf.data_dir
        };
        Ok(Self {
            names: conf.sysctls.keys().cloned().collect(),
            sysctls: conf
                .sysctls
                .iter()
                .map(sysctl)
                .collect::<Result<_, Error>>()?,
            mac: match asked.mac.as_str() {
                "" => conf.mac.read(request)?,
                mac => Some(
                    mac.parse()
                        .map_err(|reason| Error::config(format!("args.cni.mac: {reason}")))?,
                ),
            },
            mtu: asked.mtu.or(Some(conf.mtu)).filter(|mtu| *mtu != 0),
            promiscuous: Some(true).filter(|_| asked.promisc.unwrap_or(conf.promisc)),
            all_multicast: asked.allmulti.or(conf.allmulti),
            tx_queue_len: asked.tx_queue_len.or(conf.tx_queue_len),
            backup: Path::new(data_dir)
                .join(format!("{}_{ifname}.json", request.attachment.container_id)),
        })
    }

    /// Whether all of it may be done; what was done is undone without asking.
    pub(super) fn permit(&self, request: &Request) -> Result<(), Error> {
        refuse_duplicates(request)?;
        allowlist::check(Path::new(ALLOWLIST), self.names.iter())
    }

    pub(super) fn change(&self) -> LinkChange<'static> {
        LinkChange {
            mac: self.mac,
            mtu: self.mtu,
            promiscuous: self.promiscuous,
            all_multicast: self.all_multicast,
            tx_queue_len: self.tx_queue_len,
            ..LinkChange::default()
        }
    }

    pub(super) fn changes_link(&self) -> bool {
        self.mac.is_some()
            || self.mtu.is_some()
            || self.promiscuous.is_some()
            || self.all_multicast.is_some()
            || self.tx_queue_len.is_some()
    }
}

/// `net.ipv4.conf.IFNAME.arp_notify`, or with slashes where a name has dots; only the network's own.
fn sysctl_path(key: &str, ifname: &str) -> Result<Vec<String>, Error> {
    let separator = if key.contains('/') { '/' } else { '.' };
    let parts: Vec<&str> = key
        .split(separator)
        .filter(|part| !part.is_empty())
        .collect();
    if parts.first() != Some(&"net") || parts.iter().any(|part| *part == ".." || part.contains('/'))
    {
        return Err(Error::config(format!(
            "sysctl: invalid net sysctl key: {key:?}"
        )));
    }
    Ok(parts
        .into_iter()
        .map(|part| part.replace("IFNAME", ifname))
        .collect())
}
