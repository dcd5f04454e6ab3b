//! `hostPath` and the checks of its types.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A path that isn't what the pod says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else, or isn't there.
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    Kind {
        /// The path.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// It couldn't be made.
    #[error("create {path}: {source}")]
    Create {
        /// The path.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Checks, and where the type says so makes, a host path.
pub fn ensure(path: &str, kind: &str) -> Result<(), Error> {
    let at = Path::new(path);
    let found = std::fs::metadata(at).ok().map(|m| m.file_type());
    let create_error = |source| Error::Create {
        path: path.to_owned(),
        source,
    };
    if found.is_none() && kind == "DirectoryOrCreate" {
        return std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(at)
            .map_err(create_error);
    }
    if found.is_none() && kind == "FileOrCreate" {
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(at);
        return file.map(drop).map_err(create_error);
    }
    let (wanted, holds) = match kind {
        "Directory" | "DirectoryOrCreate" => ("directory", found.is_some_and(|t| t.is_dir())),
        "File" | "FileOrCreate" => ("file", found.is_some_and(|t| t.is_file())),
        "Socket" => ("socket file", found.is_some_and(|t| t.is_socket())),
        "CharDevice" => (
            "character device",
            found.is_some_and(|t| t.is_char_device()),
        ),
        "BlockDevice" => ("block device", found.is_some_and(|t| t.is_block_device())),
        _ => return Ok(()),
    };
    if holds {
        Ok(())
    } else {
        Err(Error::Kind {
            path: path.to_owned(),
            wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made_as_they_say() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        ensure(&at("d/e"), "DirectoryOrCreate").expect("made");
        ensure(&at("d/f"), "FileOrCreate").expect("made");
        ensure(&at("d/f"), "File").expect("a file");
        ensure(&at("none"), "").expect("unchecked");
        let error = ensure(&at("d/f"), "Directory").expect_err("a file");
        assert!(
            error.to_string().ends_with("d/f is not a directory"),
            "{error}"
        );
        assert!(ensure("/dev/null", "CharDevice").is_ok());
    }
}
