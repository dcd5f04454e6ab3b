//! Rotating logs that the runtime doesn't rotate itself: the file is renamed, the runtime told to open it anew, and
//! old ones are removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::runtime::{Cri, RuntimeCache};

/// A `stat` of each log this often; a container that writes faster overshoots by what it writes in between.
const PERIOD: Duration = Duration::from_secs(10);

/// Rotates logs until `shutdown`.
pub async fn rotate_logs(
    config: Arc<Config>,
    cri: Cri,
    cache: RuntimeCache,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let mut large = Vec::new();
        cache.for_each(|pod| {
            let running = pod
                .containers
                .iter()
                .filter(|c| c.is_running() && !c.log_path.is_empty());
            large.extend(running.map(|c| (c.id.clone(), PathBuf::from(&c.log_path))));
        });
        large.retain(|(_, path)| {
            std::fs::metadata(path).is_ok_and(|m| m.len() > config.log_max_bytes)
        });
        for (id, path) in large {
            if let Err(error) = rotate(&cri, &id, &path, config.log_max_files).await {
                tracing::warn!(path = %path.display(), error, "rotate a container's log; it will be tried again");
            }
        }
    }
}

async fn rotate(cri: &Cri, id: &str, path: &Path, max_files: u32) -> Result<(), String> {
    // One of the kept files is the present one.
    remove_oldest(path, max_files.saturating_sub(2) as usize).map_err(|error| error.to_string())?;
    let stamp = k8s_openapi::jiff::fmt::strtime::format("%Y%m%d-%H%M%S", Timestamp::now())
        .unwrap_or_default();
    let mut old = path.as_os_str().to_owned();
    old.push(format!(".{stamp}"));
    std::fs::rename(path, &old).map_err(|error| format!("rename: {error}"))?;
    if let Err(error) = cri.reopen_container_log(id).await {
        // Nothing was reopened, so the runtime still writes the renamed file: it gets its name back.
        let _ = std::fs::rename(&old, path);
        return Err(error.to_string());
    }
    Ok(())
}

/// Removes rotated files, by their age in their names, until `keep` are left.
fn remove_oldest(path: &Path, keep: usize) -> std::io::Result<()> {
    let mut old = rotated(path)?;
    old.sort();
    let surplus = old.len().saturating_sub(keep);
    for path in old.iter().take(surplus) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// The rotated files of a log: its name, and more after a point.
pub fn rotated(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let entries = std::fs::read_dir(folder)?.flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    Ok(ours.map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rotated_files_go_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0.log");
        for name in [
            "0.log",
            "0.log.20260101-000000",
            "0.log.20260103-000000",
            "0.log.20260102-000000",
            "1.log",
        ] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        remove_oldest(&path, 1).expect("removed");
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["0.log", "0.log.20260103-000000", "1.log"]);
    }
}
