//! The leases that a daemon holds, each in a file beside its socket, so that another daemon can go on with them.
//!
//! The folder is below /run: what is in it means nothing after a reboot, as the times in it are since the machine's
//! start.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use linux::netlink::{LinkChange, MacAddress, Netlink, in_namespace};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::lease::Lease;
use super::message::option;
use crate::host_end;
use crate::interface;
use crate::protocol::{AttachmentKey, Error, Request, all_of};

/// A lease and whose it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Held {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
    netns: PathBuf,
    /// Device and inode: another namespace may come to be at the same path.
    identity: (u64, u64),
    options: BTreeMap<u8, Vec<u8>>,
    broadcast: bool,
    pub priority: Option<u32>,
    pub lease: Lease,
}

/// An interface that is to have a lease.
pub struct Place<'a> {
    pub netns: &'a Path,
    pub ifname: &'a str,
    pub options: &'a BTreeMap<u8, Vec<u8>>,
    /// Servers are asked to answer to all stations of the link.
    pub broadcast: bool,
}

/// The identifier that servers know a client by, and keep an address for.
pub fn client_id(network: &str, attachment: &AttachmentKey) -> Vec<u8> {
    let text = format!(
        "{}/{network}/{}",
        attachment.container_id, attachment.ifname
    );
    // Type 0: no hardware address. A length is one byte.
    std::iter::once(0).chain(text.bytes().take(254)).collect()
}

impl Place<'_> {
    /// Opens the namespace.
    pub fn open(&self) -> io::Result<(OwnedFd, (u64, u64))> {
        let file = fs::File::open(self.netns)?;
        let metadata = file.metadata()?;
        Ok((file.into(), (metadata.dev(), metadata.ino())))
    }

    /// Runs `work` in the namespace as the interface, which is brought up if it is down.
    pub fn inside<T: Send>(
        &self,
        netns: &OwnedFd,
        work: impl FnOnce(&Client<'_>) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        in_namespace(netns, || {
            let mut inner = Netlink::open()?;
            let link = interface::find(&mut inner, self.ifname)?;
            if !link.is_up() {
                let up = LinkChange {
                    up: Some(true),
                    ..LinkChange::default()
                };
                inner.change_link(link.index, &up)?;
            }
            work(&Client {
                index: link.index,
                mac: link.mac.unwrap_or(MacAddress([0; 6])),
                options: self.options,
                broadcast: self.broadcast,
            })
        })?
    }
}

impl Held {
    /// A lease that a request just got.
    pub fn new(
        request: &Request,
        netns: PathBuf,
        identity: (u64, u64),
        options: super::options::Options,
        broadcast: bool,
        lease: Lease,
    ) -> Self {
        Self {
            network: request.network.clone(),
            container_id: request.attachment.container_id.clone(),
            ifname: request.attachment.ifname.clone(),
            netns,
            identity,
            options: options.provided,
            broadcast,
            priority: options.priority,
            lease,
        }
    }

    /// Whose it is.
    pub fn attachment(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            netns: &self.netns,
            ifname: &self.ifname,
            options: &self.options,
            broadcast: self.broadcast,
        }
    }

    /// Whether it is the lease of the namespace with this identity.
    pub fn is_of(&self, identity: (u64, u64)) -> bool {
        self.identity == identity
    }

    /// Runs `work` as the interface; `None` if its namespace is gone.
    pub fn inside<T: Send>(
        &self,
        work: impl FnOnce(&Client<'_>) -> Result<T, Error> + Send,
    ) -> Option<Result<T, Error>> {
        let place = self.place();
        let (netns, identity) = place.open().ok()?;
        self.is_of(identity).then(|| place.inside(&netns, work))
    }

    /// Takes the interface down: its address is another's from now on.
    pub fn disable(&self) -> Option<Result<(), Error>> {
        let place = self.place();
        let (netns, identity) = place.open().ok()?;
        let take_down = || {
            crate::netns::inside(&netns, |inner| {
                interface::retire(inner, &self.ifname, false)
            })
        };
        self.is_of(identity).then(take_down)
    }

    /// Writes it to its file, whole or not at all.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let path = file(folder, &self.network, &self.attachment());
        let fresh = path.with_extension("new");
        let write = || {
            fs::create_dir_all(folder)?;
            fs::write(&fresh, serde_json::to_vec(self)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|cause| failed("write", &path, &cause))
    }
}

/// Where the leases of the daemon at `socket` are.
pub fn folder(socket: &Path) -> PathBuf {
    socket.with_extension("leases")
}

fn file(folder: &Path, network: &str, attachment: &AttachmentKey) -> PathBuf {
    folder.join(host_end::name(network, attachment))
}

/// All leases in `folder`. A file that can't be read is nobody's, and removed.
pub fn load(folder: &Path) -> Vec<Held> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for path in entries.map(|entry| entry.path()) {
        let text = fs::read(&path).unwrap_or_default();
        match serde_json::from_slice::<Held>(&text) {
            Ok(held) => all.push(held),
            Err(_) => {
                let _ = fs::remove_file(&path);
            }
        }
    }
    all
}

/// Removes a lease's file, which may be gone.
pub fn forget(folder: &Path, network: &str, attachment: &AttachmentKey) -> Result<(), Error> {
    let path = file(folder, network, attachment);
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &path, &cause))
        }
        _ => Ok(()),
    }
}

/// Removes the files of a network's attachments that don't exist any more.
pub fn forget_stale(folder: &Path, request: &Request) -> Result<(), Error> {
    let stale = load(folder)
        .into_iter()
        .filter(|held| held.is_stale(request));
    all_of(stale.map(|held| forget(folder, &held.network, &held.attachment())))
}

impl Held {
    /// Whether GC ends it.
    pub fn is_stale(&self, request: &Request) -> bool {
        self.network == request.network && !request.valid_attachments.contains(&self.attachment())
    }
}

/// Adds the client's identifier to what its messages say, unless the configuration provides another.
pub fn identify(options: &mut BTreeMap<u8, Vec<u8>>, request: &Request) {
    options
        .entry(option::CLIENT_ID)
        .or_insert_with(|| client_id(&request.network, &request.attachment));
}

fn failed(operation: &str, path: &Path, cause: &io::Error) -> Error {
    Error::io(format!("{operation} lease {}: {cause}", path.display()))
}
