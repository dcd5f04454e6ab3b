//! The folder of static pods, watched.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::inotify::WatchFlags;
use tokio_util::sync::CancellationToken;

use super::{Mirrors, manifest};
use crate::inotify::Inotify;
use crate::pod::PodExt;
use crate::pods::{Pods, Source};

/// Several files changed together are read together.
const SETTLE: Duration = Duration::from_millis(10);

/// Follows the manifests in `folder` until `shutdown`; `read` is told after the first reading.
pub async fn follow_files(
    folder: PathBuf,
    node_name: String,
    pods: Pods,
    mirrors: Mirrors,
    read: tokio::sync::watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let watch = watch(&folder);
    if let Err(error) = &watch {
        tracing::error!(folder = %folder.display(), %error, "watch the folder of static pods; changes in it will not be seen");
    }
    loop {
        let present = read_all(&folder, &node_name);
        let uids: HashSet<_> = present.iter().map(PodExt::uid).collect();
        for pod in present {
            let pod = Arc::new(pod);
            mirrors.wanted(pod.clone());
            pods.apply(Source::File, pod);
        }
        mirrors.retain(&uids);
        pods.retain(Source::File, &uids);
        read.send_replace(true);
        let Ok(watch) = &watch else {
            return;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = watch.changed() => {
                if let Err(error) = changed {
                    tracing::error!(folder = %folder.display(), %error, "watch the folder of static pods");
                    return;
                }
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

fn watch(folder: &Path) -> std::io::Result<Inotify> {
    let inotify = Inotify::new()?;
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE;
    inotify.watch(folder, flags)?;
    Ok(inotify)
}

fn read_all(folder: &Path, node_name: &str) -> Vec<Pod> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let hidden = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'))
    };
    let mut pods: Vec<Pod> = Vec::new();
    for path in paths.iter().filter(|p| !hidden(p) && p.is_file()) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "read a static pod");
                continue;
            }
        };
        match manifest::parse(&text, &path.to_string_lossy(), node_name, &now) {
            Ok(pod)
                if pods
                    .iter()
                    .any(|p| (p.name(), p.namespace()) == (pod.name(), pod.namespace())) =>
            {
                tracing::warn!(path = %path.display(), pod = pod.name(), "another static pod has this name");
            }
            Ok(pod) => pods.push(pod),
            Err(error) => tracing::warn!(path = %path.display(), %error, "read a static pod"),
        }
    }
    pods
}
