//! The capability sets that a security context asks for.

use std::collections::BTreeSet;

use cri_api::v1::LinuxContainerSecurityContext;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::Error;

/// What a container has unless it says otherwise, as with every other runtime.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All that this kernel knows, by their names without `CAP_`.
fn all() -> BTreeSet<String> {
    linux::capability::Set::all_known()
        .names()
        .map(|name| short(&name).to_owned())
        .collect()
}

fn short(name: &str) -> &str {
    name.strip_prefix("CAP_").unwrap_or(name)
}

/// The names that are effective: the defaults, what is added, less what is dropped. `ALL` may be added or dropped,
/// and a name that is given beside it wins over it.
pub fn effective(security: &LinuxContainerSecurityContext) -> BTreeSet<String> {
    if security.privileged {
        return all();
    }
    let names = |list: &[String]| -> BTreeSet<String> {
        list.iter()
            .map(|name| short(&name.to_ascii_uppercase()).to_owned())
            .collect()
    };
    let (add, drop) = security
        .capabilities
        .as_ref()
        .map(|asked| {
            (
                names(&asked.add_capabilities),
                names(&asked.drop_capabilities),
            )
        })
        .unwrap_or_default();
    let mut set: BTreeSet<String> = DEFAULT.iter().map(|name| (*name).to_owned()).collect();
    if add.contains("ALL") {
        set = all();
    }
    if drop.contains("ALL") {
        set.clear();
    }
    set.extend(add.into_iter().filter(|name| name != "ALL"));
    set.retain(|name| !drop.contains(name));
    set
}

/// The sets of a container's first process.
pub fn container(security: &LinuxContainerSecurityContext) -> Result<LinuxCapabilities, Error> {
    let parse = |names: &BTreeSet<String>| -> Result<Capabilities, Error> {
        let parse = |name: &String| {
            serde_json::from_value::<Capability>(format!("CAP_{name}").into()).map_err(|_| {
                Error::invalid(
                    "security_context.capabilities",
                    format!("no capability is called {name}"),
                )
            })
        };
        names.iter().map(parse).collect()
    };
    let set = parse(&effective(security))?;
    let ambient: BTreeSet<String> = security
        .capabilities
        .iter()
        .flat_map(|asked| &asked.add_ambient_capabilities)
        .map(|name| short(&name.to_ascii_uppercase()).to_owned())
        .collect();
    let ambient = parse(&ambient)?;
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()));
    sets.set_effective(Some(set.clone()));
    sets.set_permitted(Some(set));
    // Ambient capabilities have to be inheritable; nothing else is, or a file with inheritable ones would gain them.
    sets.set_inheritable((!ambient.is_empty()).then(|| ambient.clone()));
    sets.set_ambient((!ambient.is_empty()).then_some(ambient));
    Ok(sets)
}
