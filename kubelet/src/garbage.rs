//! Removing what pods leave: dead instances but the last of each container, old sandboxes, and the folders of pods
//! that nobody has any more.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ids::PodUid;
use crate::logs::rotated;
use crate::pods::Pods;
use crate::runtime::view::PodRuntime;
use crate::shared::Shared;
use crate::volumes;
use crate::worker::remove_container;

/// Changes settle before they are tidied up after.
const SETTLE: Duration = Duration::from_secs(1);

/// Dead instances and sandboxes that a pod can do without: all but the last dead instance beside the newest, and
/// all sandboxes but the newest that have nothing in them.
fn surplus(pod: &PodRuntime) -> (Vec<String>, Vec<String>) {
    let mut kept: HashMap<&str, usize> = HashMap::new();
    let mut containers = Vec::new();
    for container in &pod.containers {
        let count = kept.entry(container.name.as_str()).or_default();
        *count += 1;
        if *count > 2 && container.exit().is_some() {
            containers.push(container.id.clone());
        }
    }
    let in_use = |id: &str| {
        pod.containers
            .iter()
            .any(|c| c.sandbox_id == id && !containers.contains(&c.id))
    };
    let sandboxes = pod
        .sandboxes
        .iter()
        .skip(1)
        .filter(|s| !s.ready && !in_use(&s.id))
        .map(|s| s.id.clone())
        .collect();
    (containers, sandboxes)
}

/// Tidies up after each change, until `shutdown`.
pub async fn collect(shared: Arc<Shared>, shutdown: CancellationToken) {
    let changed = shared.cache.changed();
    let mut next = Box::pin(changed.notified());
    next.as_mut().enable();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = next.as_mut() => {}
        }
        // What changes from here on is another round's.
        next.set(changed.notified());
        next.as_mut().enable();
        tokio::time::sleep(SETTLE).await;
        let mut work: Vec<(PodUid, Vec<String>, Vec<String>)> = Vec::new();
        shared.cache.for_each(|pod| {
            let (containers, sandboxes) = surplus(pod);
            if !containers.is_empty() || !sandboxes.is_empty() {
                work.push((pod.uid.clone(), containers, sandboxes));
            }
        });
        for (uid, containers, sandboxes) in work {
            for id in containers {
                remove_with_log(&shared, &uid, &id).await;
            }
            for id in sandboxes {
                match shared.cri.remove_pod_sandbox(&id).await {
                    Ok(()) => shared.cache.removed_sandbox(&uid, &id),
                    Err(error) => tracing::warn!(sandbox = id, %error, "remove an old sandbox"),
                }
            }
        }
    }
}

async fn remove_with_log(shared: &Shared, uid: &PodUid, id: &str) {
    let log = shared.cache.container(id).map(|c| c.log_path);
    if let Err(error) = remove_container(shared, uid, id).await {
        tracing::warn!(container = id, %error, "remove a dead container");
        return;
    }
    if let Some(log) = log.filter(|path| !path.is_empty()) {
        let log = Path::new(&log);
        for path in rotated(log)
            .unwrap_or_default()
            .iter()
            .map(PathBuf::as_path)
            .chain([log])
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the folders of pods that neither a source nor the runtime has. It blocks.
pub fn remove_abandoned_folders(shared: &Shared, pods: &Pods) {
    let wanted: HashSet<String> = pods
        .uids()
        .into_iter()
        .chain(shared.cache.uids())
        .map(|uid| uid.as_str().to_owned())
        .collect();
    let names = |path: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let config = &shared.config;
    let folders = names(&config.root_dir.join("pods"))
        .into_iter()
        .chain(names(&config.volatile_dir()));
    for uid in folders.filter(|uid| !wanted.contains(uid)) {
        if let Err(error) = volumes::tear_down(config, &uid) {
            tracing::warn!(uid, %error, "remove the folder of a pod that is gone");
        }
    }
    for name in names(&config.pod_logs_dir) {
        let uid = name.rsplit('_').next().unwrap_or_default();
        if name.split('_').count() == 3 && !wanted.contains(uid) {
            let _ = std::fs::remove_dir_all(config.pod_logs_dir.join(&name));
        }
    }
    // A link whose log is gone leads nowhere.
    for name in names(&config.container_logs_dir) {
        let link = config.container_logs_dir.join(name);
        let leads_to_us =
            std::fs::read_link(&link).is_ok_and(|to| to.starts_with(&config.pod_logs_dir));
        if leads_to_us && !link.exists() {
            let _ = std::fs::remove_file(link);
        }
    }
}
