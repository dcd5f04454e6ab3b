//! Layers made entry by entry, unpacked as root into a directory of the test's.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use tar::{Builder, EntryType, Header};

use super::*;

/// An archive in the making. Names are written as they are: tar's own builder would refuse the hostile ones.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(mut self, name: &str, kind: EntryType, mode: u32, content: &str) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_700_000_000);
        let data = if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_gnu_mut().unwrap().linkname[..content.len()]
                .copy_from_slice(content.as_bytes());
            ""
        } else {
            content
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data.as_bytes()).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(name, EntryType::Regular, 0o640, content)
    }

    fn folder(self, name: &str, mode: u32) -> Self {
        self.add(name, EntryType::Directory, mode, "")
    }

    fn xattr(mut self, name: &str, value: &str) -> Self {
        self.0
            .append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value.as_bytes())])
            .unwrap();
        self
    }

    fn unpack(self, below: &[PathBuf]) -> Result<tempfile::TempDir, Error> {
        let dir = tempfile::tempdir().unwrap();
        let bytes = self.0.into_inner().unwrap();
        unpack(bytes.as_slice(), dir.path(), below, Limits::default(), None).map(|_| dir)
    }
}

fn refusal(layer: Layer) -> String {
    layer.unpack(&[]).unwrap_err().to_string()
}

#[test]
fn files_keep_mode_owner_time_links_and_attributes() {
    let dir = Layer::new()
        .folder("bin/", 0o1777)
        .xattr("user.colour", "blue")
        .add("bin/tool", EntryType::Regular, 0o4755, "content")
        .add("bin/hard", EntryType::Link, 0o644, "bin/tool")
        .add("bin/soft", EntryType::Symlink, 0o777, "/etc/elsewhere")
        .add("bin/pipe", EntryType::Fifo, 0o600, "")
        .unpack(&[])
        .unwrap();
    let look = |name: &str| dir.path().join(name).symlink_metadata().unwrap();
    assert_eq!(look("bin").mode() & 0o7777, 0o1777);
    assert_eq!(look("bin").mtime(), 1_700_000_000);
    let tool = look("bin/tool");
    assert_eq!(
        (tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.mtime()),
        (0o4755, 1000, 1001, 1_700_000_000)
    );
    assert_eq!((tool.nlink(), tool.ino()), (2, look("bin/hard").ino()));
    assert_eq!(
        std::fs::read_link(dir.path().join("bin/soft")).unwrap(),
        Path::new("/etc/elsewhere")
    );
    assert_eq!(
        (look("bin/soft").uid(), look("bin/soft").mtime()),
        (1000, 1_700_000_000)
    );
    assert!(look("bin/pipe").file_type().is_fifo());
    let mut value = [0; 16];
    let path = dir.path().join("bin/tool");
    let n = rustix::fs::getxattr(&path, "user.colour", &mut value).unwrap();
    assert_eq!(&value[..n], b"blue");
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    let dir = Layer::new()
        .file("a/.wh.gone", "")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "x")
        .file(".wh.c", "")
        .folder("c", 0o755)
        .file("d", "kept")
        .file(".wh.d", "")
        .unpack(&[])
        .unwrap();
    let gone = dir.path().join("a/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for folder in ["b", "c"] {
        let mut value = [0; 4];
        let n = rustix::fs::getxattr(
            dir.path().join(folder),
            "trusted.overlay.opaque",
            &mut value,
        )
        .unwrap();
        assert_eq!(&value[..n], b"y", "{folder}");
    }
    assert_eq!(
        std::fs::read_to_string(dir.path().join("d")).unwrap(),
        "kept"
    );
}

#[test]
fn a_folder_that_the_layer_does_not_mention_is_as_in_the_layers_below() {
    let below = Layer::new()
        .folder("home", 0o711)
        .folder("home/user", 0o700)
        .unpack(&[])
        .unwrap();
    let dir = Layer::new()
        .file("home/user/new", "x")
        .unpack(&[below.path().into()])
        .unwrap();
    let home = dir.path().join("home").metadata().unwrap();
    let user = dir.path().join("home/user").metadata().unwrap();
    assert_eq!((home.mode() & 0o7777, home.uid()), (0o711, 1000));
    assert_eq!((user.mode() & 0o7777, user.gid()), (0o700, 1001));
}

#[test]
fn later_entries_take_the_place_of_earlier_ones() {
    let dir = Layer::new()
        .folder("a", 0o755)
        .file("a/x", "1")
        .file("a", "now a file")
        .file("b", "file")
        .folder("b", 0o755)
        .file("b/y", "2")
        .unpack(&[])
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.path().join("a")).unwrap(),
        "now a file"
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("b/y")).unwrap(),
        "2"
    );
}

#[test]
fn nothing_is_written_outside_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    assert!(refusal(Layer::new().file("../evil", "x")).contains("leads upwards"));
    assert!(
        refusal(Layer::new().add("x", EntryType::Link, 0o644, "../../etc/passwd"))
            .contains("leads upwards")
    );
    // An absolute name stays inside.
    let dir = Layer::new().file("/abs/evil", "x").unpack(&[]).unwrap();
    assert!(dir.path().join("abs/evil").exists());
    // A symlink's target means a place in the layer.
    let inside = Layer::new()
        .add("way", EntryType::Symlink, 0o777, target)
        .file("way/evil", "x")
        .unpack(&[])
        .unwrap();
    let place = target.trim_start_matches('/');
    assert!(inside.path().join(place).join("evil").exists());
    let circle = Layer::new()
        .add("a", EntryType::Symlink, 0o777, "b")
        .add("b", EntryType::Symlink, 0o777, "a")
        .file("a/evil", "x");
    assert!(refusal(circle).contains("symbolic links"));
    let chained = Layer::new()
        .add("one", EntryType::Symlink, 0o777, "..")
        .add("two", EntryType::Symlink, 0o777, "one/..")
        .file("two/evil", "x")
        .unpack(&[])
        .unwrap();
    assert!(
        chained.path().join("evil").exists(),
        "`..` of the root is the root"
    );
    // A file never follows a symlink of its own name.
    let replaced = Layer::new()
        .add("evil", EntryType::Symlink, 0o777, &format!("{target}/evil"))
        .file("evil", "x")
        .unpack(&[])
        .unwrap();
    assert!(
        replaced
            .path()
            .join("evil")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
    let link = Layer::new()
        .add("hosts", EntryType::Symlink, 0o777, "/etc/hosts")
        .add("h", EntryType::Link, 0, "hosts");
    assert!(
        link.unpack(&[])
            .unwrap()
            .path()
            .join("h")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn attributes_that_steer_overlayfs_are_refused() {
    let error = refusal(
        Layer::new()
            .xattr("trusted.overlay.redirect", "/etc")
            .folder("x", 0o755),
    );
    assert!(error.contains("overlayfs's own"), "{error}");
}

#[test]
fn a_layer_larger_than_its_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Layer::new()
        .file("a", "12345")
        .file("b", "12345")
        .0
        .into_inner()
        .unwrap();
    for limits in [
        Limits {
            size_bytes: 9,
            entries: 9,
        },
        Limits {
            size_bytes: 99,
            entries: 1,
        },
    ] {
        let error = unpack(bytes.as_slice(), dir.path(), &[], limits, None).unwrap_err();
        assert!(matches!(error, Error::TooLarge(_)), "{error}");
    }
}

#[test]
fn a_truncated_archive_is_an_error() {
    let mut bytes = Layer::new()
        .file("a", &"x".repeat(4000))
        .0
        .into_inner()
        .unwrap();
    bytes.truncate(1500);
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack(bytes.as_slice(), dir.path(), &[], Limits::default(), None).is_err());
}

#[test]
fn a_hard_link_to_a_lower_layers_file_brings_it_up() {
    let lowest = Layer::new()
        .folder("bin", 0o711)
        .xattr("user.colour", "blue")
        .add("bin/tool", EntryType::Regular, 0o4755, "content")
        .file("bin/gone", "x")
        .folder("old", 0o755)
        .file("old/file", "x")
        .add("sbin", EntryType::Symlink, 0o777, "/bin")
        .unpack(&[])
        .unwrap();
    let middle = Layer::new()
        .file("bin/.wh.gone", "")
        .folder("old", 0o755)
        .file("old/.wh..wh..opq", "")
        .unpack(&[lowest.path().into()])
        .unwrap();
    let below = [middle.path().to_owned(), lowest.path().to_owned()];
    let link = |target: &str| {
        Layer::new()
            .add("deep/name", EntryType::Link, 0o644, target)
            .unpack(&below)
    };
    for target in ["bin/tool", "sbin/tool"] {
        let dir = link(target).unwrap();
        let (name, tool) = (dir.path().join("deep/name"), dir.path().join("bin/tool"));
        let (name, found) = (name.metadata().unwrap(), tool.metadata().unwrap());
        assert_eq!((name.ino(), name.nlink()), (found.ino(), 2));
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o4755, 1000));
        assert_eq!(found.mtime(), 1_700_000_000);
        assert_eq!(std::fs::read_to_string(&tool).unwrap(), "content");
        let mut value = [0; 16];
        let n = rustix::fs::getxattr(&tool, "user.colour", &mut value).unwrap();
        assert_eq!(&value[..n], b"blue");
        let bin = dir.path().join("bin").metadata().unwrap();
        assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o711, 1_700_000_000));
    }
    assert_eq!(
        lowest.path().join("bin/tool").metadata().unwrap().nlink(),
        1
    );
    for hidden in ["bin/gone", "old/file", "none"] {
        let error = link(hidden).unwrap_err().to_string();
        assert!(error.contains("in no layer"), "{hidden}: {error}");
    }
}

#[test]
fn a_name_leads_through_a_lower_layers_symlink() {
    let below = Layer::new()
        .folder("usr", 0o755)
        .folder("usr/bin", 0o711)
        .add("bin", EntryType::Symlink, 0o777, "usr/bin")
        .unpack(&[])
        .unwrap();
    let dir = Layer::new()
        .file("bin/tool", "x")
        .folder("bin/more", 0o700)
        .file("bin/.wh.old", "")
        .unpack(&[below.path().into()])
        .unwrap();
    assert!(!dir.path().join("bin").exists(), "the symlink stays");
    let bin = dir.path().join("usr/bin");
    assert_eq!(bin.metadata().unwrap().mode() & 0o7777, 0o711);
    assert_eq!(std::fs::read_to_string(bin.join("tool")).unwrap(), "x");
    assert_eq!(bin.join("more").metadata().unwrap().mtime(), 1_700_000_000);
    assert!(
        bin.join("old")
            .symlink_metadata()
            .unwrap()
            .file_type()
            .is_char_device()
    );
}

/// GNU tar's four ways to store a file with holes.
#[test]
fn sparse_files_keep_their_content_and_their_holes() {
    use std::os::unix::fs::FileExt;
    let source = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(source.path().join("disk")).unwrap();
    file.set_len(8 << 20).unwrap();
    // More pieces than an old header holds, and than fit a block of format 1.0's map.
    for piece in 0..64 {
        file.write_all_at(&[piece as u8 + 1; 4096], piece * (100 << 10) + (64 << 10))
            .unwrap();
    }
    let whole = std::fs::read(source.path().join("disk")).unwrap();
    for form in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let packed = std::process::Command::new("tar")
            .args(form)
            .args(["--sparse", "-cf", "-", "-C"])
            .arg(source.path())
            .arg("disk")
            .output()
            .unwrap();
        assert!(packed.status.success() && packed.stdout.len() < 1 << 20);
        let dir = tempfile::tempdir().unwrap();
        let done = unpack(
            packed.stdout.as_slice(),
            dir.path(),
            &[],
            Limits::default(),
            None,
        );
        assert_eq!(done.unwrap().size_bytes, 8 << 20);
        let unpacked = dir.path().join("disk");
        assert!(std::fs::read(&unpacked).unwrap() == whole, "{form:?}");
        let blocks = unpacked.metadata().unwrap().blocks();
        assert!(blocks * 512 < 6 << 20, "{form:?}: {blocks} blocks");
        let small = Limits {
            size_bytes: 1 << 20,
            ..Limits::default()
        };
        let error = unpack(packed.stdout.as_slice(), dir.path(), &[], small, None);
        assert!(matches!(error, Err(Error::TooLarge(_))), "{form:?}");
    }
}

/// A hard link brings its target up from below; that isn't an entry of the layer, and a whiteout of it counts.
#[test]
fn a_whiteout_hides_what_a_link_brought_up() {
    let below = Layer::new()
        .file("c", "x")
        .folder("d", 0o700)
        .file("d/e", "y")
        .file("d/f", "z")
        .unpack(&[])
        .unwrap();
    let below = [below.path().to_path_buf()];
    let dir = Layer::new()
        .add("b", EntryType::Link, 0o644, "c")
        .file(".wh.c", "")
        .add("g", EntryType::Link, 0o644, "d/e")
        .file(".wh.d", "")
        .unpack(&below)
        .unwrap();
    let kind = |dir: &tempfile::TempDir, name: &str| {
        dir.path()
            .join(name)
            .symlink_metadata()
            .unwrap()
            .file_type()
    };
    assert!(kind(&dir, "c").is_char_device() && kind(&dir, "d").is_char_device());
    let read = |dir: &tempfile::TempDir, name: &str| std::fs::read_to_string(dir.path().join(name));
    assert_eq!(
        (
            read(&dir, "b").unwrap().as_str(),
            read(&dir, "g").unwrap().as_str()
        ),
        ("x", "y")
    );

    // A folder that came up takes the attributes of its own entry after all.
    let coloured = Layer::new()
        .xattr("user.colour", "red")
        .folder("d", 0o700)
        .unpack(&below)
        .unwrap();
    let dir = Layer::new()
        .add("g", EntryType::Link, 0o644, "d/e")
        .folder("d", 0o711)
        .unpack(&[coloured.path().into(), below[0].clone()])
        .unwrap();
    let d = dir.path().join("d");
    assert_eq!(d.metadata().unwrap().mode() & 0o7777, 0o711);
    let mut value = [0; 4];
    let colour = rustix::fs::getxattr(&d, "user.colour", &mut value);
    assert_eq!(colour, Err(rustix::io::Errno::NODATA));

    // An entry of the layer's own stays, and so does its folder.
    let dir = Layer::new()
        .add("g", EntryType::Link, 0o644, "d/e")
        .add("h", EntryType::Link, 0o644, "d/f")
        .file("d/f", "own")
        .file(".wh.d", "")
        .unpack(&below)
        .unwrap();
    assert_eq!(read(&dir, "d/f").unwrap(), "own");
    assert!(read(&dir, "d/e").is_err());
    let mut value = [0; 4];
    let n =
        rustix::fs::getxattr(dir.path().join("d"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..n], b"y");
}
