//! Which unit is a container's, and where that unit's cgroup is.

use super::SystemdError;
use super::address::Owner;

/// A container's unit, as `linux.cgroupsPath` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitPlan {
    /// `system.slice`
    pub slice: String,
    /// `runc-ID.scope`
    pub name: String,
    /// The container's name in it, for the description.
    pub container: String,
    /// Below the manager's own cgroup.
    pub path: String,
}

const SLICE: &str = ".slice";

impl UnitPlan {
    /// Reads `slice:prefix:name`; without a path, the owner's slice, `runc` and the container's id.
    ///
    /// # Errors
    /// If it has another form, or names no slice.
    pub(crate) fn parse(cgroups_path: &str, id: &str, owner: Owner) -> Result<Self, SystemdError> {
        let parts: Vec<&str> = match cgroups_path {
            "" => vec!["", "runc", id],
            path => path.split(':').collect(),
        };
        let [slice, prefix, container] = parts[..] else {
            return Err(SystemdError::CgroupsPath(cgroups_path.to_owned()));
        };
        let slice = match (slice, owner) {
            ("", Owner::System) => "system.slice",
            ("", Owner::User) => "user.slice",
            (given, _) => given,
        };
        let name = if container.ends_with(SLICE) {
            container.to_owned()
        } else {
            format!("{prefix}-{container}.scope")
        };
        // The manager refuses it as a unit's name; until then it is no path either.
        if name.contains('/') {
            return Err(SystemdError::UnitName(name));
        }
        let above = expand_slice(slice)?;
        Ok(UnitPlan {
            path: format!("{}/{name}", above.trim_end_matches('/')),
            slice: slice.to_owned(),
            name,
            container: container.to_owned(),
        })
    }

    /// A slice holds other units, a scope processes.
    pub(crate) fn is_slice(&self) -> bool {
        self.name.ends_with(SLICE)
    }
}

/// `a-b.slice` is below `a.slice` (`systemd.slice(5)`).
fn expand_slice(slice: &str) -> Result<String, SystemdError> {
    let bad = || SystemdError::Slice(slice.to_owned());
    let name = slice.strip_suffix(SLICE).ok_or_else(bad)?;
    if name == "-" {
        return Ok("/".to_owned());
    }
    if name.contains('/') || name.split('-').any(str::is_empty) {
        return Err(bad());
    }
    let ends = name
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([name.len()]);
    Ok(ends
        .map(|end| format!("/{}{SLICE}", &name[..end]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, owner: Owner) -> UnitPlan {
        UnitPlan::parse(text, "c1", owner).unwrap()
    }

    #[test]
    fn without_a_path_the_unit_is_a_scope_in_the_owners_slice() {
        let unit = parsed("", Owner::System);
        assert_eq!(
            (unit.slice.as_str(), unit.name.as_str()),
            ("system.slice", "runc-c1.scope")
        );
        assert_eq!(unit.path, "/system.slice/runc-c1.scope");
        assert_eq!(parsed("", Owner::User).path, "/user.slice/runc-c1.scope");
        assert_eq!(
            parsed(":libpod:x", Owner::System).path,
            "/system.slice/libpod-x.scope"
        );
    }

    #[test]
    fn a_slices_name_says_in_which_slices_it_is() {
        let unit = parsed("machine-a-b.slice:libpod:x", Owner::System);
        assert_eq!(
            unit.path,
            "/machine.slice/machine-a.slice/machine-a-b.slice/libpod-x.scope"
        );
        assert_eq!(parsed("-.slice:p:x", Owner::System).path, "/p-x.scope");
        let slice = parsed("a.slice:ignored:a-b.slice", Owner::System);
        assert!(slice.is_slice());
        assert_eq!(slice.path, "/a.slice/a-b.slice");
    }

    #[test]
    fn what_is_no_unit_is_refused_in_runcs_words() {
        let said = |text: &str| {
            UnitPlan::parse(text, "c1", Owner::System)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            said("/user.slice/x"),
            "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \
             \"/user.slice/x\" instead"
        );
        assert_eq!(
            said("a.scope:b:c"),
            "linux.cgroupsPath: invalid slice name: a.scope"
        );
        for bad in [
            ".slice:b:c",
            "a--b.slice:b:c",
            "-a.slice:b:c",
            "a/b.slice:b:c",
            "a.slice:b:c/d",
            "a:b:c:d",
        ] {
            assert!(UnitPlan::parse(bad, "c1", Owner::System).is_err(), "{bad}");
        }
    }
}
