//! Pins of the sandboxes' ipc and uts namespaces and of their shared memory.
//!
//! They outlive the server, and yet take no mount on the host: they are mounts in a mount namespace that holds
//! nothing else, and that is itself pinned in the state directory. Whoever wants one of them enters that namespace on
//! a thread that ends afterwards.
//!
//! ```text
//! host: STATE/pins (private) / mnt --> the namespace:  / (tmpfs)
//!                                                      /<sandbox id>/ipc   pin
//!                                                      /<sandbox id>/uts   pin
//!                                                      /<sandbox id>/shm   tmpfs, 64 MiB
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1::IdMapping;
use linux::mount;
use linux::namespace::{self, NamespaceKind};

/// What is pinned of a sandbox.
#[derive(Debug, Default)]
pub struct Held {
    pub ipc: Option<OwnedFd>,
    pub uts: Option<OwnedFd>,
    /// Its shared memory, as a detached mount.
    pub shm: Option<OwnedFd>,
}

impl Held {
    /// The user namespace that owns the others: the pod's, if it has one, else the host's.
    ///
    /// # Errors
    /// The kernel's; ENOENT for a sandbox without namespaces of its own.
    pub fn owner(&self) -> linux::Result<OwnedFd> {
        let missing = || {
            let errno = rustix::io::Errno::NOENT.raw_os_error();
            linux::Error::new("find the owner of the sandbox's namespaces", "", errno)
        };
        namespace::owner(self.ipc.as_ref().ok_or_else(missing)?)
    }
}

/// The namespace that the pins are in.
#[derive(Debug, Clone)]
pub struct Pins {
    folder: PathBuf,
    namespace: Arc<OwnedFd>,
}

const SHM_SIZE: &str = "65536k";

impl Pins {
    /// Finds the namespace that an earlier server left in the state directory, or makes it.
    ///
    /// # Errors
    /// The failed call, with what it was about.
    pub async fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join("pins");
        let namespace = super::on_own_thread("pins", {
            let folder = folder.clone();
            move || open_or_make(&folder)
        })
        .await??;
        Ok(Self {
            folder,
            namespace: Arc::new(namespace),
        })
    }

    /// Pins a sandbox's new namespaces; `ipc` says whether it has shared memory of its own too, which belongs to the
    /// root of its user namespace.
    ///
    /// Called on the thread that made them, which is in the pins' namespace afterwards and has to end.
    pub(super) fn add(
        &self,
        id: &str,
        ipc: Option<OwnedFd>,
        uts: Option<OwnedFd>,
        user: Option<IdMapping>,
    ) -> io::Result<()> {
        let detach = |namespace: &OwnedFd| mount::bind_fd(namespace, false).map_err(from_kernel);
        let shm = ipc
            .is_some()
            .then(|| new_shm(user.map_or(0, |mapping| mapping.host_id)))
            .transpose()
            .map_err(from_kernel)?;
        let ipc = ipc.as_ref().map(detach).transpose()?;
        let uts = uts.as_ref().map(detach).transpose()?;
        if ipc.is_none() && uts.is_none() {
            return Ok(());
        }
        self.enter()?;
        let folder = Path::new("/").join(id);
        std::fs::create_dir_all(&folder)?;
        for (name, pin) in [("ipc", ipc), ("uts", uts)] {
            if let Some(pin) = pin {
                let path = folder.join(name);
                File::create(&path)?;
                mount::attach_at(&pin, &path).map_err(from_kernel)?;
            }
        }
        if let Some(shm) = shm {
            let path = folder.join("shm");
            std::fs::create_dir_all(&path)?;
            mount::attach_at(&shm, &path).map_err(from_kernel)?;
        }
        Ok(())
    }

    /// Opens what is pinned of a sandbox.
    ///
    /// # Errors
    /// The failed call. What was never pinned is absent.
    pub async fn get(&self, id: &str) -> io::Result<Held> {
        let (pins, folder) = (self.clone(), Path::new("/").join(id));
        super::on_own_thread("pins", move || {
            pins.enter()?;
            let there = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
            let open = |path: PathBuf| namespace::open(&path).map_err(from_kernel);
            Ok(Held {
                ipc: there("ipc").map(open).transpose()?,
                uts: there("uts").map(open).transpose()?,
                shm: there("shm")
                    .map(|path| mount::bind(&path, false).map_err(from_kernel))
                    .transpose()?,
            })
        })
        .await?
    }

    /// Takes a sandbox's pins away; what isn't there is fine.
    ///
    /// # Errors
    /// The first failed call; the rest is done all the same.
    pub async fn remove(&self, id: &str) -> io::Result<()> {
        let (pins, folder) = (self.clone(), Path::new("/").join(id));
        super::on_own_thread("pins", move || {
            pins.enter()?;
            if !folder.exists() {
                return Ok(());
            }
            for name in ["ipc", "uts", "shm"] {
                // Not a mount, or not there: nothing to take away.
                let _ = mount::detach(&folder.join(name));
            }
            std::fs::remove_dir_all(&folder)
        })
        .await?
    }

    /// Takes the namespace itself away, at the end of a server that leaves no sandbox behind.
    ///
    /// # Errors
    /// The failed call.
    pub fn close(self) -> io::Result<()> {
        mount::detach(&self.folder.join("mnt")).map_err(from_kernel)?;
        mount::detach(&self.folder).map_err(from_kernel)?;
        std::fs::remove_dir_all(&self.folder)
    }

    /// Moves this thread into the namespace.
    fn enter(&self) -> io::Result<()> {
        // A thread that shares its root and current directory with others may not change its mount namespace.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        namespace::join(&*self.namespace, &[NamespaceKind::Mount]).map_err(from_kernel)
    }
}

fn new_shm(owner: u32) -> linux::Result<OwnedFd> {
    let owner = owner.to_string();
    let options = [
        ("mode", "1777"),
        ("size", SHM_SIZE),
        ("uid", &owner),
        ("gid", &owner),
    ]
    .map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
    let attributes = mount::attr::NOSUID | mount::attr::NODEV | mount::attr::NOEXEC;
    mount::new_file_system("tmpfs", Some("shm"), &options, attributes)
}

fn open_or_make(folder: &Path) -> io::Result<OwnedFd> {
    let pin = folder.join("mnt");
    if let Ok(file) = File::open(&pin)
        && mount::is_mount_root(&file).unwrap_or(false)
    {
        return Ok(file.into());
    }
    std::fs::create_dir_all(folder)?;
    // A pin of a mount namespace can't be made where it would propagate: the folder becomes a private mount.
    let this = File::open(folder)?;
    if !mount::is_mount_root(&this).map_err(from_kernel)? {
        let own = mount::bind(folder, false).map_err(from_kernel)?;
        mount::attach_at(&own, folder).map_err(from_kernel)?;
    }
    mount::set_propagation(folder, mount::Propagation::Private, false).map_err(from_kernel)?;
    File::create(&pin)?;
    // The kernel lets a mount namespace be pinned only in an older one, and tells age by a number. Since Linux 6.18 each
    // processor has numbers of its own, so that one made here may look older than the one that this process is in: then
    // it is made on another, and on the one that made this process's at the latest.
    let others = std::iter::once_with(processors).flatten().map(Some);
    let mut refused = io::Error::other("no processor may be used");
    for processor in std::iter::once(None).chain(others) {
        let namespace = std::thread::scope(|scope| {
            let work = scope.spawn(|| make_namespace(folder, processor));
            work.join().unwrap_or_else(|_| {
                Err(io::Error::other(
                    "the thread that makes the pins' namespace panicked",
                ))
            })
        })?;
        let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let Err(errno) = rustix::mount::mount_bind(&source, &pin) else {
            return Ok(namespace);
        };
        refused = io::Error::new(
            io::Error::from(errno).kind(),
            format!("pin {}: {errno}", pin.display()),
        );
        if errno != rustix::io::Errno::INVAL {
            break;
        }
    }
    Err(refused)
}

/// Those that this process may use, whichever its threads are bound to.
fn processors() -> Vec<usize> {
    let all = 0..rustix::thread::CpuSet::MAX_CPU;
    let may_use = |processor: &usize| linux::scheduling::set_affinity(&[*processor]).is_ok();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| all.filter(may_use).collect());
        work.join().unwrap_or_default()
    })
}

/// Makes a mount namespace that holds one empty tmpfs, on a thread that ends in it.
fn make_namespace(folder: &Path, processor: Option<usize>) -> io::Result<OwnedFd> {
    if let Some(processor) = processor {
        linux::scheduling::set_affinity(&[processor]).map_err(from_kernel)?;
    }
    namespace::unshare(&[NamespaceKind::Mount]).map_err(from_kernel)?;
    let own = namespace::open_own(NamespaceKind::Mount).map_err(from_kernel)?;
    mount::set_propagation(Path::new("/"), mount::Propagation::Private, true)
        .map_err(from_kernel)?;
    let root = || {
        let mode = [("mode".to_owned(), Some("700".to_owned()))];
        mount::new_file_system(
            "tmpfs",
            Some("pins"),
            &mode,
            mount::attr::NOSUID | mount::attr::NODEV,
        )
    };
    let at = |path: &Path| {
        let root = root()?;
        mount::attach_at(&root, path)?;
        mount::pivot_root(&root)
    };
    match at(folder) {
        // Under an initramfs no root can be replaced, only covered.
        Err(error) if error.errno == rustix::io::Errno::INVAL.raw_os_error() => {
            mount::leave_initramfs().map_err(from_kernel)?;
            std::fs::create_dir("/pins")?;
            at(Path::new("/pins")).map_err(from_kernel)?;
        }
        other => other.map_err(from_kernel)?,
    }
    Ok(own)
}

/// The kernel's error with its words, for callers that have many kinds of failure.
pub(super) fn from_kernel(error: linux::Error) -> io::Error {
    let kind = io::Error::from_raw_os_error(error.errno).kind();
    io::Error::new(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_in_a_mount_namespace_of_its_own_has_pins_whichever_processor_it_is_on() {
        for first in processors() {
            for second in processors() {
                let work = std::thread::spawn(move || {
                    linux::scheduling::set_affinity(&[first]).unwrap();
                    namespace::unshare(&[NamespaceKind::Mount]).unwrap();
                    let root = Path::new("/");
                    mount::set_propagation(root, mount::Propagation::Private, true).unwrap();
                    linux::scheduling::set_affinity(&[second]).unwrap();
                    let folder = tempfile::tempdir().unwrap();
                    let pins = folder.path().join("pins");
                    let made = open_or_make(&pins).map(drop);
                    let found = made.and_then(|()| open_or_make(&pins)).map(drop);
                    // The mounts end with this thread.
                    let _ = mount::detach(&pins);
                    found
                });
                work.join().unwrap().unwrap_or_else(|error| {
                    panic!("from processor {first} on {second}: {error}");
                });
            }
        }
    }
}
