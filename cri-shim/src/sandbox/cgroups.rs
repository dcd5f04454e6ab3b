//! The pods' cgroups. The server makes those that aren't there, and removes what it made, ancestors included, when
//! the last pod in it is gone.

use std::sync::{Arc, Mutex, PoisonError};

use cri_api::v1::{LinuxContainerResources, PodSandboxConfig};
use journal::Journal;
use linux::cgroup::{Cgroup, Hierarchies};

use crate::spec;

/// Journalled under the path of each cgroup that the server made.
const MADE: &str = "cgroup";

#[derive(Debug)]
pub struct Cgroups {
    hierarchies: Arc<Hierarchies>,
    limits_huge_pages: bool,
    journal: Arc<Journal>,
    /// Making a pod's cgroup makes its ancestors, and removing another's may remove the same ones.
    turn: Mutex<()>,
}

/// Why a cgroup couldn't be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    #[error(transparent)]
    Journal(#[from] journal::Error),
}

impl Cgroups {
    /// Over the host's hierarchies.
    ///
    /// # Errors
    /// When none is mounted.
    pub fn open(journal: Arc<Journal>) -> Result<Self, Error> {
        let hierarchies = Hierarchies::discover()?;
        Ok(Self {
            limits_huge_pages: hierarchies.has_controller("hugetlb"),
            hierarchies: Arc::new(hierarchies),
            journal,
            turn: Mutex::new(()),
        })
    }

    pub fn hierarchies(&self) -> &Arc<Hierarchies> {
        &self.hierarchies
    }

    /// Leaves out limits of huge pages where the kernel can't keep them, as containerd does: a kubelet sends one for each
    /// size to every container, 0 for most.
    pub fn tolerate(&self, asked: &mut LinuxContainerResources) {
        if self.limits_huge_pages {
            return;
        }
        if asked.hugepage_limits.iter().any(|page| page.limit > 0) {
            tracing::warn!(
                "a limit of huge pages is left out: the kernel has no controller hugetlb"
            );
        }
        asked.hugepage_limits.clear();
    }

    /// Whether the host has one v2 hierarchy with all controllers.
    pub fn unified(&self) -> bool {
        self.hierarchies.layout() == linux::cgroup::Layout::Unified
    }

    /// The cgroup at a path from the hierarchies' roots.
    ///
    /// # Errors
    /// For a path that isn't one.
    pub fn at(&self, path: &str) -> Result<Cgroup, Error> {
        Ok(Cgroup::at(self.hierarchies.clone(), path)?)
    }

    /// Makes a pod's cgroup; if it is new, it gets the limits. One that the kubelet made has the kubelet's.
    ///
    /// # Errors
    /// The journal's or the kernel's.
    pub fn ensure_pod(
        &self,
        path: &str,
        limits: Option<&LinuxContainerResources>,
    ) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = self.at(path)?;
        if cgroup.exists() {
            return Ok(());
        }
        for ancestor in ancestors(path) {
            if !self.at(ancestor)?.exists() {
                self.journal.put_for_this_boot(MADE, ancestor, &())?;
            }
        }
        cgroup.ensure()?;
        if let Some(mut limits) = limits.cloned() {
            self.tolerate(&mut limits);
            if !spec::resources_are_empty(&limits) {
                cgroup.apply(&spec::cgroup_resources(&limits))?;
            }
        }
        Ok(())
    }

    /// Removes a pod's cgroup and those above it, as far as the server made them and nothing else is in them.
    ///
    /// # Errors
    /// The journal's or the kernel's.
    pub fn release_pod(&self, path: &str) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for ancestor in ancestors(path).into_iter().rev() {
            if self.journal.get::<()>(MADE, ancestor)?.is_none() {
                continue;
            }
            let cgroup = self.at(ancestor)?;
            if has_children(&cgroup) {
                return Ok(());
            }
            match cgroup.delete() {
                Err(error) if error.is(rustix::io::Errno::BUSY.raw_os_error()) => return Ok(()),
                other => other?,
            }
            self.journal.delete(MADE, ancestor)?;
        }
        Ok(())
    }
}

/// Whether another cgroup lies in it. Deleting a cgroup takes its descendants along, and those may be others'.
fn has_children(cgroup: &Cgroup) -> bool {
    let folder = cgroup
        .unified_dir()
        .or_else(|| cgroup.controller_dir("memory"));
    let entries = folder
        .and_then(|folder| std::fs::read_dir(folder).ok())
        .into_iter()
        .flatten();
    entries
        .flatten()
        .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// `/a`, `/a/b`, `/a/b/c` of `/a/b/c`.
fn ancestors(path: &str) -> Vec<&str> {
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .skip(1)
        .chain([path.len()]);
    ends.filter_map(|end| path.get(..end)).collect()
}

/// Where a pod's cgroup is: what the request says, a systemd slice spelled out, or one of its own below `root`.
pub fn pod_path(config: &PodSandboxConfig, root: &str, id: &str) -> String {
    let asked = config
        .linux
        .as_ref()
        .map(|linux| linux.cgroup_parent.as_str())
        .unwrap_or_default();
    let asked = asked.trim_end_matches('/');
    if asked.is_empty() {
        return format!("{}/{id}", root.trim_end_matches('/'));
    }
    match asked.strip_suffix(".slice") {
        Some(slice) if !slice.contains('/') => {
            // `a-b.slice` lies in `a.slice`.
            let ends = slice
                .match_indices('-')
                .map(|(at, _)| at)
                .chain([slice.len()]);
            ends.filter_map(|end| slice.get(..end))
                .map(|part| format!("/{part}.slice"))
                .collect()
        }
        _ => format!("/{}", asked.trim_start_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use cri_api::v1::LinuxPodSandboxConfig;

    use super::*;

    #[test]
    fn a_pods_cgroup_is_where_the_request_says() {
        let path = |parent: &str| {
            let linux = LinuxPodSandboxConfig {
                cgroup_parent: parent.into(),
                ..Default::default()
            };
            pod_path(
                &PodSandboxConfig {
                    linux: Some(linux),
                    ..Default::default()
                },
                "/orlop",
                "id",
            )
        };
        assert_eq!(path(""), "/orlop/id");
        assert_eq!(path("/kubepods/burstable/pod1"), "/kubepods/burstable/pod1");
        assert_eq!(
            path("kubepods-pod1.slice"),
            "/kubepods.slice/kubepods-pod1.slice"
        );
        assert_eq!(ancestors("/a/b"), ["/a", "/a/b"]);
    }
}
