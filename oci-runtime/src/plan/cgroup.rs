//! How a process joins its cgroup.

use super::{Fd, FdList};
use crate::error::{DuringPlan, Error};
use linux::cgroup::Cgroup;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    pub fn open(cgroup: &Cgroup) -> Result<(Self, Vec<std::os::fd::OwnedFd>), Error> {
        let mut fds = FdList::default();
        let plan = Self::add(cgroup, &BTreeMap::new(), &mut fds)?;
        Ok((plan, fds.into_inner()))
    }

    pub(super) fn add(
        cgroup: &Cgroup,
        below: &BTreeMap<String, String>,
        fds: &mut FdList,
    ) -> Result<Self, Error> {
        let join = cgroup
            .join_below(below)
            .during(|| format!("open cgroup {}", cgroup.path()))?;
        Ok(CgroupPlan {
            unified: join.unified.map(|fd| fds.push(fd)),
            tasks: join.tasks.into_iter().map(|fd| fds.push(fd)).collect(),
        })
    }
}
