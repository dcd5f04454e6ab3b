//! Sandboxes and containers in the journal and in memory, which change together.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cri_api::v1::LinuxContainerResources;
use journal::Journal;

use super::container::{Container, ContainerRecord, ContainerStatus};
use super::sandbox::{Phase, Sandbox, SandboxRecord, SandboxStatus};
use crate::image::{self, Hold};

const SANDBOX: &str = "sandbox";
const SANDBOX_STATUS: &str = "sandbox-status";
const CONTAINER: &str = "container";
const CONTAINER_STATUS: &str = "container-status";
const CONTAINER_RESOURCES: &str = "container-resources";

#[derive(Debug, Default)]
struct Tables {
    sandboxes: HashMap<String, Arc<Sandbox>>,
    containers: HashMap<String, Arc<Container>>,
}

/// All sandboxes and containers.
#[derive(Debug)]
pub struct State {
    journal: Arc<Journal>,
    tables: RwLock<Tables>,
}

impl State {
    /// Reads the journal; the containers' layers are held from here on.
    ///
    /// # Errors
    /// The journal's.
    pub fn load(journal: Arc<Journal>, images: &image::Store) -> Result<Self, journal::Error> {
        let mut tables = Tables::default();
        let statuses: HashMap<String, SandboxStatus> =
            journal.list(SANDBOX_STATUS)?.into_iter().collect();
        for (id, record) in journal.list::<SandboxRecord>(SANDBOX)? {
            if let Some(status) = statuses.get(&id) {
                tables
                    .sandboxes
                    .insert(id, Arc::new(Sandbox::new(record, status.clone())));
            }
        }
        let mut statuses: HashMap<String, ContainerStatus> =
            journal.list(CONTAINER_STATUS)?.into_iter().collect();
        let mut changed: HashMap<String, LinuxContainerResources> =
            journal.list(CONTAINER_RESOURCES)?.into_iter().collect();
        for (id, record) in journal.list::<ContainerRecord>(CONTAINER)? {
            if let Some(status) = statuses.remove(&id) {
                let hold = images.hold(record.all_layers());
                let container = Container::new(record, status, hold, changed.remove(&id));
                tables.containers.insert(id, Arc::new(container));
            }
        }
        Ok(Self {
            journal,
            tables: RwLock::new(tables),
        })
    }

    /// Records a sandbox that is about to be made.
    ///
    /// # Errors
    /// The journal's.
    pub fn add_sandbox(
        &self,
        record: SandboxRecord,
        status: SandboxStatus,
    ) -> Result<Arc<Sandbox>, journal::Error> {
        self.journal.transaction(|records| {
            records.put(SANDBOX, &record.id, &record)?;
            records.put(SANDBOX_STATUS, &record.id, &status)
        })?;
        let sandbox = Arc::new(Sandbox::new(record, status));
        self.write()
            .sandboxes
            .insert(sandbox.id().to_owned(), sandbox.clone());
        Ok(sandbox)
    }

    /// Changes a sandbox's status, in the journal first.
    ///
    /// # Errors
    /// The journal's; then nothing has changed.
    pub fn update_sandbox(
        &self,
        sandbox: &Sandbox,
        change: impl FnOnce(&mut SandboxStatus),
    ) -> Result<(), journal::Error> {
        let mut outcome = Ok(());
        sandbox.status.send_if_modified(|status| {
            let mut next = status.clone();
            change(&mut next);
            if next == *status {
                return false;
            }
            outcome = self.journal.put(SANDBOX_STATUS, sandbox.id(), &next);
            if outcome.is_ok() {
                *status = next;
            }
            outcome.is_ok()
        });
        outcome
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// The journal's.
    pub fn remove_sandbox(&self, id: &str) -> Result<(), journal::Error> {
        self.journal.transaction(|records| {
            records.delete(SANDBOX, id)?;
            records.delete(SANDBOX_STATUS, id)
        })?;
        self.write().sandboxes.remove(id);
        Ok(())
    }

    /// Records a container.
    ///
    /// # Errors
    /// The journal's.
    pub fn add_container(
        &self,
        record: ContainerRecord,
        hold: Hold,
    ) -> Result<Arc<Container>, journal::Error> {
        let status = ContainerStatus::Created;
        self.journal.transaction(|records| {
            records.put(CONTAINER, &record.id, &record)?;
            records.put(CONTAINER_STATUS, &record.id, &status)
        })?;
        let container = Arc::new(Container::new(record, status, hold, None));
        self.write()
            .containers
            .insert(container.id().to_owned(), container.clone());
        Ok(container)
    }

    /// Changes a container's status, in the journal first. `next` returns `None` to leave it as it is.
    ///
    /// # Errors
    /// The journal's; then nothing has changed.
    pub fn update_container(
        &self,
        container: &Container,
        next: impl FnOnce(&ContainerStatus) -> Option<ContainerStatus>,
    ) -> Result<bool, journal::Error> {
        let mut outcome = Ok(());
        let changed = container.status.send_if_modified(|status| {
            let Some(next) = next(status) else {
                return false;
            };
            outcome = self.journal.put(CONTAINER_STATUS, container.id(), &next);
            if outcome.is_ok() {
                *status = next;
            }
            outcome.is_ok()
        });
        outcome.map(|()| changed)
    }

    /// Records the limits that a container has been given since its creation.
    ///
    /// # Errors
    /// The journal's.
    pub fn set_resources(
        &self,
        container: &Container,
        resources: LinuxContainerResources,
    ) -> Result<(), journal::Error> {
        self.journal
            .put(CONTAINER_RESOURCES, container.id(), &resources)?;
        container.set_resources(resources);
        Ok(())
    }

    /// Forgets a container.
    ///
    /// # Errors
    /// The journal's.
    pub fn remove_container(&self, id: &str) -> Result<(), journal::Error> {
        self.journal.transaction(|records| {
            records.delete(CONTAINER, id)?;
            records.delete(CONTAINER_RESOURCES, id)?;
            records.delete(CONTAINER_STATUS, id)
        })?;
        self.write().containers.remove(id);
        Ok(())
    }

    /// The sandbox of an id, or of the beginning of only one.
    pub fn sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        find(&self.read().sandboxes, id)
    }

    /// The container of an id, or of the beginning of only one.
    pub fn container(&self, id: &str) -> Option<Arc<Container>> {
        find(&self.read().containers, id)
    }

    /// All sandboxes that came to be; those that are still being made are nobody's business yet.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut all = self.all_sandboxes();
        all.retain(|sandbox| sandbox.status().phase != Phase::Creating);
        all
    }

    /// All sandboxes, those too that are being made. In the order of their creation.
    pub fn all_sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.read().sandboxes.values().cloned().collect();
        all.sort_by_key(|sandbox| sandbox.record.created_at_ns);
        all
    }

    /// All containers, in the order of their creation.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.read().containers.values().cloned().collect();
        all.sort_by_key(|container| container.record.created_at_ns);
        all
    }

    /// The containers of a sandbox, in the order of their creation.
    pub fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let mut all = self.containers();
        all.retain(|container| container.record.sandbox_id == sandbox_id);
        all
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find<T>(all: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(exact) = all.get(id) {
        return Some(exact.clone());
    }
    if id.is_empty() {
        return None;
    }
    let mut beginning = all.iter().filter(|(key, _)| key.starts_with(id));
    match (beginning.next(), beginning.next()) {
        (Some((_, only)), None) => Some(only.clone()),
        _ => None,
    }
}
