//! A folder of files that changes as a whole (upstream's atomic writer).
//!
//! ```text
//! <volume>/..2026_01_02_03_04_05.<n>/key     the files
//! <volume>/..data -> ..2026_01_02_03_04_05.<n>
//! <volume>/key -> ..data/key                 what the container sees
//! ```
//!
//! A change writes a new folder beside the old one and renames one symlink over `..data`: a reader sees all of the
//! old files or all of the new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

/// The files of a volume, by path below it.
pub type Payload = BTreeMap<String, File>;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its content: possibly a secret.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it; none: root.
    pub uid: Option<u32>,
}

/// A volume's folder that couldn't be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that would leave the volume.
    #[error("write volume {}: invalid path {path:?}", volume.display())]
    Path {
        /// The volume's folder.
        volume: PathBuf,
        /// What was asked for.
        path: String,
    },
    /// The file system refused.
    #[error("write volume {}: {source}", volume.display())]
    Io {
        /// The volume's folder.
        volume: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `volume` hold exactly `payload`; tells whether anything was written. `gid` owns all files, if given.
pub fn write(volume: &Path, payload: &Payload, gid: Option<u32>) -> Result<bool, Error> {
    for path in payload.keys() {
        let plain = Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
        if path.is_empty() || !plain || path.starts_with("..") {
            return Err(Error::Path {
                volume: volume.to_owned(),
                path: path.clone(),
            });
        }
    }
    write_checked(volume, payload, gid).map_err(|source| Error::Io {
        volume: volume.to_owned(),
        source,
    })
}

fn write_checked(volume: &Path, payload: &Payload, gid: Option<u32>) -> io::Result<bool> {
    make_dir(volume, gid)?;
    let old = fs::read_link(volume.join(DATA)).ok();
    if old
        .as_ref()
        .is_some_and(|old| holds(&volume.join(old), payload, gid))
    {
        return Ok(false);
    }
    let fresh = new_dir(volume, gid)?;
    let folder = volume.join(&fresh);
    for (path, file) in payload {
        write_file(&folder, Path::new(path), file, gid)?;
    }
    let temporary = volume.join(DATA_NEW);
    remove_if_there(&temporary)?;
    symlink(&fresh, &temporary)?;
    fs::rename(&temporary, volume.join(DATA))?;
    link_entries(volume, payload)?;
    remove_stale(volume, payload, &fresh)?;
    Ok(true)
}

fn make_dir(path: &Path, gid: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)?;
    let mode = if gid.is_some() { 0o2775 } else { 0o755 };
    if let Some(gid) = gid {
        chown(path, None, Some(gid))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A folder whose name no other has: the time, and a number.
fn new_dir(volume: &Path, gid: Option<u32>) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::now();
    let stamp = jiff::fmt::strtime::format("%Y_%m_%d_%H_%M_%S", now).unwrap_or_default();
    loop {
        let name = PathBuf::from(format!("..{stamp}.{}", rand::random::<u32>()));
        match fs::DirBuilder::new().mode(0o755).create(volume.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                make_dir(&volume.join(&name), gid)?;
                return Ok(name);
            }
        }
    }
}

fn write_file(folder: &Path, path: &Path, file: &File, gid: Option<u32>) -> io::Result<()> {
    let mut parent = folder.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        make_dir(&parent, gid)?;
    }
    let full = folder.join(path);
    let mut out = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&full)?;
    out.write_all(&file.data)?;
    if file.uid.is_some() || gid.is_some() {
        chown(&full, file.uid, gid)?;
    }
    // The umask and chown may have taken bits away.
    fs::set_permissions(&full, fs::Permissions::from_mode(mode_for(file.mode, gid)))
}

/// A group that owns a volume may read what is in it.
fn mode_for(mode: u32, gid: Option<u32>) -> u32 {
    if gid.is_some() { mode | 0o440 } else { mode }
}

fn holds(folder: &Path, payload: &Payload, gid: Option<u32>) -> bool {
    let mut present = BTreeSet::new();
    if collect(folder, Path::new(""), &mut present).is_err() || present.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let full = folder.join(path);
        let same = |meta: fs::Metadata| {
            meta.mode() & 0o7777 == mode_for(file.mode, gid)
                && gid.is_none_or(|gid| meta.gid() == gid)
                && file.uid.is_none_or(|uid| meta.uid() == uid)
        };
        present.contains(Path::new(path))
            && fs::metadata(&full).is_ok_and(same)
            && fs::read(&full).is_ok_and(|data| data == file.data)
    })
}

fn collect(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// The names that the container sees: the first part of each path.
fn visible(payload: &Payload) -> BTreeSet<&str> {
    payload
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect()
}

fn link_entries(volume: &Path, payload: &Payload) -> io::Result<()> {
    for name in visible(payload) {
        match symlink(Path::new(DATA).join(name), volume.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn remove_stale(volume: &Path, payload: &Payload, fresh: &Path) -> io::Result<()> {
    let visible = visible(payload);
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == DATA || Path::new(&name) == fresh || visible.contains(text.as_ref()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File {
            data: text.into(),
            mode: 0o640,
            uid: None,
        };
        files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), file(text)))
            .collect()
    }

    #[test]
    fn a_change_swaps_all_files_and_drops_what_went() {
        let root = tempfile::tempdir().expect("a folder");
        let volume = root.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("d/e", "2")]), None).expect("written"));
        assert_eq!(fs::read_to_string(volume.join("d/e")).expect("read"), "2");
        assert_eq!(
            fs::read_link(volume.join("a")).expect("a link"),
            Path::new("..data/a")
        );
        assert_eq!(
            fs::metadata(volume.join("a")).expect("meta").mode() & 0o777,
            0o640
        );
        let before = fs::read_link(volume.join("..data")).expect("a link");
        assert!(!write(&volume, &payload(&[("a", "1"), ("d/e", "2")]), None).expect("unchanged"));
        assert_eq!(
            fs::read_link(volume.join("..data")).expect("a link"),
            before
        );
        assert!(write(&volume, &payload(&[("a", "3")]), None).expect("written"));
        assert_eq!(fs::read_to_string(volume.join("a")).expect("read"), "3");
        assert!(!volume.join("d").exists() && !volume.join(before).exists());
    }

    #[test]
    fn a_path_out_of_the_volume_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        for path in ["../x", "/x", "a/../../x", "..data", ""] {
            assert!(
                matches!(
                    write(root.path(), &payload(&[(path, "")]), None),
                    Err(Error::Path { .. })
                ),
                "{path}"
            );
        }
    }
}
