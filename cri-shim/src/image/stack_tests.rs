//! Any stack of layers that we unpack is, mounted, the tree that umoci makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use journal::Journal;
use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::*;

/// Few names, so that layers meet, parents first; one too long for a tar header.
const NAMES: [&str; 10] = [
    "a",
    "a/x",
    "a/x/1",
    "a/x/1/deep",
    "a/y",
    "b",
    "b/x",
    "b/x/1",
    "c",
    concat!(
        "b/x/a-name-that-is-longer-than-the-hundred-bytes-of-a-header-and-so-needs-an-entry-of-its",
        "-own-in-front-of-it"
    ),
];

/// One step of a layer: which name, what to do with it, and bits for its attributes.
type Step = (u8, u8, u8);

/// What the stack has so far.
type Tree = BTreeMap<&'static str, EntryType>;

/// A layer as tools make it: parents come first and are mentioned, a name comes once.
fn layer(tree: &mut Tree, steps: &[Step]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut seen = BTreeSet::new();
    for &(name, what, bits) in steps {
        let name = NAMES[usize::from(name) % NAMES.len()];
        let parents: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
        let folder = |tree: &Tree, name: &str| tree.get(name) == Some(&EntryType::Directory);
        if seen.contains(name)
            || parents
                .iter()
                .any(|parent| seen.contains(parent) && !folder(tree, parent))
        {
            continue;
        }
        let known = tree.get(name).copied();
        let below = |seen: &BTreeSet<&str>| {
            let prefix = format!("{name}/");
            seen.iter().any(|other| other.starts_with(&prefix))
        };
        if parents.iter().any(|parent| !folder(tree, parent)) || below(&seen) {
            continue;
        }
        for parent in parents {
            if let Some(parent) = NAMES.iter().find(|name| **name == parent)
                && seen.insert(parent)
            {
                append(&mut archive, parent, EntryType::Directory, "", bits);
            }
        }
        seen.insert(name);
        let forget = |tree: &mut Tree| {
            let prefix = format!("{name}/");
            tree.retain(|other, _| *other != name && !other.starts_with(&prefix));
        };
        let targets: Vec<&str> = tree
            .iter()
            .filter(|(other, kind)| **kind == EntryType::Regular && **other != name)
            .map(|(other, _)| *other)
            .collect();
        let kind = match what % 8 {
            0 | 1 => EntryType::Directory,
            2 => EntryType::Symlink,
            3 if !targets.is_empty() => EntryType::Link,
            4 => EntryType::Fifo,
            5 => EntryType::Char,
            6 if known.is_some() => {
                let (folder, last) = name
                    .rsplit_once('/')
                    .map_or(("", name), |(folder, last)| (folder, last));
                let whiteout = Path::new(folder).join(format!(".wh.{last}"));
                append(
                    &mut archive,
                    whiteout.to_str().unwrap(),
                    EntryType::Regular,
                    "",
                    bits,
                );
                forget(tree);
                continue;
            }
            _ => EntryType::Regular,
        };
        let content = match kind {
            EntryType::Symlink => NAMES[usize::from(bits) % NAMES.len()].to_owned(),
            EntryType::Link => targets[usize::from(bits) % targets.len()].to_owned(),
            EntryType::Regular => "x".repeat(usize::from(bits) * 7),
            _ => String::new(),
        };
        if kind != EntryType::Directory || known != Some(EntryType::Directory) {
            forget(tree);
        }
        // A link to what this very step removed.
        if kind == EntryType::Link && !tree.contains_key(content.as_str()) {
            continue;
        }
        append(&mut archive, name, kind, &content, bits);
        let opaque = format!("{name}/.wh..wh..opq");
        if kind == EntryType::Directory && known == Some(kind) && bits.is_multiple_of(4) {
            append(&mut archive, &opaque, EntryType::Regular, "", bits);
            forget(tree);
        }
        tree.insert(
            name,
            if kind == EntryType::Link {
                EntryType::Regular
            } else {
                kind
            },
        );
    }
    archive.into_inner().unwrap()
}

fn append(archive: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, content: &str, bits: u8) {
    if bits.is_multiple_of(3) && matches!(kind, EntryType::Regular | EntryType::Directory) {
        let value = [bits, 0, b'='];
        archive
            .append_pax_extensions([
                ("SCHILY.xattr.user.test", value.as_slice()),
                ("mtime", b"1600000000.25"),
            ])
            .unwrap();
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode([0o755, 0o644, 0o4711, 0o1777][usize::from(bits) % 4]);
    header.set_uid(u64::from(bits % 3));
    header.set_gid(u64::from(bits % 5));
    header.set_mtime(1_600_000_000 + u64::from(bits));
    if kind == EntryType::Char {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.set_size(0);
        archive.append_link(&mut header, name, content).unwrap();
    } else {
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
}

/// Writes an OCI layout's folder of those layers.
fn layout(folder: &Path, layers: &[Vec<u8>]) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len()})
    };
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| blob("layer.v1.tar", layer))
        .collect();
    let config = json!({"os": "linux", "architecture": Platform::ours().architecture,
        "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "test"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

/// Every node with its kind, mode, owner, time, size, device, link, attributes and content.
fn listing(script: &str, folder: &Path) -> String {
    let list = r#"cd "$1" && find . -mindepth 1 -type d -printf '%P d %m %U %G %T@\n' -o -mindepth 1 -printf '%P %y %m %U %G %T@ %s %l\n' | sort
        find . -type f -exec md5sum {} + | sort -k2
        find . -type c -exec stat -c '%n %t:%T' {} + | sort
        find . \( -type f -o -type d \) -print0 | sort -z | xargs -0 -r getfattr -d -m ^user -e hex"#;
    let listed = Command::new("unshare")
        .args(["--mount", "sh", "-c", &format!("{script}\n{list}"), "sh"])
        .arg(folder)
        .output()
        .unwrap();
    assert!(
        listed.status.code() != Some(127),
        "find, md5sum, stat and getfattr are installed"
    );
    assert!(
        listed.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    String::from_utf8_lossy(&listed.stdout).into_owned()
}

fn check(stack: &[Vec<Step>]) {
    let root = tempfile::tempdir().unwrap();
    let mut tree = Tree::new();
    let layers: Vec<Vec<u8>> = stack.iter().map(|steps| layer(&mut tree, steps)).collect();
    let (oci, bundle) = (root.path().join("oci"), root.path().join("bundle"));
    layout(&oci, &layers);
    let unpacked = Command::new("umoci")
        .arg("unpack")
        .args(["--image", &format!("{}:test", oci.display())])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(
        unpacked.status.success(),
        "umoci: {}",
        String::from_utf8_lossy(&unpacked.stderr)
    );
    let journal = Arc::new(Journal::open(root.path().join("journal"), 1).unwrap());
    let store = Store::open(root.path().join("images"), journal, Limits::default()).unwrap();
    let id = store.import_layout(&oci, None).unwrap()[0].id.clone();
    let image = store.get(id.as_str()).unwrap();
    let folders: Vec<String> = store
        .directories(&image.layers)
        .unwrap()
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    let mount = root.path().join("mount");
    let empty = root.path().join("images/layers/empty");
    std::fs::create_dir(&mount).unwrap();
    // Overlayfs wants two; the empty one on top shows nothing.
    let script = format!(
        "mount -t overlay overlay -o lowerdir={}:{} {}",
        empty.display(),
        folders.join(":"),
        mount.display()
    );
    let (ours, theirs) = (
        listing(&script, &mount),
        listing(":", &bundle.join("rootfs")),
    );
    assert_eq!(ours, theirs, "ours and umoci's of {stack:?}");
}

proptest! {
    #![proptest_config(Config { cases: 24, failure_persistence: None, max_shrink_iters: 60, ..Config::default() })]

    #[test]
    fn a_stack_of_layers_is_what_umoci_makes_of_it(
        stack in proptest::collection::vec(proptest::collection::vec(any::<Step>(), 1..14), 1..5)
    ) {
        check(&stack);
    }

}

proptest! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    /// Whatever bytes are taken for an archive, a document or a name, the answer is a result.
    #[test]
    fn damaged_archives_are_errors_and_stay_inside(
        steps in proptest::collection::vec(any::<Step>(), 1..10),
        damage in proptest::collection::vec(any::<(u16, u8)>(), 1..12),
        form in 0..3_u8,
    ) {
        let root = tempfile::tempdir().unwrap();
        let mut bytes = layer(&mut Tree::new(), &steps);
        match form {
            1 => bytes = zstd::encode_all(bytes.as_slice(), 1).unwrap(),
            2 => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut gzip, &bytes).unwrap();
                bytes = gzip.finish().unwrap();
            }
            _ => {}
        }
        for (at, byte) in damage {
            let at = usize::from(at) % bytes.len().min(4096);
            bytes[at] = byte;
        }
        super::fuzz::layer(&bytes, root.path());
    }

    #[test]
    fn any_text_is_a_name_or_an_error(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,80}|.{0,40}") {
        super::fuzz::reference(&text);
        super::fuzz::challenge(&text);
    }

    #[test]
    fn any_document_is_read_or_an_error(text in "[\\[\\]{}:,\"a-z0-9 ]{0,200}|.{0,100}", key in "manifests|config|layers|rootfs|os") {
        super::fuzz::document(text.as_bytes());
        super::fuzz::document(format!("{{\"{key}\":{text}}}").as_bytes());
    }
}
