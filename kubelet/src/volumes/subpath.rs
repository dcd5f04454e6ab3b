//! `subPath`: a part of a volume, found without leaving it.
//!
//! What is in a volume is the containers' doing, so a path in it may be a symlink to anywhere, and may be changed
//! into one at any moment. It is resolved by the kernel with the volume as root, once, and from then on named by
//! the descriptor that it resolved to.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// A sub-path that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is absolute or has `..` in it.
    #[error("subPath {0:?} must be relative and stay in its volume")]
    Invalid(String),
    /// The file system refused.
    #[error("failed to prepare subPath {path:?}: {source}")]
    Io {
        /// The path in the volume.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A place in a volume. The path is good as long as this lives.
#[derive(Debug)]
pub struct SubPath {
    descriptor: OwnedFd,
}

impl SubPath {
    /// A path by which any process of this host reaches the place.
    pub fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.descriptor.as_raw_fd()
        )
    }
}

/// Resolves `path` in `volume`; a folder that isn't there is made, with the permissions of the volume, so that who
/// may write to the volume may write to its parts.
pub fn resolve(volume: &Path, path: &str) -> Result<SubPath, Error> {
    let relative = Path::new(path);
    let plain = relative
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(Error::Invalid(path.to_owned()));
    }
    let refused = |source: rustix::io::Errno| Error::Io {
        path: path.to_owned(),
        source: source.into(),
    };
    let root = rustix::fs::open(
        volume,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(refused)?;
    match open_in(&root, relative) {
        Ok(descriptor) => return Ok(SubPath { descriptor }),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(refused(error)),
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root).map_err(refused)?.st_mode & 0o7777);
    let mut parent = open_in(&root, Path::new(".")).map_err(refused)?;
    let mut walked = std::path::PathBuf::new();
    for part in relative.components() {
        walked.push(part);
        parent = match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::RWXU) {
            Ok(()) => open_made(&parent, part.as_os_str(), mode).map_err(refused)?,
            Err(rustix::io::Errno::EXIST) => open_in(&root, &walked).map_err(refused)?,
            Err(error) => return Err(refused(error)),
        };
    }
    Ok(SubPath { descriptor: parent })
}

/// Opens a folder that was just made, and gives it its mode, which the umask doesn't touch. What a container put in
/// its place since isn't followed.
fn open_made(parent: &OwnedFd, name: &OsStr, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchmod(&folder, mode)?;
    Ok(folder)
}

fn open_in(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_out_of_the_volume_stays_in_it() {
        let root = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/etc", root.path().join("out")).expect("a link");
        let inside = resolve(root.path(), "out/passwd");
        assert!(matches!(inside, Err(Error::Io { .. })), "{inside:?}");
        assert!(matches!(
            resolve(root.path(), "../x"),
            Err(Error::Invalid(_))
        ));
    }

    #[test]
    fn a_missing_folder_is_made() {
        let root = tempfile::tempdir().expect("a folder");
        let place = resolve(root.path(), "a/b").expect("made");
        std::fs::write(Path::new(&place.path()).join("f"), "x").expect("written");
        assert!(root.path().join("a/b/f").exists());
    }

    #[test]
    fn a_missing_folder_has_the_permissions_of_its_volume() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a folder");
        let mode = std::fs::Permissions::from_mode(0o2777);
        std::fs::set_permissions(root.path(), mode).expect("set");
        resolve(root.path(), "a/b").expect("made");
        for folder in ["a", "a/b"] {
            let made = std::fs::metadata(root.path().join(folder)).expect("there");
            assert_eq!(made.permissions().mode() & 0o7777, 0o2777, "{folder}");
        }
    }
}
