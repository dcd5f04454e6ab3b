//! A sandbox's namespaces: made on a thread that ends afterwards, and pinned. No process stays in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use cri_api::v1::IdMapping;
use linux::mount;
use linux::namespace::{self, NamespaceKind};

use super::pins::{Pins, from_kernel};
use crate::spec::map_text;

/// What a sandbox has of its own.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub id: String,
    /// Where its network namespace is pinned; `None` for the host's.
    pub network: Option<PathBuf>,
    pub ipc: bool,
    /// Its host name, with a uts namespace; `None` for the host's.
    pub host_name: Option<String>,
    pub sysctls: BTreeMap<String, String>,
    /// With a user namespace, the mapping of it: it owns the others, which are all the pod's own then.
    pub user: Option<IdMapping>,
}

/// Makes and pins the namespaces. What was pinned before a failure is left to the caller's teardown.
///
/// # Errors
/// The failed call, with what it was about.
pub async fn make(wanted: Wanted, pins: Pins) -> io::Result<()> {
    super::on_own_thread("sandbox", move || make_here(&wanted, &pins)).await?
}

fn make_here(wanted: &Wanted, pins: &Pins) -> io::Result<()> {
    let kinds: Vec<NamespaceKind> = [
        (NamespaceKind::Network, wanted.network.is_some()),
        (NamespaceKind::Ipc, wanted.ipc),
        (NamespaceKind::Uts, wanted.host_name.is_some()),
    ]
    .into_iter()
    .filter_map(|(kind, wanted)| wanted.then_some(kind))
    .collect();
    match wanted.user {
        Some(mapping) => join_new_user(mapping, &kinds)?,
        None if kinds.is_empty() => {}
        None => namespace::unshare(&kinds).map_err(from_kernel)?,
    }
    if let Some(name) = &wanted.host_name {
        linux::credential::set_host_name(name).map_err(from_kernel)?;
    }
    for (key, value) in &wanted.sysctls {
        let written = match (set_sysctl(key, value), wanted.user) {
            (Err(error), Some(mapping)) if error.kind() == io::ErrorKind::PermissionDenied => {
                set_sysctl_as(mapping.host_id, key, value)
            }
            (written, _) => written,
        };
        written.map_err(|error| {
            io::Error::new(error.kind(), format!("set sysctl {key}={value}: {error}"))
        })?;
    }
    let own = |kind| namespace::open_own(kind).map_err(from_kernel);
    if let Some(path) = &wanted.network {
        pin_network(path)?;
    }
    let ipc = wanted.ipc.then(|| own(NamespaceKind::Ipc)).transpose()?;
    let uts = wanted
        .host_name
        .is_some()
        .then(|| own(NamespaceKind::Uts))
        .transpose()?;
    pins.add(&wanted.id, ipc, uts, wanted.user)
}

/// Makes the pod's user namespace and the others, which it owns, and moves this thread into these. (Into a user
/// namespace no thread of a threaded process can go, nor need it.)
fn join_new_user(mapping: IdMapping, kinds: &[NamespaceKind]) -> io::Result<()> {
    let text = map_text(&[mapping]);
    let (_, owned) = namespace::owned_by_new_user(&text, &text, kinds).map_err(from_kernel)?;
    for (namespace, kind) in owned.iter().zip(kinds) {
        namespace::join(namespace, &[*kind]).map_err(from_kernel)?;
    }
    Ok(())
}

/// Each file shows the namespace of the thread that opens it.
fn set_sysctl(key: &str, value: &str) -> io::Result<()> {
    std::fs::write(Path::new("/proc/sys").join(key.replace('.', "/")), value)
}

/// As the root of the pod's user namespace: since Linux 6.9 ipc's are its alone, and not the host's root's.
fn set_sysctl_as(root: u32, key: &str, value: &str) -> io::Result<()> {
    std::thread::scope(|scope| {
        // A thread of its own, in this one's namespaces, since there is no way back.
        let work = scope.spawn(|| {
            linux::credential::become_user(root, root, None).map_err(from_kernel)?;
            set_sysctl(key, value)
        });
        work.join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that sets it panicked")))
    })
}

/// Pins this thread's network namespace where others' plugins and tools find it.
fn pin_network(path: &Path) -> io::Result<()> {
    let namespace = namespace::open_own(NamespaceKind::Network).map_err(from_kernel)?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::create(path)?;
    let pin = mount::bind_fd(&namespace, false).map_err(from_kernel)?;
    mount::attach_at(&pin, path).map_err(from_kernel)
}

/// Takes the pin of a network namespace away; the namespace ends with its last process. One that isn't there is fine.
///
/// # Errors
/// The failed call.
pub fn release_network(path: &Path) -> io::Result<()> {
    // Not a mount: it was made halfway.
    let _ = mount::detach(path);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The first of these sysctls that the sandbox's own namespaces don't hold: setting it would change the host.
pub fn unsafe_sysctl<'a>(
    keys: impl IntoIterator<Item = &'a String>,
    own_network: bool,
    own_ipc: bool,
) -> Option<&'a String> {
    let own = |key: &str| {
        let key = key.replace('/', ".");
        if key.contains("..") {
            return false;
        }
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|start| key.starts_with(start));
        (own_network && key.starts_with("net.")) || (own_ipc && (ipc || key == "kernel.sem"))
    };
    keys.into_iter().find(|key| !own(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_sandbox_has_of_its_own_can_be_set() {
        let find =
            |key: &str, network, ipc| unsafe_sysctl([&key.to_owned()], network, ipc).is_some();
        assert!(!find("net.ipv4.ip_forward", true, false));
        assert!(find("net.ipv4.ip_forward", false, true));
        assert!(!find("kernel.shm_rmid_forced", false, true));
        assert!(find("kernel.shm_rmid_forced", true, false));
        assert!(find("kernel.panic", true, true));
        assert!(find("net/../kernel/panic", true, true));
    }
}
