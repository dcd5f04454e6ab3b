//! How a process joins its cgroup.

use super::{Fd, FdList};
use crate::error::{DuringPlan, Error};
use linux::cgroup::Cgroup;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// How a process joins its cgroup: born into the v2 one, and by its own hand into each of v1's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    pub(crate) unified: Option<Fd>,
    pub(crate) tasks: Vec<Fd>,
}

impl CgroupPlan {
    /// Opens what joining `cgroup` takes. The indices start at 0: the descriptors are the whole list.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the cgroup doesn't exist.
    pub fn open(cgroup: &Cgroup) -> Result<(Self, Vec<OwnedFd>), Error> {
        let mut fds = FdList::default();
        let plan = Self::add(cgroup, &BTreeMap::new(), &mut fds)?;
        Ok((plan, fds.into_inner()))
    }

    /// `below` has a path below `cgroup` by v1 controller, and with an empty name that for the v2 hierarchy and all v1
    /// controllers that aren't named.
    pub(super) fn add(
        cgroup: &Cgroup,
        below: &BTreeMap<String, String>,
        fds: &mut FdList,
    ) -> Result<Self, Error> {
        let step = || format!("open cgroup {}", cgroup.path());
        let (everywhere, named): (Vec<_>, Vec<_>) = below
            .iter()
            .filter(|(_, path)| !path.trim_matches('/').is_empty())
            .partition(|(name, _)| name.is_empty());
        let child = |path: &str| cgroup.child(path.trim_matches('/')).during(step);
        let join = match everywhere.first() {
            Some((_, path)) => child(path)?.join(),
            None => cgroup.join(),
        }
        .during(step)?;
        let mut tasks = join.tasks;
        let v1 = &cgroup.hierarchies().v1;
        for name in below.keys().filter(|name| !name.is_empty()) {
            if !v1.iter().any(|v1| v1.controllers.contains(name)) {
                return Err(Error::spec(
                    "--cgroup",
                    format!("unknown controller {name}"),
                ));
            }
        }
        // The hierarchies' order is that of the files.
        for (v1, tasks) in v1.iter().zip(&mut tasks) {
            let Some((name, path)) = named.iter().find(|(name, _)| v1.controllers.contains(name))
            else {
                continue;
            };
            let dir = child(path)?.v1_dir(name).unwrap_or_default();
            *tasks = std::fs::File::options()
                .write(true)
                .open(dir.join("tasks"))
                .map(OwnedFd::from)
                .map_err(|error| linux::Error::io("open", dir.display().to_string(), &error))
                .during(step)?;
        }
        Ok(CgroupPlan {
            unified: join.unified.map(|fd| fds.push(fd)),
            tasks: tasks.into_iter().map(|fd| fds.push(fd)).collect(),
        })
    }
}
