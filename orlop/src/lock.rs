//! One process a folder.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::layout::Layout;

/// Held as long as the process uses the folder; the kernel lets go when it ends, however it ends.
pub struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Makes the folders of `layout`, root's alone, and takes their lock.
    pub fn folders(layout: &Layout) -> anyhow::Result<Self> {
        for folder in [layout.root(), &layout.run()] {
            let make = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            make.with_context(|| format!("create {}", folder.display()))?;
        }
        Self::take(&layout.lock())
    }

    /// Takes the lock, or says who has it.
    fn take(path: &Path) -> anyhow::Result<Self> {
        let open = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut file = open.with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                Ok(Self(file))
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                let folder = path.parent().unwrap_or(path).display();
                bail!(
                    "process {holder} already runs orlop in {folder}: stop it, or give another folder with --root"
                )
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("lock {}", path.display()))
            }
        }
    }
}
