//! What a client keeps of containers for the case that their keeper is killed.

use super::protocol::ExitStatus;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// By container. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Keepsakes(Arc<Mutex<HashMap<String, Keepsake>>>);

#[derive(Debug)]
struct Keepsake {
    /// Tells the status of a process that ended unseen, if the caller still has it.
    pidfd: Weak<OwnedFd>,
    /// A terminal lives as long as somebody holds its master.
    terminal: Option<Arc<OwnedFd>>,
}

impl Keepsakes {
    pub(super) fn keep(&self, id: &str, pidfd: &Arc<OwnedFd>, terminal: Option<Arc<OwnedFd>>) {
        let pidfd = Arc::downgrade(pidfd);
        self.lock()
            .insert(id.to_owned(), Keepsake { pidfd, terminal });
    }

    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// All terminals.
    pub(super) fn terminals(&self) -> Vec<(String, Arc<OwnedFd>)> {
        let keepsakes = self.lock();
        keepsakes
            .iter()
            .filter_map(|(id, kept)| Some((id.clone(), kept.terminal.clone()?)))
            .collect()
    }

    /// How a container's process ended, where the kernel tells (Linux 6.15 and later).
    pub(super) fn status(&self, id: &str) -> Option<ExitStatus> {
        let pidfd = self.lock().get(id)?.pidfd.upgrade()?;
        linux::pidfd_info::wait_status(&pidfd)
            .ok()?
            .map(ExitStatus::from_wait)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Keepsake>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
