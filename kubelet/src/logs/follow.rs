//! Following a log: what is there, and then each line once as it comes, over rotations, until the container ends.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::inotify::WatchFlags;
use tokio::sync::mpsc;

use super::{Position, ReadError, Reader};
use crate::inotify::Inotify;
use crate::runtime::RuntimeCache;

/// A log to be sent to a client.
pub struct Follow {
    /// The log file's present path.
    pub path: PathBuf,
    /// The file, at the place from which it is wanted.
    pub reader: Reader,
    /// Whose it is.
    pub container_id: String,
    /// Whether what comes later is wanted too.
    pub follow: bool,
}

/// A log writer may be a moment behind its container's end.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Sends the log to `out` until it ends, or nobody listens any more.
pub async fn follow(
    what: Follow,
    cache: RuntimeCache,
    out: mpsc::Sender<Result<Bytes, ReadError>>,
) {
    if let Err(error) = run(what, cache, &out).await {
        // The client may be gone already.
        let _ = out.send(Err(error)).await;
    }
}

async fn run(
    mut what: Follow,
    cache: RuntimeCache,
    out: &mpsc::Sender<Result<Bytes, ReadError>>,
) -> Result<(), ReadError> {
    let reader = &mut what.reader;
    let watch = if what.follow { watch(&what.path) } else { None };
    let changed = cache.changed();
    let mut ending = false;
    loop {
        let position = {
            let mut chunk = Vec::new();
            let position = reader.read(&mut chunk)?;
            if !chunk.is_empty() && out.send(Ok(chunk.into())).await.is_err() {
                return Ok(());
            }
            position
        };
        match position {
            Position::Limit => return Ok(()),
            Position::More => continue,
            Position::End => {}
        }
        if reader.rotated() {
            // The writer has moved on to the new file, so this one is complete: but only what was read after that
            // was seen is all of it.
            let mut rest = Vec::new();
            while reader.read(&mut rest)? == Position::More {}
            reader.reopen()?;
            if let Some(watch) = &watch {
                let _ = watch.watch(&what.path, WatchFlags::MODIFY);
            }
            if !rest.is_empty() && out.send(Ok(rest.into())).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let Some(watch) = &watch else {
            return Ok(());
        };
        if ending {
            return Ok(());
        }
        let ended = changed.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if cache
            .container(&what.container_id)
            .is_none_or(|c| c.exit().is_some())
        {
            // One last look, after the writer had its chance.
            let _ = tokio::time::timeout(LAST_WORDS, watch.changed()).await;
            ending = true;
            continue;
        }
        tokio::select! {
            () = out.closed() => return Ok(()),
            () = ended => {}
            woken = watch.changed() => if woken.is_err() { return Ok(()) },
        }
    }
}

/// The file, for what is written to it, and its folder, for its successor.
fn watch(path: &std::path::Path) -> Option<Inotify> {
    let watch = Inotify::new().ok()?;
    watch.watch(path, WatchFlags::MODIFY).ok()?;
    watch
        .watch(path.parent()?, WatchFlags::CREATE | WatchFlags::MOVED_TO)
        .ok()?;
    Some(watch)
}
