//! Mount options: those that are ours and not the file system's.

use super::bind_flags::BindFlags;
use crate::error::Error;
use linux::mount::{Attributes, FsOption, Propagation, attr};

/// What mount options mean, apart from the file system's own.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub bind: bool,
    pub recursive_bind: bool,
    pub attributes: Attributes,
    pub recursive: Attributes,
    /// The plain attributes as a bind mount takes them.
    pub bind_flags: BindFlags,
    /// With whether it is recursive.
    pub propagation: Option<(Propagation, bool)>,
    pub copy_up: bool,
    /// Ids are mapped; with whether that is recursive.
    pub idmap: Option<bool>,
    pub data: Vec<FsOption>,
}

/// An attribute option: bits to set, and bits to clear.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        "noatime" => (attr::NOATIME, attr::ATIME),
        "strictatime" => (attr::STRICTATIME, attr::ATIME),
        "relatime" | "atime" | "nostrictatime" => (0, attr::ATIME),
        // As mount(8): it takes a word back, and what is left without one is the kernel's default.
        "norelatime" => (0, 0),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<(Propagation, bool)> {
    Some(match option {
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

/// `linux.rootfsPropagation`.
pub(super) fn parse_rootfs_propagation(text: &str) -> Result<(Propagation, bool), Error> {
    propagation(text)
        .ok_or_else(|| Error::spec("linux.rootfsPropagation", format!("unknown value {text:?}")))
}

/// The mount options that are ours and not the file system's, as `features` lists them.
pub(crate) const MOUNT_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "lazytime",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
];

fn change(attributes: &mut Attributes, (set, clear): (u64, u64)) {
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !set) | clear;
}

/// Reads mount options (config.md, "Mounts"; config-linux.md for the recursive ones).
pub(super) fn parse_options(options: &[String]) -> Options {
    let mut out = Options::default();
    for option in options {
        out.bind_flags.read(option);
        match option.as_str() {
            "bind" => out.bind = true,
            "rbind" => {
                out.bind = true;
                out.recursive_bind = true;
            }
            "tmpcopyup" => out.copy_up = true,
            "idmap" => out.idmap = Some(false),
            "ridmap" => out.idmap = Some(true),
            "" | "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion"
            | "nolazytime" => {}
            other => {
                if let Some(bits) = attribute(other) {
                    change(&mut out.attributes, bits);
                } else if let Some(kind) = propagation(other) {
                    out.propagation = Some(kind);
                } else if let Some(bits) = other.strip_prefix('r').and_then(attribute) {
                    change(&mut out.recursive, bits);
                } else {
                    let (key, value) = match other.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (other.to_owned(), None),
                    };
                    out.data.push((key, value));
                }
            }
        }
    }
    out
}

/// Splits the propagation into the plain or the recursive change.
pub(super) fn with_propagation(
    options: &Options,
    default: Option<(Propagation, bool)>,
) -> (Attributes, Attributes) {
    let (mut attributes, mut recursive) = (options.attributes, options.recursive);
    match options.propagation.or(default) {
        Some((kind, true)) => recursive.propagation = Some(kind),
        Some((kind, false)) => attributes.propagation = Some(kind),
        None => {}
    }
    (attributes, recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        parse_options(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn later_options_win_and_unknown_ones_are_the_file_systems() {
        let options = parse(&["ro", "nosuid", "rw", "size=64k", "mode=755", "inode64"]);
        assert_eq!(options.attributes.set, attr::NOSUID);
        assert_eq!(options.attributes.clear, attr::RDONLY);
        assert_eq!(
            options.data,
            [
                ("size".into(), Some("64k".into())),
                ("mode".into(), Some("755".into())),
                ("inode64".into(), None)
            ]
        );
    }

    #[test]
    fn recursive_options_are_apart() {
        let options = parse(&["rbind", "rro", "rslave", "rnosuid"]);
        assert!(options.recursive_bind);
        assert_eq!(options.recursive.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(options.attributes, Attributes::default());
        assert_eq!(options.propagation, Some((Propagation::Slave, true)));
    }

    #[test]
    fn an_access_time_option_clears_the_others() {
        let options = parse(&["noatime"]);
        assert_eq!(options.attributes.set, attr::NOATIME);
        assert_eq!(
            options.attributes.clear,
            attr::ATIME,
            "the kernel wants the whole mask cleared"
        );
    }
}
