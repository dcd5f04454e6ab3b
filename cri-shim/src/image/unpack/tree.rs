//! The directory that a layer is unpacked into, and every effect on it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Error;
use super::entry::{Attributes, Node};

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const OPAQUE: &str = "trusted.overlay.opaque";

pub struct Tree {
    root: OwnedFd,
    below: Vec<OwnedFd>,
    /// The folder of the last entry: archives list a folder's entries one after the other.
    folder: Option<(Vec<Vec<u8>>, OwnedFd)>,
    /// Folders' times, set last, since making an entry changes its folder's.
    times: Vec<(Vec<Vec<u8>>, Timespec)>,
}

/// Where an entry goes, for effects and for messages.
struct Place<'a> {
    folder: &'a OwnedFd,
    name: &'a [u8],
    entry: &'a str,
}

impl Tree {
    pub fn open(layer: &Path, below: &[PathBuf]) -> Result<Self, Error> {
        let open = |path: &Path| {
            rustix::fs::open(path, FOLDER, Mode::empty())
                .map_err(|source| failed(&path.display().to_string(), "open", source))
        };
        Ok(Self {
            root: open(layer)?,
            below: below
                .iter()
                .map(|path| open(path))
                .collect::<Result<_, _>>()?,
            folder: None,
            times: Vec::new(),
        })
    }

    /// Makes one entry, in place of what the layer had there.
    pub fn apply(
        &mut self,
        path: &[Vec<u8>],
        node: &Node,
        attributes: &Attributes,
        content: &mut impl Read,
    ) -> Result<(), Error> {
        let entry = display(path);
        if *node == Node::Opaque {
            self.folder = None;
            let folder = self.ensure_folder(path, &entry)?;
            return mark_opaque(&folder).map_err(|source| failed(&entry, "mark it opaque", source));
        }
        let Some((name, parents)) = path.split_last() else {
            // The layer's root itself: it is there, and takes the attributes.
            if *node == Node::Directory {
                set_attributes(&self.root, attributes, &entry)?;
                self.times.push((Vec::new(), attributes.modified));
            }
            return Ok(());
        };
        if self.folder.as_ref().is_none_or(|(at, _)| at != parents) {
            let folder = self.ensure_folder(parents, &entry)?;
            self.folder = Some((parents.to_vec(), folder));
        }
        let Some((_, folder)) = &self.folder else {
            return Ok(());
        };
        let folder = folder.try_clone().map_err(|source| Error::Io {
            entry: entry.clone(),
            operation: "open its folder",
            source,
        })?;
        let place = Place {
            folder: &folder,
            name,
            entry: &entry,
        };
        match node {
            Node::Whiteout => place.hide(),
            Node::Directory => {
                // A symlink that an earlier entry made here is replaced, so a cached folder may be another one.
                self.folder = None;
                self.times.push((path.to_vec(), attributes.modified));
                place.make_directory(attributes)
            }
            Node::Hardlink(target) => {
                place.clear()?;
                self.link(target, &place)
            }
            _ => {
                if place.clear()? {
                    self.folder = None;
                }
                place.make(node, attributes, content)
            }
        }
    }

    /// Sets the folders' times.
    pub fn finish(self) -> Result<(), Error> {
        for (path, modified) in self.times.iter().rev() {
            let entry = display(path);
            let folder = match rustix::fs::openat2(
                &self.root,
                &*join(path),
                FOLDER | OFlags::NOFOLLOW,
                Mode::empty(),
                INSIDE,
            ) {
                Ok(folder) => folder,
                // A later entry took the folder's place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(source) => return Err(failed(&entry, "open it", source)),
            };
            set_times(&folder, *modified)
                .map_err(|source| failed(&entry, "set its times", source))?;
        }
        Ok(())
    }

    fn link(&self, target: &[Vec<u8>], place: &Place<'_>) -> Result<(), Error> {
        let failed = |operation| move |source| failed(place.entry, operation, source);
        let (name, parents) = target.split_last().ok_or_else(|| Error::Refused {
            entry: place.entry.to_owned(),
            why: "it is a link to the root",
        })?;
        let folder =
            rustix::fs::openat2(&self.root, &*join(parents), FOLDER, Mode::empty(), INSIDE)
                .map_err(failed("open the folder of its link target in this layer"))?;
        // Without AT_SYMLINK_FOLLOW: a link to a symlink is one more name of the symlink.
        rustix::fs::linkat(
            &folder,
            name.as_slice(),
            place.folder,
            place.name,
            AtFlags::empty(),
        )
        .map_err(failed("link it to its target in this layer"))
    }

    /// Opens a folder of the layer, making what is missing of its path.
    fn ensure_folder(&self, path: &[Vec<u8>], entry: &str) -> Result<OwnedFd, Error> {
        match rustix::fs::openat2(&self.root, &*join(path), FOLDER, Mode::empty(), INSIDE) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT) => {}
            Err(source) => return Err(failed(entry, "open its folder", source)),
        }
        let mut folder = self.root.try_clone().map_err(|source| Error::Io {
            entry: entry.to_owned(),
            operation: "open the layer",
            source,
        })?;
        for depth in 1..=path.len() {
            let (Some(here), Some(name)) = (path.get(..depth), path.get(depth - 1)) else {
                break;
            };
            let made =
                match rustix::fs::mkdirat(&folder, name.as_slice(), Mode::from_raw_mode(0o755)) {
                    Ok(()) => true,
                    Err(Errno::EXIST) => false,
                    Err(source) => return Err(failed(entry, "make its folder", source)),
                };
            folder = rustix::fs::openat2(&self.root, &*join(here), FOLDER, Mode::empty(), INSIDE)
                .map_err(|source| failed(entry, "open its folder", source))?;
            if made {
                self.inherit(&folder, here)
                    .map_err(|source| failed(entry, "set its folder's attributes", source))?;
            }
        }
        Ok(folder)
    }

    /// Gives a folder that the archive doesn't mention the attributes that it has in the layers below.
    fn inherit(&self, folder: &OwnedFd, path: &[Vec<u8>]) -> rustix::io::Result<()> {
        for layer in &self.below {
            let found = match rustix::fs::openat2(
                layer,
                &*join(path),
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                INSIDE,
            ) {
                Ok(found) => rustix::fs::fstat(&found)?,
                Err(Errno::NOENT) => continue,
                // Hidden by a file or a whiteout further up.
                Err(_) => return Ok(()),
            };
            if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                return Ok(());
            }
            rustix::fs::chownat(
                folder,
                "",
                Some(Uid::from_raw(found.st_uid)),
                Some(Gid::from_raw(found.st_gid)),
                AtFlags::EMPTY_PATH,
            )?;
            return set_mode(folder, found.st_mode & 0o7777);
        }
        Ok(())
    }
}

impl Place<'_> {
    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> Error + use<'_> {
        move |source| failed(self.entry, operation, source)
    }

    fn status(&self) -> Result<Option<rustix::fs::Stat>, Error> {
        match rustix::fs::statat(self.folder, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(failed(self.entry, "look at its place", source)),
        }
    }

    /// Removes what the layer has here, and tells whether it was something.
    fn clear(&self) -> Result<bool, Error> {
        let Some(status) = self.status()? else {
            return Ok(false);
        };
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            // The path is one name below a descriptor, and std's removal never follows a link.
            let path = PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
                .join(join(&[self.name.to_vec()]));
            std::fs::remove_dir_all(path).map_err(|source| Error::Io {
                entry: self.entry.to_owned(),
                operation: "replace a folder",
                source,
            })?;
        } else {
            rustix::fs::unlinkat(self.folder, self.name, AtFlags::empty())
                .map_err(self.failed("replace an entry"))?;
        }
        Ok(true)
    }

    /// A whiteout hides what is below; what this layer itself has here stays, as its own entry does in any order.
    fn hide(&self) -> Result<(), Error> {
        match self.status()? {
            None => rustix::fs::mknodat(
                self.folder,
                self.name,
                FileType::CharacterDevice,
                Mode::empty(),
                rustix::fs::makedev(0, 0),
            )
            .map_err(self.failed("make a whiteout")),
            Some(status) if FileType::from_raw_mode(status.st_mode) == FileType::Directory => self
                .open(FOLDER | OFlags::NOFOLLOW)
                .and_then(|folder| mark_opaque(&folder).map_err(self.failed("mark it opaque"))),
            Some(_) => Ok(()),
        }
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd, Error> {
        rustix::fs::openat(
            self.folder,
            self.name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(self.failed("open it"))
    }

    fn make_directory(&self, attributes: &Attributes) -> Result<(), Error> {
        let kind = self
            .status()?
            .map(|status| (FileType::from_raw_mode(status.st_mode), status.st_rdev));
        if kind.map(|(kind, _)| kind) != Some(FileType::Directory) {
            self.clear()?;
            rustix::fs::mkdirat(self.folder, self.name, Mode::from_raw_mode(0o755))
                .map_err(self.failed("make a folder"))?;
        }
        let folder = self.open(FOLDER | OFlags::NOFOLLOW)?;
        // It takes a whiteout's place: what is below stays hidden.
        if kind == Some((FileType::CharacterDevice, 0)) {
            mark_opaque(&folder).map_err(self.failed("mark it opaque"))?;
        }
        set_attributes(&folder, attributes, self.entry)
    }

    fn make(
        &self,
        node: &Node,
        attributes: &Attributes,
        content: &mut impl Read,
    ) -> Result<(), Error> {
        let private = Mode::from_raw_mode(0o600);
        let special = |kind, device| {
            rustix::fs::mknodat(self.folder, self.name, kind, private, device)
                .map_err(self.failed("make a device or pipe"))
        };
        match node {
            Node::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = rustix::fs::openat(self.folder, self.name, flags, private)
                    .map_err(self.failed("make a file"))?;
                let mut file = File::from(file);
                io::copy(content, &mut file).map_err(|source| Error::Io {
                    entry: self.entry.to_owned(),
                    operation: "write it",
                    source,
                })?;
                set_attributes(&file, attributes, self.entry)?;
                return set_times(&file, attributes.modified).map_err(self.failed("set its times"));
            }
            Node::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), self.folder, self.name)
                    .map_err(self.failed("make a symlink"))?;
            }
            Node::CharDevice(device) => special(FileType::CharacterDevice, *device)?,
            Node::BlockDevice(device) => special(FileType::BlockDevice, *device)?,
            Node::Fifo => special(FileType::Fifo, 0)?,
            Node::Directory | Node::Hardlink(_) | Node::Whiteout | Node::Opaque => return Ok(()),
        }
        let made = self.open(OFlags::PATH | OFlags::NOFOLLOW)?;
        set_attributes_of(
            &made,
            attributes,
            self.entry,
            matches!(node, Node::Symlink(_)),
        )?;
        set_times(&made, attributes.modified).map_err(self.failed("set its times"))
    }
}

fn set_attributes(node: &impl AsFd, attributes: &Attributes, entry: &str) -> Result<(), Error> {
    set_attributes_of(node, attributes, entry, false)
}

/// Owner first (chown clears setuid), then extended attributes (chown clears capabilities), then the mode.
fn set_attributes_of(
    node: &impl AsFd,
    attributes: &Attributes,
    entry: &str,
    symlink: bool,
) -> Result<(), Error> {
    let owner = (
        Some(Uid::from_raw(attributes.uid)),
        Some(Gid::from_raw(attributes.gid)),
    );
    rustix::fs::chownat(node, "", owner.0, owner.1, AtFlags::EMPTY_PATH)
        .map_err(|source| failed(entry, "set its owner", source))?;
    for (name, value) in &attributes.xattrs {
        if symlink {
            // There is no way to a symlink's attributes through its descriptor; images have none that matter.
            break;
        }
        match rustix::fs::setxattr(
            by_descriptor(node),
            name.as_slice(),
            value,
            XattrFlags::empty(),
        ) {
            // The file system can't hold it: left out, as by other runtimes.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(source) => return Err(failed(entry, "set an extended attribute", source)),
        }
    }
    if symlink {
        return Ok(());
    }
    set_mode(node, attributes.mode).map_err(|source| failed(entry, "set its mode", source))
}

fn set_mode(node: &impl AsFd, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::chmod(by_descriptor(node), Mode::from_raw_mode(mode))
}

fn mark_opaque(folder: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::setxattr(by_descriptor(folder), OPAQUE, b"y", XattrFlags::empty())
}

fn set_times(node: &impl AsFd, modified: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: modified,
        last_modification: modified,
    };
    rustix::fs::utimensat(node, "", &times, AtFlags::EMPTY_PATH)
}

/// A path to exactly the open node, for calls that an `O_PATH` descriptor is refused by.
fn by_descriptor(node: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", node.as_fd().as_raw_fd())
}

fn join(path: &[Vec<u8>]) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    if path.is_empty() {
        ".".into()
    } else {
        std::ffi::OsString::from_vec(path.join(&b'/'))
    }
}

fn display(path: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&path.join(&b'/')).into_owned()
}

fn failed(entry: &str, operation: &'static str, source: Errno) -> Error {
    Error::Io {
        entry: entry.to_owned(),
        operation,
        source: source.into(),
    }
}
