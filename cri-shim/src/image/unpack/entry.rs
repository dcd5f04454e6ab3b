//! One tar entry, read into what it asks for.

use std::io::Read;

use rustix::fs::Timespec;
use tar::EntryType;

use super::sparse::{self, Map};
use super::{Error, components};

/// What an entry makes.
#[derive(Debug, PartialEq, Eq)]
pub enum Node {
    Directory,
    /// The content follows in the stream.
    File,
    Symlink(Vec<u8>),
    /// Another name of an earlier entry, from the layer's root.
    Hardlink(Vec<Vec<u8>>),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
    /// Hides this name of the layers below.
    Whiteout,
    /// Hides all that the layers below have in this folder.
    Opaque,
}

/// What an entry says about its node.
#[derive(Debug)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Timespec,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One entry, as far as it makes something.
#[derive(Debug)]
pub struct Wanted {
    pub path: Vec<Vec<u8>>,
    pub node: Node,
    pub attributes: Attributes,
    /// Of a sparse file whose holes the archive's reader doesn't know of.
    pub map: Option<Map>,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Reads an entry; `None` for one that makes nothing (a global header). The path is the components of its name,
/// of a whiteout those of the name that it hides, of an opaque mark those of its folder. Of a sparse file the map may
/// be read, which then is no content any more.
pub fn parse<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Option<Wanted>, Error> {
    let mut bytes = entry.path_bytes().into_owned();
    let name = String::from_utf8_lossy(&bytes).into_owned();
    let refused = |why| Error::Refused {
        entry: name.clone(),
        why,
    };
    let invalid = |source| Error::Io {
        entry: name.clone(),
        operation: "read its header",
        source,
    };
    let mut extended = Extended::default();
    if let Some(extensions) = entry.pax_extensions().map_err(invalid)? {
        for extension in extensions {
            let extension = extension.map_err(invalid)?;
            extended
                .read(extension.key_bytes(), extension.value_bytes())
                .map_err(refused)?;
        }
    }
    if let Some(real) = extended.sparse.name.take() {
        bytes = real;
    }
    let mut path = components(&name, &bytes)?;
    let header = entry.header();
    let kind = header.entry_type();
    let device = || {
        let major = header.device_major().map_err(invalid)?.unwrap_or(0);
        let minor = header.device_minor().map_err(invalid)?.unwrap_or(0);
        Ok(rustix::fs::makedev(major, minor))
    };
    let last = path.last().map_or(&[][..], Vec::as_slice);
    let node = if last == OPAQUE {
        path.pop();
        Node::Opaque
    } else if let Some(hidden) = last.strip_prefix(WHITEOUT) {
        let hidden = hidden.to_vec();
        path.pop();
        match hidden.as_slice() {
            b"" | b"." | b".." => return Err(refused("it is a whiteout of no name")),
            // Other marks of this form belong to a long gone aufs.
            hidden if hidden.starts_with(WHITEOUT) => return Ok(None),
            _ => path.push(hidden),
        }
        Node::Whiteout
    } else {
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Node::File,
            EntryType::Directory => Node::Directory,
            EntryType::Symlink => Node::Symlink(
                entry
                    .link_name_bytes()
                    .ok_or_else(|| refused("it links to nothing"))?
                    .into_owned(),
            ),
            EntryType::Link => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| refused("it links to nothing"))?;
                Node::Hardlink(components(&name, &target)?)
            }
            EntryType::Char => Node::CharDevice(device()?),
            EntryType::Block => Node::BlockDevice(device()?),
            EntryType::Fifo => Node::Fifo,
            EntryType::XGlobalHeader => return Ok(None),
            _ => return Err(refused("it is of a type that a layer can't hold")),
        }
    };
    let id = |value: u64| {
        u32::try_from(value).map_err(|_| refused("its owner's id is larger than 32 bits"))
    };
    // Some writers leave a number that is zero blank.
    let old = header.as_old();
    let number = |field: &[u8], value: std::io::Result<u64>| {
        if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
            Ok(0)
        } else {
            value.map_err(invalid)
        }
    };
    let attributes = Attributes {
        mode: (number(&old.mode, header.mode().map(u64::from))? & 0o7777) as u32,
        uid: id(number(&old.uid, header.uid())?)?,
        gid: id(number(&old.gid, header.gid())?)?,
        modified: match extended.modified {
            Some(modified) => modified,
            None => Timespec {
                tv_sec: number(&old.mtime, header.mtime())?.cast_signed(),
                tv_nsec: 0,
            },
        },
        xattrs: extended.xattrs,
    };
    let map = match node {
        Node::File => {
            let stored = entry.size();
            extended.sparse.map(entry, stored).map_err(refused)?
        }
        _ => None,
    };
    Ok(Some(Wanted {
        path,
        node,
        attributes,
        map,
    }))
}

/// What an entry's extended headers say.
#[derive(Default)]
struct Extended {
    modified: Option<Timespec>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: sparse::Headers,
}

impl Extended {
    fn read(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if key == b"mtime" {
            self.modified = Some(parse_time(value).ok_or("its mtime is not a time")?);
        } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            // These steer overlayfs itself: a layer could redirect a folder to another one.
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                return Err("it carries an attribute of overlayfs's own");
            }
            if name.is_empty() || name.contains(&0) {
                return Err("it carries an attribute with no valid name");
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else {
            self.sparse.read(key, value)?;
        }
        Ok(())
    }
}

/// Seconds since the epoch, with a fraction and a sign (pax).
fn parse_time(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let mut nanoseconds: i64 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        seconds = seconds.checked_sub(1)?;
        nanoseconds = 1_000_000_000 - nanoseconds;
    }
    Some(Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_keep_their_fraction() {
        let time = |text: &[u8]| parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(time(b"1700000000.25"), Some((1_700_000_000, 250_000_000)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.x"), None);
    }
}
