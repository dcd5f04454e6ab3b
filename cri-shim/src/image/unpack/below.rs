//! The layers below the one that is unpacked, seen as overlayfs will show them: a name may lead through a symlink
//! of a lower layer, and a hard link may be to a file of one.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec};
use rustix::io::Errno;

use super::Error;
use super::entry::{Attributes, Node};
use super::tree::{FOLDER, OPAQUE, Place, Tree, by_descriptor, failed, join};

/// As many as the kernel follows in one path.
const SYMLINKS: usize = 40;
/// Of a real path: nothing on the way may be a symlink.
const REAL: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// A node of the stack.
pub struct Found {
    /// The folder that holds it, in the layer that shows it.
    folder: OwnedFd,
    pub status: Stat,
    /// Whether it is in the layer that is unpacked.
    pub own: bool,
}

impl Found {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.status.st_mode)
    }

    pub fn modified(&self) -> Timespec {
        Timespec {
            tv_sec: self.status.st_mtime,
            tv_nsec: i64::try_from(self.status.st_mtime_nsec).unwrap_or_default(),
        }
    }

    /// Its extended attributes; `path` ends in its name.
    pub fn xattrs(&self, path: &[Vec<u8>]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        path.last()
            .map_or_else(|| Ok(Vec::new()), |name| xattrs(&self.folder, name))
    }

    /// The open folder that holds it.
    pub fn folder(&self) -> &OwnedFd {
        &self.folder
    }
}

impl Tree {
    /// The real path of a folder in the stack: symlinks are followed, inside the image's root, in whichever layer
    /// they are. What isn't there is taken as it is written.
    pub fn resolve(&self, path: &[Vec<u8>], entry: &str) -> Result<Vec<Vec<u8>>, Error> {
        if self.is_real_folder(path) {
            return Ok(path.to_vec());
        }
        let mut left: VecDeque<Vec<u8>> = path.iter().cloned().collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut followed = 0;
        while let Some(name) = left.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real.pop();
                    continue;
                }
                _ => real.push(name),
            }
            let look = |source| failed(entry, "look for its folder", source);
            let Some(found) = self.find(&real).map_err(look)? else {
                continue;
            };
            if found.kind() != FileType::Symlink {
                continue;
            }
            followed += 1;
            if followed > SYMLINKS {
                return Err(look(Errno::LOOP));
            }
            let name = real.pop().unwrap_or_default();
            let target = rustix::fs::readlinkat(&found.folder, name, Vec::new()).map_err(look)?;
            let target = target.as_bytes();
            if target.starts_with(b"/") {
                real.clear();
            }
            for name in target.split(|&byte| byte == b'/').rev() {
                left.push_front(name.to_vec());
            }
        }
        Ok(real)
    }

    fn is_real_folder(&self, path: &[Vec<u8>]) -> bool {
        rustix::fs::openat2(self.root(), &*join(path), FOLDER, Mode::empty(), REAL).is_ok()
    }

    /// What the stack has at a real path.
    pub fn find(&self, path: &[Vec<u8>]) -> rustix::io::Result<Option<Found>> {
        let Some((name, parents)) = path.split_last() else {
            return Ok(None);
        };
        let layers = std::iter::once(self.root()).chain(self.below());
        for (index, layer) in layers.enumerate() {
            let Some(folder) = open_real(layer, parents)? else {
                if hides(layer, parents)? {
                    return Ok(None);
                }
                continue;
            };
            match rustix::fs::statat(&folder, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) if is_whiteout(&status) => return Ok(None),
                Ok(status) => {
                    return Ok(Some(Found {
                        folder,
                        status,
                        own: index == 0,
                    }));
                }
                Err(Errno::NOENT) if hides(layer, parents)? => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Brings a node of a lower layer into this one, as overlayfs would before it is linked to.
    pub fn copy_up(
        &self,
        found: &Found,
        name: &[u8],
        into: &OwnedFd,
        entry: &str,
    ) -> Result<(), Error> {
        let failed = |source| failed(entry, "copy its link target from the layer below", source);
        let status = &found.status;
        let node = match found.kind() {
            FileType::RegularFile => Node::File,
            FileType::Symlink => Node::Symlink(
                rustix::fs::readlinkat(&found.folder, name, Vec::new())
                    .map_err(failed)?
                    .into_bytes(),
            ),
            FileType::CharacterDevice => Node::CharDevice(status.st_rdev),
            FileType::BlockDevice => Node::BlockDevice(status.st_rdev),
            FileType::Fifo => Node::Fifo,
            _ => {
                return Err(Error::Refused {
                    entry: entry.to_owned(),
                    why: "it is a link to what can't be linked to",
                });
            }
        };
        let attributes = Attributes {
            mode: status.st_mode & 0o7777,
            uid: status.st_uid,
            gid: status.st_gid,
            modified: found.modified(),
            xattrs: xattrs(&found.folder, name).map_err(failed)?,
        };
        let place = Place {
            folder: into,
            name,
            entry,
        };
        if node == Node::File {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file =
                rustix::fs::openat(&found.folder, name, flags, Mode::empty()).map_err(failed)?;
            let holes = status.st_blocks * 512 < status.st_size;
            place.make(&node, &attributes, holes, &mut File::from(file))
        } else {
            place.make(&node, &attributes, false, &mut io::empty())
        }
    }
}

/// A folder at a real path of one layer, if it has one there.
fn open_real(layer: &OwnedFd, path: &[Vec<u8>]) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::openat2(layer, &*join(path), FOLDER, Mode::empty(), REAL) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a layer hides what the layers below it have in a folder: some folder on the way is opaque, or isn't one.
fn hides(layer: &OwnedFd, path: &[Vec<u8>]) -> rustix::io::Result<bool> {
    for depth in 1..=path.len() {
        let here = path.get(..depth).unwrap_or_default();
        match rustix::fs::openat2(layer, &*join(here), FOLDER, Mode::empty(), REAL) {
            Ok(folder) => {
                let mut value = [0_u8; 1];
                if rustix::fs::getxattr(by_descriptor(&folder), OPAQUE, &mut value).is_ok() {
                    return Ok(true);
                }
            }
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn is_whiteout(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == 0
}

/// A node's extended attributes, but overlayfs' own.
pub(super) fn xattrs(folder: &OwnedFd, name: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path =
        PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(join(&[name.to_vec()]));
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(&path, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names
        .get(..length)
        .unwrap_or_default()
        .split(|&byte| byte == 0)
    {
        if name.is_empty() || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(&path, name, &mut value)?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}
