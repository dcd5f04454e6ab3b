//! `tuning`: sysctls and properties of the container's interface, changed after another plugin made it.
//!
//! The interface's former properties are kept in a file until DEL, which gives them back: the interface may be lent.

mod allowlist;
mod config;

use std::fs;
use std::io;
use std::path::Path;

use linux::netlink::{Link, LinkChange, Netlink, read_sysctl, write_sysctl};
use serde::{Deserialize, Serialize};

use crate::protocol::{Error, NetResult, Request, all_of};
use crate::{Plugin, interface, netns};
use config::Config;

pub const PLUGIN: Plugin = Plugin {
    name: "tuning",
    add,
    del,
    check,
    gc,
    status: |request| Config::read(request)?.permit(request),
};

/// The interface's properties as they were, in the form of upstream's file.
#[derive(Serialize, Deserialize)]
struct Backup {
    #[serde(default, rename = "mac", skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, rename = "promisc")]
    promiscuous: Option<bool>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default, rename = "allmulti")]
    all_multicast: Option<bool>,
    #[serde(default, rename = "txQLen")]
    tx_queue_len: Option<u32>,
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let config = Config::read(request)?;
    config.permit(request)?;
    let mut result = request.required_previous()?.clone();
    let netns = netns::open(request)?;
    let name = &request.attachment.ifname;
    let link = netns::inside(&netns, |inner| change(inner, name, &config))?;
    let Some(link) = link else {
        return Ok(result);
    };
    for reported in result
        .interfaces
        .iter_mut()
        .filter(|i| i.name == *name && !i.sandbox.is_empty())
    {
        if config.mac.is_some() {
            reported.mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        }
        if config.mtu.is_some() {
            reported.mtu = link.mtu;
        }
    }
    Ok(result)
}

/// Writes the sysctls, then changes the interface and returns it; what was written before a step that failed is written
/// back.
fn change(inner: &mut Netlink, name: &str, config: &Config) -> Result<Option<Link>, Error> {
    let mut former = Vec::new();
    let done = (|| {
        for (path, value) in &config.sysctls {
            let path = words(path);
            let present = read_sysctl(&path)?;
            write_sysctl(&path, value)?;
            former.push((path, present));
        }
        if !config.changes_link() {
            return Ok(None);
        }
        let link = interface::find(inner, name)?;
        save(&config.backup, &Backup::of(&link, config))?;
        let changed = inner.change_link(link.index, &config.change());
        changed.map_err(|cause| Error::from(cause).and_undo(remove(&config.backup)))?;
        interface::find(inner, name).map(Some)
    })();
    done.map_err(|error: Error| {
        let back = former.iter().rev();
        let back = back.map(|(path, value)| write_sysctl(path, value).map_err(Error::from));
        error.and_undo(all_of(back))
    })
}

impl Backup {
    /// The present values of what is going to change.
    fn of(link: &Link, config: &Config) -> Self {
        Self {
            mac: config
                .mac
                .and(link.mac)
                .map(|mac| mac.to_string())
                .unwrap_or_default(),
            promiscuous: config.promiscuous.map(|_| link.is_promiscuous()),
            mtu: config.mtu.map(|_| link.mtu),
            all_multicast: config.all_multicast.map(|_| link.is_all_multicast()),
            tx_queue_len: config.tx_queue_len.map(|_| link.tx_queue_len),
        }
    }

    fn change(&self) -> LinkChange<'static> {
        LinkChange {
            mac: self.mac.parse().ok(),
            mtu: self.mtu,
            promiscuous: self.promiscuous,
            all_multicast: self.all_multicast,
            tx_queue_len: self.tx_queue_len,
            ..LinkChange::default()
        }
    }
}

fn save(path: &Path, backup: &Backup) -> Result<(), Error> {
    let failed = |cause: io::Error| Error::io(format!("write {}: {cause}", path.display()));
    let text = serde_json::to_vec(backup).map_err(|cause| failed(cause.into()))?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|cause| Error::io(format!("remove {}: {cause}", path.display())))
}

fn del(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let text = match fs::read(&config.backup) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => {
            return Err(Error::io(format!(
                "read {}: {cause}",
                config.backup.display()
            )));
        }
    };
    // A file that a crash cut short says nothing of use; the interface goes with its namespace.
    let backup: Option<Backup> = serde_json::from_slice(&text).ok();
    let restored = match (backup, netns::open_if_there(request)?) {
        (Some(backup), Some(netns)) if !request.netns_ends() => netns::inside(&netns, |inner| {
            match inner.link_by_name(&request.attachment.ifname)? {
                Some(link) => Ok(inner.change_link(link.index, &backup.change())?),
                None => Ok(()),
            }
        }),
        _ => Ok(()),
    };
    all_of([restored, remove(&config.backup)])
}

fn check(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let netns = netns::open(request)?;
    let name = &request.attachment.ifname;
    netns::inside(&netns, |inner| {
        for (path, wanted) in &config.sysctls {
            let seen = read_sysctl(&words(path))?;
            if seen != *wanted {
                return Err(Error::failed(format!(
                    "check {}: {seen}, expected {wanted}",
                    path.join(".")
                )));
            }
        }
        compare(inner, name, &config)
    })
}

fn compare(inner: &mut Netlink, name: &str, config: &Config) -> Result<(), Error> {
    let link = interface::find(inner, name)?;
    let differs = |what: &str| {
        Err(Error::failed(format!(
            "check {name}: {what} is not as configured"
        )))
    };
    match config {
        c if c.mac.is_some_and(|mac| link.mac != Some(mac)) => differs("hardware address"),
        c if c.mtu.is_some_and(|mtu| link.mtu != mtu) => differs("mtu"),
        c if c.promiscuous.is_some_and(|on| link.is_promiscuous() != on) => {
            differs("promiscuous mode")
        }
        c if c
            .all_multicast
            .is_some_and(|on| link.is_all_multicast() != on) =>
        {
            differs("all-multicast mode")
        }
        c if c
            .tx_queue_len
            .is_some_and(|length| link.tx_queue_len != length) =>
        {
            differs("queue length")
        }
        _ => Ok(()),
    }
}

/// Nothing is collected: the files of all networks are in one folder and don't say which network they are of.
fn gc(request: &Request) -> Result<(), Error> {
    Config::read(request).map(drop)
}

fn words(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use linux::netlink::{Netlink, read_sysctl};
    use serde_json::{Value, json};

    use crate::lab::{Host, Pod};

    #[test]
    fn properties_are_changed_reported_checked_and_given_back() {
        let host = Host::new();
        let pod = Pod::new("a");
        let result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        let before = link(&pod);
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "tuning",
            "dataDir": host.dir.path().join("tuning"),
            "mac": "0a:58:00:00:00:77",
            "mtu": 1400,
            "promisc": true,
            "allmulti": true,
            "txQLen": 77,
            "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv4/conf/all/log_martians": "1" },
            "prevResult": result,
        });
        let tuned = host.call("ADD", &pod, &config).expect("add");
        let reported = &tuned["interfaces"][2];
        assert_eq!(
            (&reported["mac"], &reported["mtu"]),
            (&json!("0a:58:00:00:00:77"), &json!(1400))
        );
        let read = |name: &'static str| {
            pod.inside(move || read_sysctl(&["net", "ipv4", "conf", "eth0", name]))
        };
        assert_eq!(read("arp_filter").as_deref(), Ok("1"));
        config["prevResult"] = tuned;
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert_eq!(link(&pod), before);
        let error = host.call("CHECK", &pod, &config).expect_err("given back");
        assert_eq!(
            error["msg"],
            "check eth0: hardware address is not as configured"
        );
    }

    fn link(pod: &Pod) -> Value {
        let link = pod
            .inside(|| Netlink::open().expect("netlink").link_by_name("eth0"))
            .expect("get")
            .expect("eth0");
        json!([
            link.mac.map(|mac| mac.to_string()),
            link.mtu,
            link.is_promiscuous(),
            link.is_all_multicast(),
            link.tx_queue_len
        ])
    }

    #[test]
    fn what_the_caller_asks_for_goes_first_and_a_failure_writes_sysctls_back() {
        let host = Host::new();
        let pod = Pod::new("a");
        let result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        let before = link(&pod);
        let dir = host.dir.path().join("tuning");
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "tuning",
            "dataDir": dir,
            "mtu": 1400,
            "sysctl": { "net.ipv4.conf.all.log_martians": "1" },
            "args": { "cni": { "mac": "0a:00:00:00:00:55", "mtu": 1300, "txQLen": 55, "sysctl": { "net.ipv4.conf.all.log_martians": "0" } } },
            "prevResult": result,
        });
        let read = || pod.inside(|| read_sysctl(&["net", "ipv4", "conf", "all", "log_martians"]));
        host.call("ADD", &pod, &config).expect("add");
        let tuned = link(&pod);
        assert_eq!(
            (&tuned[0], &tuned[1], &tuned[4]),
            (&json!("0a:00:00:00:00:55"), &json!(1300), &json!(55))
        );
        assert_eq!(read().as_deref(), Ok("0"));
        host.call("DEL", &pod, &config).expect("del");
        config["args"] = json!({ "cni": { "mtu": 70000 } });
        host.call("ADD", &pod, &config).expect_err("no such MTU");
        assert_eq!((read().as_deref(), link(&pod)), (Ok("0"), before));
        assert_eq!(std::fs::read_dir(&dir).expect("dir").count(), 0);
        let text = r#"{ "cniVersion": "1.1.0", "name": "net", "type": "tuning", "prevResult": {},
            "sysctl": { "net.core.somaxconn": "1", "net.core.somaxconn": "2" } }"#;
        let error = crate::run("tuning", &host.env("ADD", &pod), text.as_bytes()).expect("plugin");
        let error = String::from_utf8(error.stdout).expect("text");
        assert!(error.contains("sysctl: duplicated key"), "{error}");
    }

    #[test]
    fn only_sysctls_of_the_network_are_taken() {
        let host = Host::new();
        let pod = Pod::new("a");
        for key in [
            "kernel.shmmax",
            "net/../kernel/shmmax",
            "../net.x",
            "vm/swappiness",
            "",
        ] {
            let sysctl = json!({ key: "1" });
            let config =
                json!({ "cniVersion": "1.0.0", "name": "net", "type": "tuning", "sysctl": sysctl });
            let error = host.call("ADD", &pod, &config).expect_err(key);
            assert_eq!(error["code"], 7, "{error}");
        }
    }
}
