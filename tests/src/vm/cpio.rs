//! Archives in the form that the kernel unpacks as its first file system (cpio, "newc").

use std::collections::BTreeSet;
use std::path::Path;

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    folders: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CONSOLE: u32 = 0o020_600;

impl Archive {
    /// Adds a folder and those above it, unless they are there.
    pub fn folder(&mut self, path: &str) {
        let above = Path::new(path).ancestors().filter_map(Path::to_str);
        let mut missing: Vec<String> = above
            .filter(|p| !p.is_empty() && *p != "/")
            .map(str::to_owned)
            .collect();
        missing.reverse();
        for folder in missing {
            if self.folders.insert(folder.clone()) {
                self.entry(&folder, FOLDER, (0, 0), &[]);
            }
        }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.parent(path);
        self.entry(path, FILE, (0, 0), content);
    }

    /// Adds a file that can be executed.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.parent(path);
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parent(path);
        self.entry(path, LINK, (0, 0), target.as_bytes());
    }

    /// Adds `/dev/console`, which the kernel opens for the first process before anything is mounted.
    pub fn console(&mut self) {
        self.folder("/dev");
        self.entry("/dev/console", CONSOLE, (5, 1), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str) {
            self.folder(parent);
        }
    }

    /// A header of thirteen numbers in hexadecimal, the name with its zero, the content, each padded to four bytes.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let (links, owner, time, own_device) = (1, 0, 0, 0);
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = name.len() as u32 + 1;
        let fields = [
            self.inode, mode, owner, owner, links, time, size, own_device, own_device, device.0,
            device.1, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes())
        });
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
