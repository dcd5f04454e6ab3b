//! Leases in files, in upstream's form.
//!
//! `<dataDir>/<network>/<address>` holds the owner as `<container id>\r\n<interface>`, `last_reserved_ip.<set>` the
//! address that was last given out of a set, and `lock` is locked by `flock` while any of it is read or changed.
//!
//! A lease appears whole: it is written under another name, then linked. `kill -9` in between leaves at most that
//! other file, which the next reservation overwrites.
//!
//! Beyond upstream's form, `owners/<container id>_<interface>` lists the addresses that are being given to an owner,
//! written before each of them is taken, so that neither ADD nor DEL reads all leases. It is a hint: what it lists is
//! verified, and without it all leases are read, as after a change from another implementation.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::protocol::{AttachmentKey, Error, all_of};

/// The leases of one network, locked for as long as this lives.
pub(super) struct Store {
    dir: PathBuf,
    _lock: File,
}

/// One lease file's content.
struct Owner {
    container_id: String,
    /// None in files of releases that did not write it.
    ifname: Option<String>,
}

const LOCK: &str = "lock";
const UNFINISHED: &str = "unfinished_lease";
const OWNERS: &str = "owners";
/// Of a file.
const LONGEST_NAME: usize = 255;

impl Store {
    /// Opens the network's leases, made if they are not there.
    pub fn lock(data_dir: &Path, network: &str) -> Result<Self, Error> {
        let dir = data_dir.join(network);
        fs::create_dir_all(&dir).map_err(|cause| failed("make folder", &dir, &cause))?;
        Self::lock_dir(dir)
    }

    /// Opens the network's leases; `None` if it never had any.
    pub fn lock_if_there(data_dir: &Path, network: &str) -> Result<Option<Self>, Error> {
        let dir = data_dir.join(network);
        if dir.is_dir() {
            Self::lock_dir(dir).map(Some)
        } else {
            Ok(None)
        }
    }

    fn lock_dir(dir: PathBuf) -> Result<Self, Error> {
        let path = dir.join(LOCK);
        let open = || {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            // A signal without a handler doesn't interrupt, one with a handler may.
            while let Err(errno) = flock(&file, FlockOperation::LockExclusive) {
                if errno != rustix::io::Errno::INTR {
                    return Err(io::Error::from(errno));
                }
            }
            Ok(file)
        };
        let lock = open().map_err(|cause| failed("lock", &path, &cause))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Takes an address for `owner`; false if it is taken. Remembered as the last one given out of set `set`.
    pub fn reserve(
        &mut self,
        owner: &AttachmentKey,
        ip: IpAddr,
        set: usize,
    ) -> Result<bool, Error> {
        let path = self.dir.join(ip.to_string());
        if path.exists() {
            return Ok(false);
        }
        self.note(owner, ip)?;
        let unfinished = self.dir.join(UNFINISHED);
        let content = format!("{}\r\n{}", owner.container_id.trim(), owner.ifname);
        let write = || {
            write_file(&unfinished, content.as_bytes())?;
            fs::hard_link(&unfinished, &path)
        };
        match write() {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(cause) => return Err(failed("write lease", &path, &cause)),
        }
        // If it stays, the next one overwrites it.
        let _ = fs::remove_file(&unfinished);
        let last = self.last_reserved_file(set);
        write_file(&last, ip.to_string().as_bytes())
            .map_err(|cause| failed("write", &last, &cause))?;
        Ok(true)
    }

    /// Writes down that `ip` is going to be the owner's.
    fn note(&self, owner: &AttachmentKey, ip: IpAddr) -> Result<(), Error> {
        let Some(path) = self.note_file(owner) else {
            return Ok(());
        };
        let append = || {
            let open = || {
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&path)
            };
            let mut file = match open() {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(self.dir.join(OWNERS))?;
                    open()?
                }
                other => other?,
            };
            writeln!(file, "{ip}")
        };
        append().map_err(|cause| failed("write", &path, &cause))
    }

    /// Where the owner's addresses are noted; none for a name that no file can have.
    fn note_file(&self, owner: &AttachmentKey) -> Option<PathBuf> {
        let name = format!("{}_{}", owner.container_id.trim(), owner.ifname);
        (name.len() <= LONGEST_NAME && !name.contains('/'))
            .then(|| self.dir.join(OWNERS).join(name))
    }

    /// The address that was last given out of a set.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_reserved_file(set))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// The addresses that an attachment holds as far as they were noted.
    pub fn noted_leases_of(&self, owner: &AttachmentKey) -> Result<Vec<IpAddr>, Error> {
        let text = self
            .note_file(owner)
            .and_then(|path| fs::read_to_string(path).ok())
            .unwrap_or_default();
        let mut noted: Vec<IpAddr> = text.lines().filter_map(|line| line.parse().ok()).collect();
        noted.sort();
        noted.dedup();
        self.held_by(owner, noted)
    }

    /// The addresses that an attachment holds.
    pub fn leases_of(&self, owner: &AttachmentKey) -> Result<Vec<IpAddr>, Error> {
        let noted = self.noted_leases_of(owner)?;
        if noted.is_empty() {
            self.held_by(owner, self.list()?)
        } else {
            Ok(noted)
        }
    }

    fn held_by(
        &self,
        owner: &AttachmentKey,
        ips: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Vec<IpAddr>, Error> {
        let mut held = Vec::new();
        for ip in ips {
            if self.owner(ip)?.is_some_and(|present| present.is(owner)) {
                held.push(ip);
            }
        }
        Ok(held)
    }

    /// Gives back all addresses of an attachment.
    pub fn release(&mut self, owner: &AttachmentKey) -> Result<(), Error> {
        let held = self.leases_of(owner)?;
        all_of(
            held.into_iter()
                .map(|ip| remove(&self.dir.join(ip.to_string()))),
        )?;
        self.note_file(owner).map_or(Ok(()), |path| remove(&path))
    }

    /// Gives back all addresses but those of `valid` attachments. A lease without a readable owner is nobody's.
    pub fn release_all_but(&mut self, valid: &[AttachmentKey]) -> Result<(), Error> {
        let mut unowned = Vec::new();
        for ip in self.list()? {
            let owner = self.owner(ip)?;
            if !owner.is_some_and(|owner| valid.iter().any(|valid| owner.is(valid))) {
                unowned.push(self.dir.join(ip.to_string()));
            }
        }
        let kept: Vec<PathBuf> = valid
            .iter()
            .filter_map(|valid| self.note_file(valid))
            .collect();
        let notes = fs::read_dir(self.dir.join(OWNERS))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        unowned.extend(notes.filter(|note| !kept.contains(note)));
        all_of(unowned.iter().map(|path| remove(path)))
    }

    fn list(&self) -> Result<Vec<IpAddr>, Error> {
        let list = || {
            let names = fs::read_dir(&self.dir)?.map(|entry| entry.map(|entry| entry.file_name()));
            let ips =
                names.filter_map(|name| name.map(|name| name.to_str()?.parse().ok()).transpose());
            ips.collect::<io::Result<Vec<IpAddr>>>()
        };
        list().map_err(|cause| failed("list leases in", &self.dir, &cause))
    }

    fn owner(&self, ip: IpAddr) -> Result<Option<Owner>, Error> {
        let path = self.dir.join(ip.to_string());
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let Some(container_id) = lines.next().map(str::to_owned) else {
                    return Ok(None);
                };
                Ok(Some(Owner {
                    container_id,
                    ifname: lines.next().map(str::to_owned),
                }))
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("read lease", &path, &cause)),
        }
    }

    fn last_reserved_file(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }
}

impl Owner {
    fn is(&self, key: &AttachmentKey) -> bool {
        self.container_id == key.container_id.trim()
            && self
                .ifname
                .as_ref()
                .is_none_or(|ifname| *ifname == key.ifname)
    }
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?
        .write_all(content)
}

/// Removes a file, which may be gone.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, &cause))
        }
        _ => Ok(()),
    }
}

fn failed(operation: &str, path: &Path, cause: &io::Error) -> Error {
    Error::io(format!("{operation} {}: {cause}", path.display()))
}
