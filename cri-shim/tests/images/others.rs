//! Images that others' tools make: umoci's is what the random stacks are compared with; here are buildah's and
//! skopeo's, in each form that they write.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::store;

fn run(command: &mut Command) -> String {
    let output = command.output().expect("buildah and skopeo are installed");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Two layers by buildah: a tree, and then a file less and one more. Its storage stays in `root`.
fn build(root: &Path, target: &str) {
    let tree = root.join("tree");
    std::fs::create_dir_all(tree.join("etc/deep")).unwrap();
    std::fs::write(tree.join("etc/kept"), "kept").unwrap();
    std::fs::write(tree.join("etc/gone"), "gone").unwrap();
    std::fs::write(tree.join("tool"), "tool").unwrap();
    std::fs::set_permissions(tree.join("tool"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let _ = std::os::unix::fs::symlink("kept", tree.join("etc/link"));
    let buildah = |words: &[&str]| {
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "vfs", "--root"]);
        command.arg(root.join("storage")).arg("--runroot");
        run(command.arg(root.join("run")).args(words))
    };
    let tree = tree.display().to_string();
    let first = buildah(&["from", "scratch"]);
    buildah(&["copy", "--quiet", &first, &tree, "/"]);
    buildah(&[
        "config",
        "--entrypoint",
        "[\"/tool\"]",
        "--env",
        "A=b",
        "--stop-signal",
        "INT",
        "--label",
        "x=y",
        "--volume",
        "/data",
        "--user",
        "33:34",
        "--workingdir",
        "/etc",
        &first,
    ]);
    buildah(&["commit", "--quiet", &first, "localhost/first:1"]);
    let second = buildah(&["from", "--pull-never", "localhost/first:1"]);
    let mounted = buildah(&["mount", &second]);
    std::fs::remove_file(Path::new(&mounted).join("etc/gone")).unwrap();
    std::fs::write(Path::new(&mounted).join("etc/new"), "new").unwrap();
    buildah(&["umount", &second]);
    buildah(&["commit", "--quiet", &second, target]);
}

#[test]
fn images_of_buildah_and_skopeo_are_what_they_put_into_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let oci = root.join("oci.tar");
    build(
        root,
        &format!("oci-archive:{}:example.com/made:1", oci.display()),
    );
    let docker = root.join("docker.tar");
    let layout = root.join("layout");
    for target in [
        format!("docker-archive:{}:example.com/made:2", docker.display()),
        format!("oci:{}:3", layout.display()),
    ] {
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet"]);
        run(copy
            .arg(format!("oci-archive:{}", oci.display()))
            .arg(target));
    }
    let store = store(root);
    let read = |path: &Path| std::fs::File::open(path).unwrap();
    let images = [
        store.import(read(&oci), None).unwrap(),
        store.import(read(&docker), None).unwrap(),
        store
            .import_layout(&layout, Some("example.com/made:3"))
            .unwrap(),
    ];
    for image in images {
        let image = store.get(image[0].id.as_str()).unwrap();
        let config = &image.config.config;
        assert_eq!(config.entrypoint, ["/tool"]);
        assert!(config.env.contains(&"A=b".to_owned()));
        assert_eq!(
            (config.stop_signal.as_str(), config.user.as_str()),
            ("INT", "33:34")
        );
        assert_eq!(
            (config.working_dir.as_str(), config.volumes.as_slice()),
            ("/etc", &["/data".to_owned()][..])
        );
        assert_eq!(config.labels["x"], "y");
        let layers = store.directories(&image.layers).unwrap();
        assert_eq!(layers.len(), 2);
        let (upper, lower) = (&layers[0], &layers[1]);
        assert_eq!(
            lower.join("tool").metadata().unwrap().mode() & 0o7777,
            0o4755
        );
        assert_eq!(
            std::fs::read_link(lower.join("etc/link")).unwrap(),
            Path::new("kept")
        );
        assert!(lower.join("etc/deep").is_dir() && lower.join("etc/gone").exists());
        assert!(
            upper
                .join("etc/gone")
                .symlink_metadata()
                .unwrap()
                .file_type()
                .is_char_device()
        );
        assert_eq!(
            std::fs::read_to_string(upper.join("etc/new")).unwrap(),
            "new"
        );
    }
    for name in [
        "example.com/made:1",
        "example.com/made:2",
        "example.com/made:3",
    ] {
        assert!(store.get(name).is_ok(), "{name}");
    }
    assert!(store.verify().faults.is_empty());
}
