//! The image store against others' registry server, and under faults.

#[path = "../shared/archive.rs"]
mod archive;
mod faults;
mod others;
mod registry;

use std::path::Path;
use std::sync::Arc;

use archive::archive;
use cri_shim::image::{Digest, Limits, Store};
use flate2::write::GzEncoder;
use journal::Journal;
use serde_json::json;

fn store(root: &Path) -> Arc<Store> {
    let journal = Journal::open(root.join("journal"), 1).unwrap();
    Arc::new(Store::open(root.join("images"), Arc::new(journal), Limits::default()).unwrap())
}

/// An OCI archive of two compressed layers, with files, a folder, a symlink and a whiteout.
fn image() -> Vec<u8> {
    let mut first = tar::Builder::new(Vec::new());
    let mut entry = |name: &str, kind, content: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        if link.is_empty() {
            first.append_data(&mut header, name, content).unwrap();
        } else {
            first.append_link(&mut header, name, link).unwrap();
        }
    };
    entry("etc/", tar::EntryType::Directory, b"", "");
    entry("etc/big", tar::EntryType::Regular, &vec![7; 300_000], "");
    entry("etc/small", tar::EntryType::Regular, b"small", "");
    entry("etc/link", tar::EntryType::Symlink, b"", "small");
    entry("etc/hard", tar::EntryType::Link, b"", "etc/small");
    let first = first.into_inner().unwrap();
    let second = archive([("etc/.wh.small", ""), ("bin", "program")]);
    let mut files = Vec::new();
    let mut blob = |bytes: Vec<u8>, kind: &str| {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        json!({"digest": digest, "size": size, "mediaType": format!("application/vnd.oci.image.{kind}")})
    };
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in [first, second] {
        diff_ids.push(Digest::of(&layer));
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &layer).unwrap();
        layers.push(blob(encoder.finish().unwrap(), "layer.v1.tar+gzip"));
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({"os": "linux", "architecture": architecture, "config": {"Cmd": ["/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(config.to_string().into_bytes(), "config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers,
        "mediaType": "application/vnd.oci.image.manifest.v1+json"});
    let mut manifest = blob(manifest.to_string().into_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({"io.containerd.image.name": "test.example/two:layers",
        "org.opencontainers.image.ref.name": "layers"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    files.push(("index.json".into(), index.to_string().into_bytes()));
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    files.push(("oci-layout".into(), layout.to_string().into_bytes()));
    archive(files)
}
