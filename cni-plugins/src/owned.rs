//! Elements of sets that each carry their owner in their comment, by which DEL and GC find them without another record.

use linux::nftables::{Batch, BatchError, Element, ElementDump, Socket, Table};

use crate::protocol::{AttachmentKey, Request};

/// Whose an element is: its comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(String);

/// The longest comment, in bytes.
const COMMENT: usize = 127;

impl Owner {
    /// The request's attachment.
    pub fn of(request: &Request) -> Self {
        Self::new(&request.network, &request.attachment)
    }

    /// The network comes last: what is too long for a comment is cut.
    pub fn new(network: &str, attachment: &AttachmentKey) -> Self {
        let text = format!(
            "{} {} {network}",
            attachment.container_id, attachment.ifname
        );
        Self(text[..text.floor_char_boundary(COMMENT)].to_owned())
    }

    /// Whether it is an attachment to `network`.
    pub fn is_of(&self, network: &str) -> bool {
        match self.0.splitn(3, ' ').nth(2) {
            Some(own) if self.0.len() > COMMENT - 4 => network.starts_with(own),
            own => own == Some(network),
        }
    }

    /// As an element's comment.
    pub fn comment(&self) -> Option<&str> {
        Some(&self.0)
    }
}

/// Owners in `request`'s network that don't exist any more, for GC.
pub fn is_stale(request: &Request) -> impl Fn(&Owner) -> bool + Copy {
    let valid = |owner: &Owner| {
        request
            .valid_attachments
            .iter()
            .any(|attachment| Owner::new(&request.network, attachment) == *owner)
    };
    move |owner| owner.is_of(&request.network) && !valid(owner)
}

/// Two processes may change the same sets at once; the later one's transaction is refused and made again.
const ATTEMPTS: u32 = 5;
const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;

/// Removes every element of `sets` whose owner is `unwanted`. A table that isn't there is no error.
///
/// # Errors
/// The kernel's.
pub fn remove(
    socket: &mut Socket,
    table: &Table,
    sets: &[&str],
    unwanted: impl Fn(&Owner) -> bool,
) -> Result<(), BatchError> {
    let mut attempt = 1;
    loop {
        let mut batch = Batch::new();
        for set in sets {
            for element in elements(socket, table, set)? {
                if element
                    .comment
                    .is_some_and(|comment| unwanted(&Owner(comment)))
                {
                    batch.delete_element(table, set, &Element::key(&element.key));
                }
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        match batch.commit(socket) {
            // Somebody else removed some of them in between.
            Err(BatchError::Refused(refusals))
                if attempt < ATTEMPTS && refusals.iter().any(|r| r.errno == ENOENT) =>
            {
                attempt += 1;
            }
            done => return done,
        }
    }
}

/// A set's elements; none if there is no such set.
///
/// # Errors
/// The kernel's.
pub fn elements(
    socket: &mut Socket,
    table: &Table,
    set: &str,
) -> Result<Vec<ElementDump>, BatchError> {
    match socket.elements(table, set) {
        Err(cause) if cause.is(ENOENT) => Ok(Vec::new()),
        other => other.map_err(BatchError::Socket),
    }
}

/// A name as the kernel's sets hold it: 16 bytes, filled with zeros.
pub fn name_key(name: &str) -> [u8; 16] {
    let mut key = [0; 16];
    key.iter_mut()
        .zip(name.bytes())
        .for_each(|(byte, letter)| *byte = letter);
    key
}
