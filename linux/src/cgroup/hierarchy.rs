//! Which cgroup hierarchies the host has, and where.

use crate::error::{Context, Error, Result};
use std::path::{Path, PathBuf};

/// The three ways in which hosts mount cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// cgroup v2 alone; it has the controllers.
    Unified,
    /// v1 hierarchies hold the controllers, and a v2 hierarchy beside them holds identity.
    Hybrid,
    /// v1 hierarchies alone.
    Legacy,
}

/// One v1 hierarchy: its controllers are mounted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Hierarchy {
    /// `cpu`, `cpuacct` and so on.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// The host's cgroup hierarchies. Named hierarchies (`name=systemd`) are left to their owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Where cgroup v2 is mounted.
    pub unified: Option<PathBuf>,
    /// The v1 hierarchies that have controllers.
    pub v1: Vec<V1Hierarchy>,
}

const V1_CONTROLLERS: [&str; 13] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
];

const CGROUP_MAGIC: i64 = 0x0027_e0eb;
const CGROUP2_MAGIC: i64 = 0x6367_7270;

fn has_magic(path: &Path, magic: i64) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == magic)
}

impl Hierarchies {
    /// Finds them in this process's mount table.
    ///
    /// # Errors
    /// ENOENT if no cgroup file system is mounted; the read's otherwise.
    pub fn discover() -> Result<Self> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .context("read", || "/proc/self/mountinfo")?;
        let mut found = Self::parse_mountinfo(&table);
        // Something else may be mounted over one of them.
        found.unified = found
            .unified
            .filter(|mount| has_magic(mount, CGROUP2_MAGIC));
        found.v1.retain(|v1| has_magic(&v1.mount, CGROUP_MAGIC));
        if found.unified.is_none() && found.v1.is_empty() {
            return Err(Error::new(
                "find cgroup hierarchies in",
                "/proc/self/mountinfo",
                libc::ENOENT,
            ));
        }
        Ok(found)
    }

    /// As [`Hierarchies::discover`], with the named v1 hierarchy `name=NAME` after the others if it is mounted: for
    /// what its owner, who tracks processes by it, has put there.
    ///
    /// # Errors
    /// As [`Hierarchies::discover`].
    pub fn discover_with(name: &str) -> Result<Self> {
        let mut found = Self::discover()?;
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .context("read", || "/proc/self/mountinfo")?;
        let named = named_mount(&table, name).filter(|mount| has_magic(mount, CGROUP_MAGIC));
        found.v1.extend(named.map(|mount| V1Hierarchy {
            controllers: vec![format!("name={name}")],
            mount,
        }));
        Ok(found)
    }

    /// How they are laid out.
    pub fn layout(&self) -> Layout {
        match (&self.unified, self.v1.is_empty()) {
            (Some(_), true) => Layout::Unified,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::Legacy,
        }
    }

    /// The v1 hierarchy with this controller.
    pub fn v1_mount(&self, controller: &str) -> Option<&Path> {
        self.v1
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
            .map(|hierarchy| hierarchy.mount.as_path())
    }

    /// Whether cgroups can limit by this controller. Of a hybrid host's v2 hierarchy none is used.
    pub fn has_controller(&self, controller: &str) -> bool {
        if !self.v1.is_empty() {
            return self.v1_mount(controller).is_some();
        }
        let unified = self.unified.as_ref();
        unified
            .and_then(|root| std::fs::read_to_string(root.join("cgroup.controllers")).ok())
            .is_some_and(|list| list.split_whitespace().any(|name| name == controller))
    }

    /// Reads `/proc/<pid>/mountinfo` text (proc_pid_mountinfo(5)). The first mount of a hierarchy counts.
    pub fn parse_mountinfo(table: &str) -> Self {
        let mut found = Hierarchies {
            unified: None,
            v1: Vec::new(),
        };
        for line in table.lines() {
            let Some((mount_part, fs_part)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount) = mount_part.split(' ').nth(4) else {
                continue;
            };
            let mut fs_fields = fs_part.split(' ');
            let (kind, options) = (fs_fields.next(), fs_fields.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup2") if found.unified.is_none() => {
                    found.unified = Some(PathBuf::from(mount))
                }
                Some("cgroup") => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| V1_CONTROLLERS.contains(option))
                        .map(str::to_owned)
                        .collect();
                    let known = found
                        .v1
                        .iter()
                        .any(|hierarchy| hierarchy.controllers == controllers);
                    if !controllers.is_empty() && !known {
                        found.v1.push(V1Hierarchy {
                            controllers,
                            mount: PathBuf::from(mount),
                        });
                    }
                }
                _ => {}
            }
        }
        found
    }
}

fn named_mount(table: &str, name: &str) -> Option<PathBuf> {
    let option = format!("name={name}");
    table.lines().find_map(|line| {
        let (mount_part, fs_part) = line.split_once(" - ")?;
        let mut fields = fs_part.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let is_it = kind == "cgroup" && options.split(',').any(|found| found == option);
        is_it.then(|| mount_part.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// This process's cgroup in each hierarchy, from `/proc/self/cgroup`: the v2 path where there is one, else the path
/// in the first v1 hierarchy with a controller.
///
/// # Errors
/// The read's.
pub fn own_path() -> Result<String> {
    let text =
        std::fs::read_to_string("/proc/self/cgroup").context("read", || "/proc/self/cgroup")?;
    Ok(parse_own_path(&text))
}

fn parse_own_path(text: &str) -> String {
    let mut fallback = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (
            fields.next(),
            fields.next().unwrap_or_default(),
            fields.next(),
        );
        match (id, path) {
            (Some("0"), Some(path)) => return path.to_owned(),
            (_, Some(path)) if !controllers.starts_with("name=") => {
                fallback.get_or_insert(path);
            }
            _ => {}
        }
    }
    fallback.unwrap_or("/").to_owned()
}

/// This process's cgroup in the v1 hierarchy with a controller, from `/proc/self/cgroup`.
///
/// # Errors
/// The read's.
pub fn own_v1_path(controller: &str) -> Result<Option<String>> {
    let text =
        std::fs::read_to_string("/proc/self/cgroup").context("read", || "/proc/self/cgroup")?;
    Ok(parse_own_v1_path(&text, controller))
}

fn parse_own_v1_path(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_read_from_mountinfo() {
        let table = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let found = Hierarchies::parse_mountinfo(table);
        assert_eq!(found.layout(), Layout::Hybrid);
        assert_eq!(
            found.v1_mount("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(found.v1.len(), 2);
        assert_eq!(
            found.unified.as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
    }

    #[test]
    fn own_path_prefers_the_unified_hierarchy() {
        assert_eq!(
            parse_own_path("9:name=systemd:/x\n4:memory:/m\n0::/u\n"),
            "/u"
        );
        assert_eq!(parse_own_path("9:name=systemd:/x\n4:memory:/m\n"), "/m");
        let text = "9:name=systemd:/x\n4:cpu,memory:/m:1\n0::/u\n";
        assert_eq!(parse_own_v1_path(text, "memory").as_deref(), Some("/m:1"));
        assert_eq!(parse_own_v1_path(text, ""), Some("/u".to_owned()));
        assert_eq!(parse_own_v1_path(text, "pids"), None);
    }
}
