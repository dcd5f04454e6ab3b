//! The host's end of a container's virtual cable: its name says whose it is.

use crate::protocol::AttachmentKey;

/// The name of the host's end for an attachment to `network`: the same each time, so that whoever knows the
/// attachment finds the interface, also after all else about it is lost.
pub fn name(network: &str, attachment: &AttachmentKey) -> String {
    let parts = [network, &attachment.container_id, &attachment.ifname];
    let mut hash = FNV_OFFSET;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
    }
    // 44 bits: all that fits into 15 bytes. Among 1,000 interfaces two alike are rarer than one in 10,000,000.
    format!("veth{:011x}", hash >> 20)
}

/// The text that goes with the interface, by which GC and people know whose it is.
pub fn alias(network: &str, attachment: &AttachmentKey) -> String {
    format!(
        "cni {network} {} {}",
        attachment.container_id, attachment.ifname
    )
}

/// Whose the interface with this alias is, if it is of `network`.
pub fn owner(network: &str, alias: &str) -> Option<AttachmentKey> {
    let mut words = alias.split(' ');
    let is_ours = words.next() == Some("cni") && words.next() == Some(network);
    let (container_id, ifname) = (words.next()?.to_owned(), words.next()?.to_owned());
    is_ours.then_some(AttachmentKey {
        container_id,
        ifname,
    })
}

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_the_kernel_and_an_alias_reads_back() {
        let key = AttachmentKey {
            container_id: "c".repeat(64),
            ifname: "eth0".to_owned(),
        };
        assert_eq!(name("net", &key).len(), 15);
        assert_eq!(name("net", &key), name("net", &key));
        assert_ne!(name("net", &key), name("net2", &key));
        assert_eq!(owner("net", &alias("net", &key)), Some(key.clone()));
        assert_eq!(owner("other", &alias("net", &key)), None);
        assert_eq!(owner("net", ""), None);
    }
}
