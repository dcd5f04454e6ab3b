//! The directory that a layer is unpacked into, and every effect on it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Error;
use super::below::{Found, xattrs};
use super::entry::{Attributes, Node, Wanted};

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
pub(super) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// What is copied at once.
const PIECE_BYTES: usize = 64 << 10;
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

pub struct Tree {
    root: OwnedFd,
    below: Vec<OwnedFd>,
    /// The folder of the last entry: archives list a folder's entries one after the other.
    folder: Option<Folder>,
    /// Folders' times, set last, since making an entry changes its folder's.
    times: Vec<(Vec<Vec<u8>>, Timespec)>,
    /// Whether an entry took the place of an earlier one.
    replaces: bool,
    /// What came up from the layers below, and the folders that were made for it: no entry's own, so a whiteout hides
    /// it.
    brought: Vec<Vec<Vec<u8>>>,
}

/// An open folder of the layer.
struct Folder {
    /// As the archive writes it.
    written: Vec<Vec<u8>>,
    /// Where that is in the stack: a lower layer may have a symlink on the way.
    real: Vec<Vec<u8>>,
    open: OwnedFd,
}

/// Where an entry goes, for effects and for messages.
pub(super) struct Place<'a> {
    pub folder: &'a OwnedFd,
    pub name: &'a [u8],
    pub entry: &'a str,
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
            replaces: false,
            brought: Vec::new(),
        })
    }

    /// Makes one entry, in place of what the layer had there, and tells its real path. Of a sparse file what is zero
    /// isn't written.
    pub fn apply(
        &mut self,
        wanted: &Wanted,
        sparse: bool,
        content: &mut impl Read,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let Wanted {
            path,
            node,
            attributes,
            ..
        } = wanted;
        let entry = display(path);
        if *node == Node::Opaque {
            self.folder = None;
            let real = self.resolve(path, &entry)?;
            let folder = self.ensure_folder(&real, &entry)?;
            mark_opaque(&folder).map_err(|source| failed(&entry, "mark it opaque", source))?;
            return Ok(real);
        }
        let Some((name, parents)) = path.split_last() else {
            // The layer's root itself: it is there, and takes the attributes.
            if *node == Node::Directory {
                set_attributes(&self.root, attributes, &entry)?;
                self.times.push((Vec::new(), attributes.modified));
            }
            return Ok(Vec::new());
        };
        if self
            .folder
            .as_ref()
            .is_none_or(|folder| folder.written != parents)
        {
            let real = self.resolve(parents, &entry)?;
            self.folder = Some(Folder {
                written: parents.to_vec(),
                open: self.ensure_folder(&real, &entry)?,
                real,
            });
        }
        let Some(at) = &self.folder else {
            return Ok(Vec::new());
        };
        let mut real = at.real.clone();
        real.push(name.clone());
        let folder = at.open.try_clone().map_err(|source| Error::Io {
            entry: entry.clone(),
            operation: "open its folder",
            source,
        })?;
        let place = Place {
            folder: &folder,
            name,
            entry: &entry,
        };
        if *node != Node::Whiteout {
            self.brought.retain(|path| *path != real);
        }
        match node {
            Node::Whiteout => {
                self.folder = None;
                self.send_back(&real);
                place.hide()?;
            }
            Node::Directory => {
                // A symlink that an earlier entry made here is replaced, so a cached folder may be another one.
                self.folder = None;
                self.times.push((real.clone(), attributes.modified));
                self.replaces |= place.make_directory(attributes)?;
            }
            Node::Hardlink(target) => {
                self.replaces |= place.clear()?;
                self.link(target, &place)?;
            }
            _ => {
                if place.clear()? {
                    self.folder = None;
                    self.replaces = true;
                }
                place.make(node, attributes, sparse, content)?;
            }
        }
        Ok(real)
    }

    /// Sets the folders' times, and tells whether an entry took the place of an earlier one.
    pub fn finish(self) -> Result<bool, Error> {
        // In their order: a folder may be mentioned twice.
        for (path, modified) in &self.times {
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
        Ok(self.replaces)
    }

    /// Links to a node of this layer, or to one of a layer below, which then comes up into this one.
    fn link(&mut self, target: &[Vec<u8>], place: &Place<'_>) -> Result<(), Error> {
        let fail = |operation| move |source| failed(place.entry, operation, source);
        let refused = |why| Error::Refused {
            entry: place.entry.to_owned(),
            why,
        };
        let (name, parents) = target
            .split_last()
            .ok_or_else(|| refused("it is a link to the root"))?;
        let parents = self.resolve(parents, place.entry)?;
        let mut path = parents.clone();
        path.push(name.clone());
        let found = self
            .find(&path)
            .map_err(fail("look for its link target"))?
            .ok_or_else(|| refused("it is a link to what is in no layer up to this one"))?;
        // Without AT_SYMLINK_FOLLOW: a link to a symlink is one more name of the symlink.
        let link = |folder: &OwnedFd| {
            rustix::fs::linkat(
                folder,
                name.as_slice(),
                place.folder,
                place.name,
                AtFlags::empty(),
            )
            .map_err(fail("link it to its target"))
        };
        if found.own {
            return link(found.folder());
        }
        for depth in 1..=parents.len() {
            let path = parents.get(..depth).unwrap_or_default();
            if matches!(self.own(path), Err(Errno::NOENT)) {
                self.brought.push(path.to_vec());
            }
        }
        let folder = self.ensure_folder(&parents, place.entry)?;
        self.copy_up(&found, name, &folder, place.entry)?;
        self.brought.push(path);
        link(&folder)
    }

    /// Removes what came up from below at a path and under it, but for folders that entries have gone into since.
    fn send_back(&mut self, path: &[Vec<u8>]) {
        let (gone, kept) = std::mem::take(&mut self.brought)
            .into_iter()
            .partition(|brought| brought.starts_with(path));
        self.brought = kept;
        let gone: Vec<Vec<Vec<u8>>> = gone;
        for path in gone.iter().rev() {
            let Some((name, parents)) = path.split_last() else {
                continue;
            };
            let Ok(folder) = self.own(parents) else {
                continue;
            };
            // A folder with entries of its own isn't empty.
            let name = name.as_slice();
            if rustix::fs::unlinkat(&folder, name, AtFlags::empty()).is_err() {
                let _ = rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR);
            }
        }
    }

    /// Opens a folder of the layer by its real path.
    fn own(&self, path: &[Vec<u8>]) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(&self.root, &*join(path), FOLDER, Mode::empty(), INSIDE)
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The layers below, the nearest first.
    pub(super) fn below(&self) -> impl Iterator<Item = &OwnedFd> {
        self.below.iter()
    }

    /// Opens a folder of the layer by its real path, making what is missing of it.
    fn ensure_folder(&mut self, path: &[Vec<u8>], entry: &str) -> Result<OwnedFd, Error> {
        match self.own(path) {
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
            // Looked for first: what is made hides it.
            let below = self
                .find(here)
                .map_err(|source| failed(entry, "look for its folder below", source))?;
            let made =
                match rustix::fs::mkdirat(&folder, name.as_slice(), Mode::from_raw_mode(0o755)) {
                    Ok(()) => true,
                    Err(Errno::EXIST) => false,
                    Err(source) => return Err(failed(entry, "make its folder", source)),
                };
            folder = self
                .own(here)
                .map_err(|source| failed(entry, "open its folder", source))?;
            if made {
                self.inherit(&folder, here, below.as_ref())
                    .map_err(|source| failed(entry, "set its folder's attributes", source))?;
            }
        }
        Ok(folder)
    }

    /// Gives a folder that the archive doesn't mention the attributes that it has in the layers below.
    fn inherit(
        &mut self,
        folder: &OwnedFd,
        path: &[Vec<u8>],
        below: Option<&Found>,
    ) -> rustix::io::Result<()> {
        let Some(below) = below.filter(|found| found.kind() == FileType::Directory) else {
            return Ok(());
        };
        let found = &below.status;
        set_owner(folder, found.st_uid, found.st_gid)?;
        for (name, value) in below.xattrs(path)? {
            set_xattr(&by_descriptor(folder), &name, &value)?;
        }
        self.times.push((path.to_vec(), below.modified()));
        set_mode(folder, found.st_mode & 0o7777)
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

    /// Tells whether it took the place of something else.
    fn make_directory(&self, attributes: &Attributes) -> Result<bool, Error> {
        let kind = self
            .status()?
            .map(|status| (FileType::from_raw_mode(status.st_mode), status.st_rdev));
        let mut replaces = false;
        if kind.map(|(kind, _)| kind) != Some(FileType::Directory) {
            replaces = self.clear()?;
            rustix::fs::mkdirat(self.folder, self.name, Mode::from_raw_mode(0o755))
                .map_err(self.failed("make a folder"))?;
        }
        let folder = self.open(FOLDER | OFlags::NOFOLLOW)?;
        if !replaces && kind.is_some() {
            // It may have others, of a folder below or an earlier entry.
            let failed = self.failed("remove an extended attribute");
            for (name, _) in xattrs(self.folder, self.name).map_err(&failed)? {
                // A node on a host that labels has a label.
                if name == b"security.selinux" {
                    continue;
                }
                rustix::fs::removexattr(by_descriptor(&folder), name.as_slice())
                    .map_err(&failed)?;
            }
        }
        // It takes a whiteout's place: what is below stays hidden.
        if kind == Some((FileType::CharacterDevice, 0)) {
            mark_opaque(&folder).map_err(self.failed("mark it opaque"))?;
        }
        set_attributes(&folder, attributes, self.entry)?;
        Ok(replaces)
    }

    pub fn make(
        &self,
        node: &Node,
        attributes: &Attributes,
        sparse: bool,
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
                copy(content, &mut file, sparse).map_err(|source| Error::Io {
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
        if matches!(node, Node::Symlink(_)) {
            set_owner(&made, attributes.uid, attributes.gid)
                .map_err(self.failed("set its owner"))?;
            // There is no way to a symlink's attributes through its descriptor.
            let path = PathBuf::from(by_descriptor(self.folder)).join(join(&[self.name.to_vec()]));
            for (name, value) in &attributes.xattrs {
                supported(rustix::fs::lsetxattr(
                    &path,
                    name.as_slice(),
                    value,
                    XattrFlags::empty(),
                ))
                .map_err(self.failed("set an extended attribute"))?;
            }
        } else {
            set_attributes(&made, attributes, self.entry)?;
        }
        set_times(&made, attributes.modified).map_err(self.failed("set its times"))
    }
}

/// Copies a file; the holes of a sparse one stay holes.
fn copy(content: &mut impl Read, file: &mut File, sparse: bool) -> io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut size = 0;
    loop {
        piece.clear();
        let n = content.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if n == 0 {
            return if sparse { file.set_len(size) } else { Ok(()) };
        }
        size += n as u64;
        if sparse && piece.iter().all(|&byte| byte == 0) {
            file.seek(SeekFrom::Current(n.cast_signed() as i64))?;
        } else {
            file.write_all(&piece)?;
        }
    }
}

/// Owner first (chown clears setuid), then extended attributes (chown clears capabilities), then the mode.
fn set_attributes(node: &impl AsFd, attributes: &Attributes, entry: &str) -> Result<(), Error> {
    set_owner(node, attributes.uid, attributes.gid)
        .map_err(|source| failed(entry, "set its owner", source))?;
    for (name, value) in &attributes.xattrs {
        set_xattr(&by_descriptor(node), name, value)
            .map_err(|source| failed(entry, "set an extended attribute", source))?;
    }
    set_mode(node, attributes.mode).map_err(|source| failed(entry, "set its mode", source))
}

fn set_owner(node: &impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(node, "", uid, gid, AtFlags::EMPTY_PATH)
}

fn set_xattr(path: &str, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    supported(rustix::fs::setxattr(path, name, value, XattrFlags::empty()))
}

/// An attribute that the file system can't hold is left out, as by other runtimes.
fn supported(set: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match set {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn set_mode(node: &impl AsFd, mode: u32) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::fchmod(node, mode) {
        // Opened as a mere path.
        Err(Errno::BADF) => rustix::fs::chmod(by_descriptor(node), mode),
        other => other,
    }
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
pub(super) fn by_descriptor(node: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", node.as_fd().as_raw_fd())
}

pub(super) fn join(path: &[Vec<u8>]) -> std::ffi::OsString {
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

pub(super) fn failed(entry: &str, operation: &'static str, source: Errno) -> Error {
    Error::Io {
        entry: entry.to_owned(),
        operation,
        source: source.into(),
    }
}
