//! What strangers send, as plain bytes: each must be taken, or refused in words. For the tests, and for the fuzz
//! targets in `fuzz/`, which need the feature `fuzzing`.

use std::io::Read;
use std::path::Path;

use super::document::{DockerImage, ImageConfig, Manifest};
use super::pull::Challenge;
use super::reference::Reference;
use super::unpack::Limits;

/// A manifest, an index, an image's configuration, or a docker archive's list.
pub fn document(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Manifest>(bytes);
    let _ = serde_json::from_slice::<ImageConfig>(bytes);
    let _ = serde_json::from_slice::<Vec<DockerImage>>(bytes);
}

/// An image's name: what is one reads the same when it is written out.
pub fn reference(text: &str) {
    if let Ok(name) = Reference::parse(text) {
        let written = name.to_string();
        let again = Reference::parse(&written);
        assert!(
            again.is_ok_and(|again| again == name),
            "{text:?} is written {written:?}"
        );
    }
}

/// A `WWW-Authenticate` header.
pub fn challenge(text: &str) {
    let _ = Challenge::parse(text);
}

/// A layer, compressed or not, unpacked into `root/layer`; nothing else in `root` may change.
pub fn layer(bytes: &[u8], root: &Path) {
    let into = root.join("layer");
    let limits = Limits {
        size_bytes: 1 << 20,
        entries: 1000,
    };
    if std::fs::create_dir(&into).is_ok()
        && let Ok(content) = super::layer::decompress(bytes)
    {
        let _ = super::unpack::unpack(content, &into, &[], limits, None);
    }
    let outside = std::fs::read_dir(root).map(Iterator::count).unwrap_or(0);
    assert_eq!(outside, 1, "something is beside the layer");
}

/// A decompressor's framing: at most 64 MiB are read.
pub fn compressed(bytes: &[u8]) {
    if let Ok(content) = super::layer::decompress(bytes) {
        let _ = std::io::copy(&mut content.take(64 << 20), &mut std::io::sink());
    }
}
