//! The demo's image, as an OCI image layout in a tar archive (image-spec `image-layout.md`).

use std::io;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

static PROGRAM: &[u8] = include_bytes!(env!("DEMO_PROGRAM"));

/// The name of the image of a version, 1 or 2: they differ in what they say of themselves.
pub fn name(version: u32) -> String {
    format!("orlop.local/demo:v{version}")
}

/// An archive with both versions; they share their one layer.
pub fn archive() -> io::Result<Vec<u8>> {
    let mut blobs = Blobs::default();
    let layer = blobs.add("application/vnd.oci.image.layer.v1.tar", layer()?);
    let mut manifests = Vec::new();
    for version in [1, 2] {
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "2026-11-22T00:00:00Z",
            // A first process of a PID namespace ignores signals that it has no handler for, but for this one.
            "config": { "Entrypoint": ["/demo"], "Cmd": ["serve", "8080"], "StopSignal": "SIGKILL",
                "Env": ["PATH=/", format!("DEMO_VERSION={version}")], "WorkingDir": "/", "User": "65534:65534",
                "ExposedPorts": { "8080/tcp": {} }, "Labels": { "org.opencontainers.image.title": "orlop demo" } },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
            "history": [{ "created_by": "orlop" }],
        });
        let config = blobs.add_json("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer] });
        let mut manifest = blobs.add_json("application/vnd.oci.image.manifest.v1+json", &manifest);
        manifest["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        manifest["annotations"] = json!({ "io.containerd.image.name": name(version), "org.opencontainers.image.ref.name": name(version) });
        manifests.push(manifest);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
    let mut archive = tar::Builder::new(Vec::new());
    append(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    append(
        &mut archive,
        "index.json",
        index.to_string().as_bytes(),
        0o644,
    )?;
    for (digest, blob) in &blobs.0 {
        append(&mut archive, &format!("blobs/sha256/{digest}"), blob, 0o644)?;
    }
    archive.into_inner()
}

#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Keeps a blob; its descriptor.
    fn add(&mut self, media_type: &str, blob: Vec<u8>) -> Value {
        let digest = hex::encode(Sha256::digest(&blob));
        let descriptor = json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": blob.len() });
        self.0.push((digest, blob));
        descriptor
    }

    fn add_json(&mut self, media_type: &str, document: &Value) -> Value {
        self.add(media_type, document.to_string().into_bytes())
    }
}

fn layer() -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (folder, mode) in [("etc/", 0o755), ("tmp/", 0o1777)] {
        let mut header = header(0, mode);
        header.set_entry_type(tar::EntryType::Directory);
        layer.append_data(&mut header, folder, io::empty())?;
    }
    append(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/:/demo\nnobody:x:65534:65534:nobody:/:/demo\n",
        0o644,
    )?;
    append(&mut layer, "demo", PROGRAM, 0o755)?;
    layer.into_inner()
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    let size = u64::try_from(content.len()).map_err(io::Error::other)?;
    archive.append_data(&mut header(size, mode), path, content)
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_names_both_versions_and_every_blob_has_its_digest() {
        let bytes = archive().expect("an archive");
        let mut names = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice())
            .entries()
            .expect("entries")
        {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry, &mut content).expect("content");
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(hex::encode(Sha256::digest(&content)), digest);
            }
            if path == "index.json" {
                let index: Value = serde_json::from_slice(&content).expect("JSON");
                names = index["manifests"]
                    .as_array()
                    .expect("manifests")
                    .iter()
                    .map(|m| m["annotations"]["io.containerd.image.name"].clone())
                    .collect();
            }
        }
        assert_eq!(names, [json!(name(1)), json!(name(2))]);
    }
}
