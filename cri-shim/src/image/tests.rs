//! Archives made here, imported into a store of the test's.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use flate2::write::GzEncoder;
use journal::Journal;
use serde_json::json;

#[path = "../../tests/shared/archive.rs"]
mod archive;

use super::*;
use archive::archive as tar_of;

fn open(root: &Path) -> Store {
    let journal = Arc::new(Journal::open(root.join("journal"), 1).unwrap());
    Store::open(root.join("images"), journal, Limits::default()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An OCI image of those layers (each one file), compressed in the three ways in turn, as a layout's files.
fn oci(layers: &[(&str, &str)], name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut blob = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        json!({"digest": digest, "size": size})
    };
    let mut diff_ids = Vec::new();
    let mut descriptors = Vec::new();
    for (index, (file, content)) in layers.iter().enumerate() {
        let layer = tar_of(&BTreeMap::from([(
            (*file).to_owned(),
            content.as_bytes().to_vec(),
        )]));
        diff_ids.push(Digest::of(&layer));
        descriptors.push(blob(match index % 3 {
            0 => gzip(&layer),
            1 => zstd::encode_all(layer.as_slice(), 1).unwrap(),
            _ => layer,
        }));
    }
    let platform = Platform::ours();
    let config = json!({"os": "linux", "architecture": platform.architecture,
        "config": {"Cmd": ["/x"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(serde_json::to_vec(&config).unwrap());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": descriptors});
    let mut manifest = blob(serde_json::to_vec(&manifest).unwrap());
    manifest["platform"] = json!(platform);
    let strange = json!({"digest": Digest::of(b"strange"), "size": 1,
        "platform": {"os": "plan9", "architecture": "mips"}});
    let nested = json!({"schemaVersion": 2, "manifests": [strange, manifest]});
    let mut nested = blob(serde_json::to_vec(&nested).unwrap());
    nested["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [nested]});
    files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    files
}

#[test]
fn an_oci_archive_is_found_by_every_name_and_its_layers_are_stacked() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let archive = tar_of(&oci(
        &[("a", "1"), ("b", "2"), ("c", "3")],
        "example.com/app:v1",
    ));
    let imported = store.import(gzip(&archive).as_slice(), None).unwrap();
    assert_eq!(imported[0].names, ["example.com/app:v1"]);
    let id = imported[0].id.clone();
    let image = store.get("example.com/app:v1").unwrap();
    let digest = image.digests.first().unwrap().clone();
    for name in [id.as_str(), id.hex(), &id.hex()[..12], &digest] {
        assert_eq!(store.get(name).unwrap().id, id, "{name}");
    }
    for name in ["example.com/app", "nosuch", "", "sha256:zz"] {
        assert!(matches!(store.get(name), Err(Error::NotFound(_))), "{name}");
    }
    let directories = store.directories(&image.layers).unwrap();
    assert!(directories[0].join("c").exists() && directories[2].join("a").exists());
    assert_eq!(
        std::fs::read_dir(root.path().join("images/ingest"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_shared_layer_is_unpacked_once_and_goes_with_its_last_user() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let layers = || {
        std::fs::read_dir(root.path().join("images/layers"))
            .unwrap()
            .count()
            - 1
    };
    let one = oci(&[("base", "1"), ("x", "1")], "one:1");
    let two = oci(&[("base", "1"), ("y", "1")], "two:1");
    store.import(tar_of(&one).as_slice(), None).unwrap();
    store.import(tar_of(&two).as_slice(), None).unwrap();
    assert_eq!(layers(), 3);
    store.remove("one:1").unwrap();
    assert_eq!(layers(), 2);
    let hold = store.hold(&store.get("two:1").unwrap().layers);
    store.remove("two:1").unwrap();
    assert_eq!(layers(), 2, "a container's layers stay");
    drop(hold);
    store.collect().unwrap();
    assert_eq!(layers(), 0);
    assert_eq!(store.usage(), FsUsage::default());
}

#[test]
fn names_move_and_survive_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let old = store
        .import(tar_of(&oci(&[("a", "1")], "app:1")).as_slice(), None)
        .unwrap();
    let new = store
        .import(tar_of(&oci(&[("a", "2")], "app:1")).as_slice(), None)
        .unwrap();
    assert_eq!(store.get("app:1").unwrap().id, new[0].id);
    assert!(store.get(old[0].id.as_str()).unwrap().names.is_empty());
    store.settle().unwrap();
    std::fs::create_dir(root.path().join("images/layers/partial-99")).unwrap();
    drop(store);
    let store = open(root.path());
    assert_eq!(store.get("app:1").unwrap().id, new[0].id);
    assert_eq!(store.list().len(), 2);
    assert!(!root.path().join("images/layers/partial-99").exists());
}

#[test]
fn a_docker_archive_is_imported_by_its_tags() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let layer = tar_of(&BTreeMap::from([("a".to_owned(), b"1".to_vec())]));
    let config = json!({"os": "linux", "architecture": Platform::ours().architecture, "config": {"Cmd": ["/a"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
    let table = json!([{"Config": "c.json", "RepoTags": ["app:2"], "Layers": ["l/layer.tar"]}]);
    let archive = tar_of(&BTreeMap::from([
        ("c.json".to_owned(), serde_json::to_vec(&config).unwrap()),
        ("l/layer.tar".to_owned(), layer),
        (
            "manifest.json".to_owned(),
            serde_json::to_vec(&table).unwrap(),
        ),
    ]));
    let imported = store.import(archive.as_slice(), None).unwrap();
    assert_eq!(imported[0].names, ["docker.io/library/app:2"]);
    let renamed = store.import(archive.as_slice(), Some("other")).unwrap();
    assert_eq!(
        renamed[0].names,
        ["docker.io/library/app:2", "docker.io/library/other:latest"]
    );
}

#[test]
fn content_that_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let honest = oci(&[("a", "1")], "app:1");
    for victim in honest.keys().filter(|name| name.starts_with("blobs/")) {
        let mut files = honest.clone();
        let content = files.get_mut(victim).unwrap();
        let last = content.len() - 1;
        content[last] ^= 1;
        let error = store.import(tar_of(&files).as_slice(), None).unwrap_err();
        assert!(
            matches!(error, Error::Mismatch { .. } | Error::Layer { .. }),
            "{victim}: {error}"
        );
    }
    assert!(store.list().is_empty());
    store.collect().unwrap();
    assert_eq!(
        std::fs::read_dir(root.path().join("images/layers"))
            .unwrap()
            .count(),
        1
    );
    let error = store
        .import(tar_of::<&str, &str>([]).as_slice(), None)
        .unwrap_err();
    assert!(
        error.to_string().contains("neither an index.json"),
        "{error}"
    );
}

#[test]
fn an_exported_image_is_the_same_when_it_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let big = "0123456789".repeat(30_000);
    let files = oci(
        &[("a", big.as_str()), ("b/c", ""), ("b/d", "x"), ("a", "y")],
        "example.com/app:1",
    );
    let id = store.import(tar_of(&files).as_slice(), None).unwrap()[0]
        .id
        .clone();
    store.tag("example.com/app:1", "example.com/app:2").unwrap();
    assert!(store.tag(id.as_str(), &format!("a@{id}")).is_err());
    let export = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut archive = Vec::new();
        store.export(&names, &mut archive).map(|()| archive)
    };
    let archive = export(&["example.com/app:2"]).unwrap();
    let all = export(&[id.as_str()]).unwrap();
    assert!(export(&["nosuch"]).is_err());
    let other_root = tempfile::tempdir().unwrap();
    let other = open(other_root.path());
    let back = other.import(archive.as_slice(), None).unwrap();
    assert_eq!((back[0].id.clone(), back.len()), (id.clone(), 1));
    assert_eq!(back[0].names, ["example.com/app:2"]);
    assert_eq!(other.import(all.as_slice(), None).unwrap().len(), 2);
    let (here, there) = (store.get(id.hex()).unwrap(), other.get(id.hex()).unwrap());
    assert_eq!((&here.layers, &here.names), (&there.layers, &there.names));
    // What is changed on disk is found out.
    let lowest = store.directories(&here.layers).unwrap().pop().unwrap();
    std::fs::write(lowest.join("a"), big.replace('0', "1")).unwrap();
    let error = export(&["example.com/app:1"]).unwrap_err().to_string();
    assert!(error.contains("changed"), "{error}");
    store.remove("example.com/app:1").unwrap();
    let recipes = root.path().join("images/recipes");
    assert_eq!(std::fs::read_dir(recipes).unwrap().count(), 0);
}

#[test]
fn an_exported_image_is_read_by_skopeo_as_layout_and_as_docker_archive() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let files = oci(&[("a", "x"), ("b", "y")], "example.com/app:1");
    let id = store.import(tar_of(&files).as_slice(), None).unwrap()[0]
        .id
        .clone();
    let path = root.path().join("image.tar");
    let file = std::fs::File::create(&path).unwrap();
    store.export(&["example.com/app:1".into()], file).unwrap();
    for transport in ["oci-archive", "docker-archive"] {
        let copy = root.path().join(transport);
        let done = std::process::Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("{transport}:{}", path.display()))
            .arg(format!("dir:{}", copy.display()))
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{transport}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(copy.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["config"]["digest"], json!(id), "{transport}");
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for layer in layers {
            let digest: Digest = layer["digest"].as_str().unwrap().parse().unwrap();
            assert_eq!(
                Digest::of(&std::fs::read(copy.join(digest.hex())).unwrap()),
                digest
            );
        }
    }
}

#[test]
fn a_pinned_image_stays_pinned_over_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let files = oci(&[("a", "x")], "example.com/app:1");
    store.import(tar_of(&files).as_slice(), None).unwrap();
    store.pin("example.com/app:1", true).unwrap();
    assert!(store.pin("nosuch", true).is_err());
    drop(store);
    let store = open(root.path());
    assert!(store.get("example.com/app:1").unwrap().pinned);
    assert!(!store.pin("example.com/app:1", false).unwrap().pinned);
}

#[test]
fn headers_without_end_do_not_fill_the_memory() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    // A pax header that claims a gigabyte, of zeros that compress to nothing.
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_path("x").unwrap();
    header.set_size(1 << 30);
    header.set_cksum();
    let mut layer = header.as_bytes().to_vec();
    layer.resize(12 << 20, 0);
    let layer = gzip(&layer);
    let mut files = oci(&[("a", "x")], "example.com/app:1");
    let config = json!({"os": "linux", "architecture": Platform::ours().architecture,
        "rootfs": {"diff_ids": [Digest::of(b"never reached")]}})
    .to_string();
    let mut descriptor = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        files.insert(format!("blobs/sha256/{}", digest.hex()), bytes.to_vec());
        json!({"digest": digest, "size": bytes.len()})
    };
    let (layer, config) = (descriptor(&layer), descriptor(config.as_bytes()));
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let manifest = descriptor(manifest.as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    files.insert("index.json".into(), index.into_bytes());
    let error = store.import(tar_of(&files).as_slice(), None).unwrap_err();
    assert!(error.to_string().contains("no file's content"), "{error}");
    assert!(store.list().is_empty());
}

#[test]
fn what_was_changed_on_disk_is_found() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let image = tar_of(&oci(&[("a", "first"), ("b", "second")], "example.com/a:1"));
    let other = tar_of(&oci(&[("a", "first"), ("c", "third")], "example.com/c:1"));
    store.import(image.as_slice(), None).unwrap();
    store.import(other.as_slice(), None).unwrap();
    let verified = store.verify();
    assert_eq!((verified.images, verified.layers), (2, 3));
    assert!(verified.faults.is_empty() && verified.unproved == 0);

    // A file of the layer that both share.
    let shared = store.get("example.com/a:1").unwrap().layers[0].clone();
    let path = store
        .layer_path(store.layer_directory(&shared).unwrap())
        .join("a");
    std::fs::write(&path, "FIRST").unwrap();
    let faults = store.verify().faults;
    let images: Vec<&str> = faults.iter().map(|(image, _)| image.as_str()).collect();
    assert_eq!(images, ["example.com/a:1", "example.com/c:1"]);
    std::fs::write(&path, "first").unwrap();
    assert!(store.verify().faults.is_empty());

    // A document, and a whole layer.
    let image = store.get("example.com/a:1").unwrap();
    let document = root.path().join("images/blobs/sha256").join(image.id.hex());
    std::fs::write(&document, "{}").unwrap();
    let layer = store.layer_path(store.layer_directory(&image.layers[1]).unwrap());
    std::fs::remove_dir_all(&layer).unwrap();
    let whys: Vec<String> = store
        .verify()
        .faults
        .into_iter()
        .map(|(_, why)| why)
        .collect();
    assert_eq!(whys.len(), 2, "{whys:?}");
    assert!(
        whys[0].contains("has the digest") && whys[1].contains("is gone"),
        "{whys:?}"
    );
}

#[test]
fn a_layer_that_holds_a_name_twice_is_unproved() {
    let mut archive = tar::Builder::new(Vec::new());
    for content in ["one", "three"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, "a", content.as_bytes())
            .unwrap();
    }
    let layer = archive.into_inner().unwrap();
    let config = json!({"os": "linux", "architecture": Platform::ours().architecture,
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
    let files = BTreeMap::from([
        ("config".to_owned(), serde_json::to_vec(&config).unwrap()),
        ("layer".to_owned(), layer),
        (
            "manifest.json".to_owned(),
            br#"[{"Config": "config", "RepoTags": ["a:1"], "Layers": ["layer"]}]"#.to_vec(),
        ),
    ]);
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.import(tar_of(&files).as_slice(), None).unwrap();
    let verified = store.verify();
    assert_eq!((verified.unproved, verified.faults.len()), (1, 0));
}

#[test]
fn an_archive_of_more_than_the_limit_is_refused_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(root.path().join("journal"), 1).unwrap());
    let limits = Limits {
        size_bytes: 10_000,
        entries: 3,
    };
    let store = Store::open(root.path().join("images"), journal, limits).unwrap();
    // A bomb: it is small where it comes from.
    let large = gzip(&tar_of([("a", vec![0; 10_001])]));
    let many = tar_of([("a", ""), ("b", ""), ("c", ""), ("d", "")]);
    for (archive, why) in [(large, "10000 bytes"), (many, "3 entries")] {
        let error = store.import(archive.as_slice(), None).unwrap_err();
        assert!(
            error.to_string().contains(&format!("more than {why}")),
            "{error}"
        );
    }
    let left = std::fs::read_dir(root.path().join("images/ingest")).unwrap();
    assert_eq!(left.count(), 0);
}
