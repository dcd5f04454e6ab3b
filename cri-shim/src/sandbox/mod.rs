//! What a sandbox is made of on the host: its namespaces and their pins, and its files.

mod abilities;
mod cgroups;
mod files;
mod namespaces;
mod pins;

pub use abilities::Abilities;
pub use cgroups::{Cgroups, Error as CgroupError, pod_path};
pub use files::SandboxFiles;
pub use namespaces::{Wanted, make, release_network, unsafe_sysctl};
pub use pins::{Held, Pins};

use std::io;

use tokio::sync::oneshot;

/// Runs `work` on a thread of its own, which ends afterwards: it enters namespaces, and no other work may ever run
/// on a thread that has.
///
/// # Errors
/// When the thread can't be started, or panics.
pub async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody is left to tell if the caller went away.
            let _ = sender.send(work());
        })?;
    result
        .await
        .map_err(|_| io::Error::other(format!("thread {name} ended without a result")))
}
