//! What a container left as its termination message (`terminationMessagePath`, `terminationMessagePolicy`).

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cri_api::v1;

use super::labels;
use crate::logs::entry;

/// The most that is read of a termination message.
const MESSAGE_BYTES: u64 = 4096;
/// The most that is taken from the log instead: lines and bytes.
const LOG_LINES: usize = 80;
const LOG_BYTES: u64 = 2048;

/// The last words of an exited container; none if it left none, and then the runtime's own remark stands.
pub fn read(status: &v1::ContainerStatus) -> Option<String> {
    if status.state() != v1::ContainerState::ContainerExited {
        return None;
    }
    let path = status.annotations.get(labels::TERMINATION_MESSAGE_PATH)?;
    let mount = status.mounts.iter().find(|m| &m.container_path == path);
    let written = mount.and_then(|m| message(Path::new(&m.host_path)));
    if written.is_some() {
        return written;
    }
    let fall_back = status
        .annotations
        .get(labels::TERMINATION_MESSAGE_POLICY)
        .is_some_and(|policy| policy == "FallbackToLogsOnError");
    if fall_back && status.exit_code != 0 {
        return log_tail(Path::new(&status.log_path));
    }
    None
}

fn message(path: &Path) -> Option<String> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(MESSAGE_BYTES).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn log_tail(path: &Path) -> Option<String> {
    let mut file = open(path)?;
    let length = file.metadata().ok()?.len();
    // Room for the time stamps before each line, which don't count.
    let window = LOG_BYTES * 4;
    let cut = length > window;
    if cut {
        file.seek(SeekFrom::Start(length - window)).ok()?;
    }
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes).ok()?;
    let mut lines: Vec<&[u8]> = bytes
        .split_inclusive(|b| *b == b'\n')
        .skip(usize::from(cut))
        .collect();
    let first = lines.len().saturating_sub(LOG_LINES);
    lines.drain(..first);
    let mut text: Vec<u8> = Vec::new();
    for line in lines {
        let Some(entry) = entry::parse(line) else {
            continue;
        };
        text.extend_from_slice(entry.content);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let excess = text.len().saturating_sub(LOG_BYTES as usize);
    text.drain(..excess);
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The file was made by us, but its content and kind may be the container's doing: never follow a link, never
/// wait for a FIFO's writer.
fn open(path: &Path) -> Option<std::fs::File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}
