//! systemd as a guest's first process, from the host's Debian packages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::cpio::Archive;
use crate::workspace::run;

/// What systemd takes, and what asks it.
const PROGRAMS: [&str; 5] = [
    "/usr/lib/systemd/systemd",
    "/usr/bin/systemctl",
    "/usr/bin/busctl",
    "/usr/bin/systemd-run",
    "/usr/bin/dbus-daemon",
];

/// Units and settings that stand in a package as they are needed.
const FILES: [&str; 12] = [
    "/usr/lib/systemd/system/basic.target",
    "/usr/lib/systemd/system/dbus.service",
    "/usr/lib/systemd/system/dbus.socket",
    "/usr/lib/systemd/system/shutdown.target",
    "/usr/lib/systemd/system/sysinit.target",
    "/usr/lib/systemd/user/basic.target",
    "/usr/lib/systemd/user/default.target",
    "/usr/share/dbus-1/system.conf",
    "/usr/share/dbus-1/session.conf",
    "/usr/share/dbus-1/system.d/org.freedesktop.systemd1.conf",
    "/usr/share/dbus-1/system-services/org.freedesktop.systemd1.service",
    "/usr/lib/os-release",
];

/// Units of the guest's own. A user's manager comes without the login that starts it elsewhere.
const UNITS: [(&str, &str); 3] = [
    (
        "default.target",
        "[Unit]\nRequires=command.service dbus.socket\nAfter=dbus.socket\n",
    ),
    (
        "command.service",
        "[Service]\nType=oneshot\nExecStart=/bin/sh /vm/init by-systemd\nStandardOutput=file:/dev/ttyS0\nStandardError=inherit\n",
    ),
    (
        "user@.service",
        "[Service]\nType=notify\nUser=%i\nSlice=user-%i.slice\nDelegate=pids memory cpu\nKillMode=mixed\n\
         Environment=XDG_RUNTIME_DIR=/run/user/%i\nExecStart=/usr/lib/systemd/systemd --user\n",
    ),
];

/// Adds all of it, and these programs of the host's, to a guest's first file system.
pub(super) fn add(archive: &mut Archive, programs: &[String]) -> anyhow::Result<()> {
    archive.file("/vm/systemd", b"");
    let mut wanted: Vec<&str> = PROGRAMS.to_vec();
    wanted.extend(programs.iter().map(String::as_str));
    for path in with_libraries(&wanted)? {
        let text = path.to_str().context("a library's name is not UTF-8")?;
        archive.program(text, &read(&path)?);
    }
    for path in FILES {
        archive.file(path, &read(Path::new(path))?);
    }
    for (name, text) in UNITS {
        archive.file(&format!("/etc/systemd/system/{name}"), text.as_bytes());
    }
    Ok(())
}

/// The programs and the libraries that they are linked with, each where the linker finds it in the guest, which has
/// `/lib` in `/usr` as Debian has.
fn with_libraries(programs: &[&str]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        found.insert(PathBuf::from(program));
        let output = run(Command::new("ldd").arg(program))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let path = Path::new(word);
            let (folder, name) = (path.parent(), path.file_name());
            let folder = fs::canonicalize(folder.context("a library at the root")?)?;
            found.insert(folder.join(name.context("a library without a name")?));
        }
    }
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
