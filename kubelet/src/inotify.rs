//! Waiting for changes of files: inotify as a future.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// A set of watches.
pub struct Inotify {
    descriptor: AsyncFd<OwnedFd>,
}

impl Inotify {
    /// No watches yet.
    // The constructor is deprecated for types that may close their descriptor early; an `OwnedFd` can't, and the
    // one that replaces it is unsafe.
    #[expect(deprecated)]
    pub fn new() -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            descriptor: AsyncFd::new(descriptor)?,
        })
    }

    /// Watches a folder or a file, besides what is watched already.
    pub fn watch(&self, path: &Path, flags: WatchFlags) -> io::Result<()> {
        inotify::add_watch(self.descriptor.get_ref(), path, flags)
            .map(drop)
            .map_err(Into::into)
    }

    /// Waits until something happened, and takes in all that did.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.descriptor.readable().await?;
            if drain(self.descriptor.get_ref())? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// Reads all events that there are; tells whether there was one.
fn drain(descriptor: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(descriptor, &mut buffer);
    let mut any = false;
    loop {
        match reader.next() {
            Ok(_) => any = true,
            Err(rustix::io::Errno::AGAIN) => return Ok(any),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
