//! Groups of the `resctrl` file system (`linux.intelRdt`, config-linux.md): shares of a processor's cache and memory
//! bandwidth.

use super::Failure;
use oci_spec::runtime::{LinuxIntelRdt, Spec};
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const FIELD: &str = "linux.intelRdt";

/// Where a container's processes belong.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    dir: PathBuf,
    /// What is the container's own and goes with it, in the order of its making.
    pub own: Vec<PathBuf>,
    lines: Vec<String>,
    /// The first so many lines must be what a group that exists has.
    compared: usize,
}

/// The host's `resctrl` mount.
fn mounted() -> Result<PathBuf, Failure> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Failure::other(format!("read /proc/self/mountinfo: {error}")))?;
    // "… MOUNTPOINT OPTIONS [TAGS] - TYPE SOURCE …", with spaces and the like as octal numbers.
    let point = table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("resctrl ").then_some(())?;
        left.split(' ').nth(4)
    });
    match point {
        Some(point) => Ok(PathBuf::from(point)),
        None if std::fs::read_to_string("/proc/filesystems")
            .is_ok_and(|kinds| kinds.contains("resctrl")) =>
        {
            Err(Failure::other(format!(
                "{FIELD}: no resctrl file system is mounted: mount -t resctrl resctrl /sys/fs/resctrl"
            )))
        }
        None => Err(Failure::other(format!(
            "{FIELD}: this host's kernel and processor have no resctrl: leave it out"
        ))),
    }
}

impl Group {
    /// That of a container, if it asks for one.
    pub(super) fn of(spec: &Spec, id: &str) -> Result<Option<Self>, Failure> {
        let linux = spec.linux().as_ref();
        let Some(rdt) = linux.and_then(|linux| linux.intel_rdt().as_ref()) else {
            return Ok(None);
        };
        Self::read(rdt, id, &mounted()?).map(Some)
    }

    /// What a container asks for, below `root`.
    fn read(rdt: &LinuxIntelRdt, id: &str, root: &Path) -> Result<Self, Failure> {
        let bad = |field: &str, why: &str| Failure::other(format!("{FIELD}.{field}: {why}"));
        let class = rdt.clos_id().as_deref().filter(|class| !class.is_empty());
        let dir = match class {
            Some("/") => root.to_owned(),
            // The kernel's own folders hold no processes of their own.
            Some("." | ".." | "info" | "mon_groups" | "mon_data") => {
                return Err(bad("closID", "is not a group's name"));
            }
            Some(class) if class.contains('/') => return Err(bad("closID", "must be one folder")),
            Some(class) => root.join(class),
            None => root.join(id),
        };
        let mut lines = Vec::new();
        for (field, start, line) in [
            ("l3CacheSchema", "L3", rdt.l3_cache_schema()),
            ("memBwSchema", "MB:", rdt.mem_bw_schema()),
        ] {
            let Some(line) = line.as_ref().filter(|line| !line.is_empty()) else {
                continue;
            };
            no_newline(line).map_err(|why| bad(field, why))?;
            if !line.starts_with(start) {
                return Err(bad(field, &format!("must start with {start}")));
            }
            lines.push(line.clone());
        }
        let compared = lines.len();
        for line in rdt.schemata().iter().flatten() {
            no_newline(line).map_err(|why| bad("schemata", why))?;
            lines.push(line.clone());
        }
        let mut own = Vec::new();
        if class.is_none() {
            own.push(dir.clone());
        }
        if rdt.enable_monitoring().unwrap_or(false) {
            own.push(dir.join("mon_groups").join(id));
        }
        Ok(Group {
            dir,
            own,
            lines,
            compared,
        })
    }

    /// Refuses what would take the place of another container's.
    pub(super) fn check_free(&self) -> Result<(), Failure> {
        match self.own.iter().find(|dir| dir.exists()) {
            Some(dir) => Err(Failure::other(format!(
                "{FIELD}: {} is there already: another's, or left by one; rmdir it",
                dir.display()
            ))),
            None => Ok(()),
        }
    }

    /// Makes the group what the specification says, and opens it for processes that join.
    pub(super) fn make(&self) -> Result<OwnedFd, Failure> {
        let found = self.dir.is_dir();
        if !found && self.lines.is_empty() && !self.own.contains(&self.dir) {
            return Err(Failure::other(format!(
                "{FIELD}.closID: {} does not exist, and nothing says what it should hold",
                self.dir.display()
            )));
        }
        if !found {
            self.make_dir(&self.dir)?;
        } else if self.compared > 0 {
            self.compare()?;
        }
        if !self.lines.is_empty() {
            let path = self.dir.join("schemata");
            let text = format!("{}\n", self.lines.join("\n"));
            std::fs::write(&path, text).map_err(|error| self.failed("write", &path, &error))?;
        }
        for dir in self.own.iter().filter(|dir| **dir != self.dir) {
            self.make_dir(dir)?;
        }
        open(self.joined())
    }

    /// A monitoring group's processes are in the group above as well.
    fn joined(&self) -> &Path {
        self.own.last().unwrap_or(&self.dir)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), Failure> {
        std::fs::create_dir(dir).map_err(|error| self.failed("mkdir", dir, &error))
    }

    fn compare(&self) -> Result<(), Failure> {
        let path = self.dir.join("schemata");
        let text =
            std::fs::read_to_string(&path).map_err(|error| self.failed("read", &path, &error))?;
        let there: BTreeMap<_, _> = text.lines().filter_map(parse).collect();
        for line in self.lines.iter().take(self.compared) {
            let same = parse(line).is_some_and(|(resource, wanted)| {
                there
                    .get(resource)
                    .is_some_and(|there| wanted.iter().all(|pair| there.contains(pair)))
            });
            if !same {
                return Err(Failure::other(format!(
                    "{FIELD}: {} has another schema than {line:?}:\n{}",
                    path.display(),
                    text.trim_end()
                )));
            }
        }
        Ok(())
    }

    /// With the kernel's own words, which it keeps in a file.
    fn failed(&self, operation: &str, path: &Path, error: &std::io::Error) -> Failure {
        let root = self.dir.ancestors().find(|dir| dir.join("info").is_dir());
        let said = root
            .and_then(|root| std::fs::read_to_string(root.join("info/last_cmd_status")).ok())
            .filter(|said| !said.is_empty() && said.trim() != "ok");
        Failure::other(match said {
            Some(said) => format!(
                "{FIELD}: {operation} {}: {error}: {}",
                path.display(),
                said.trim()
            ),
            None => format!("{FIELD}: {operation} {}: {error}", path.display()),
        })
    }
}

fn no_newline(line: &str) -> Result<(), &'static str> {
    match line.contains('\n') {
        true => Err("must be one line"),
        false => Ok(()),
    }
}

/// What another process of a container needs to be in its group.
pub(super) fn join(spec: &Spec, id: &str) -> Result<Option<OwnedFd>, Failure> {
    let group = Group::of(spec, id)?;
    group.map(|group| open(group.joined())).transpose()
}

/// Opens a group for processes that join it.
fn open(dir: &Path) -> Result<OwnedFd, Failure> {
    let path = dir.join("tasks");
    rustix::fs::openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
        |errno| {
            Failure::other(format!(
                "{FIELD}: open {}: {}",
                path.display(),
                std::io::Error::from(errno)
            ))
        },
    )
}

/// Takes a container's own groups away; what is gone is well.
pub(super) fn remove(own: &[PathBuf]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for dir in own.iter().rev() {
        match std::fs::remove_dir(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                outcome = Err(Failure::other(format!(
                    "{FIELD}: rmdir {}: {error}",
                    dir.display()
                )));
            }
            _ => {}
        }
    }
    outcome
}

/// `L3:0=7f;1=0x1f` and the kernel's `    L3:0=07f;1=01f`: a resource, with numbers by the caches' ids.
fn parse(line: &str) -> Option<(&str, Vec<(u32, u64)>)> {
    let (resource, pairs) = line.trim().split_once(':')?;
    // Bandwidth is a decimal number, a cache's part a mask.
    let radix = if resource == "MB" { 10 } else { 16 };
    let pairs = pairs.split(';').map(|pair| {
        let (id, value) = pair.trim().split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix("0x").unwrap_or(value);
        Some((
            id.trim().parse().ok()?,
            u64::from_str_radix(value, radix).ok()?,
        ))
    });
    Some((resource.trim(), pairs.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A folder in the place of the file system, which no test host has; what the kernel makes itself is made here.
    fn host() -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("info")).unwrap();
        std::fs::write(host.path().join("info/last_cmd_status"), "ok\n").unwrap();
        host
    }

    fn class(host: &Path, name: &str, schemata: &str) {
        let dir = host.join(name);
        std::fs::create_dir_all(dir.join("mon_groups")).unwrap();
        std::fs::write(dir.join("tasks"), "").unwrap();
        std::fs::write(dir.join("schemata"), schemata).unwrap();
    }

    fn group(host: &Path, rdt: Value) -> Result<Group, String> {
        let rdt: LinuxIntelRdt = serde_json::from_value(rdt).unwrap();
        Group::read(&rdt, "web", host).map_err(|failure| failure.to_string())
    }

    fn made(host: &Path, rdt: Value) -> Result<(), String> {
        let made = group(host, rdt)?.make();
        made.map(drop).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_class_that_exists_is_joined_if_it_has_what_is_asked_for() {
        let host = host();
        class(host.path(), "gold", "    L3:0=07f;1=01f\n    MB:0=100\n");
        made(host.path(), json!({"closID": "gold"})).unwrap();
        let asked = json!({"closID": "gold", "l3CacheSchema": "L3:1=0x1f", "memBwSchema": "MB:0=100", "schemata": ["L2:0=f"]});
        made(host.path(), asked).unwrap();
        let written = std::fs::read_to_string(host.path().join("gold/schemata")).unwrap();
        assert_eq!(written, "L3:1=0x1f\nMB:0=100\nL2:0=f\n");
        let error = made(
            host.path(),
            json!({"closID": "gold", "l3CacheSchema": "L3:1=ff"}),
        );
        assert!(error.unwrap_err().contains("another schema"));
    }

    #[test]
    fn a_class_that_is_not_there_is_made_only_with_a_schema() {
        let host = host();
        let error = made(host.path(), json!({"closID": "new"})).unwrap_err();
        assert!(error.contains("does not exist"), "{error}");
        // Without a kernel no file is in the new folder: it is opened in vain.
        let error = made(
            host.path(),
            json!({"closID": "new", "schemata": ["L3:0=f"]}),
        );
        assert!(error.unwrap_err().contains("open"));
        assert_eq!(
            std::fs::read_to_string(host.path().join("new/schemata")).unwrap(),
            "L3:0=f\n"
        );
    }

    #[test]
    fn a_containers_own_groups_go_with_it_and_others_stay() {
        let host = host();
        class(host.path(), "gold", "");
        let own = |rdt| group(host.path(), rdt).unwrap().own;
        let path = |path: &str| host.path().join(path);
        assert_eq!(own(json!({})), [path("web")]);
        assert!(own(json!({"closID": "gold"})).is_empty());
        let monitored = own(json!({"closID": "gold", "enableMonitoring": true}));
        assert_eq!(monitored, [path("gold/mon_groups/web")]);
        assert_eq!(
            own(json!({"closID": "/", "enableMonitoring": true})),
            [path("mon_groups/web")]
        );
        let both = own(json!({"enableMonitoring": true}));
        assert_eq!(both, [path("web"), path("web/mon_groups/web")]);
        for dir in &both {
            std::fs::create_dir_all(dir).unwrap();
        }
        let taken = group(host.path(), json!({})).unwrap();
        assert!(taken.check_free().is_err());
        std::fs::remove_dir(path("web/mon_groups/web")).unwrap();
        std::fs::remove_dir(path("web/mon_groups")).unwrap();
        remove(&both).unwrap();
        remove(&both).unwrap();
        assert!(!path("web").exists() && path("gold").exists());
    }

    #[test]
    fn what_leads_elsewhere_or_is_more_than_a_line_is_refused() {
        let host = host();
        for (rdt, told) in [
            (json!({"closID": "../x"}), "closID: must be one folder"),
            (json!({"closID": ".."}), "closID: is not a group's name"),
            (json!({"closID": "info"}), "closID: is not a group's name"),
            (json!({"l3CacheSchema": "L3:0=f\nMB:0=1"}), "l3CacheSchema"),
            (json!({"memBwSchema": "L3:0=f"}), "memBwSchema: must start"),
            (json!({"schemata": ["L3:0=f", "a\nb"]}), "schemata"),
        ] {
            let error = group(host.path(), rdt).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
