//! What `orlop up` refuses: it says what is wrong and what to do, ends with an error, and leaves nothing.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::tally::Outcome;
use crate::workspace::{run, target};

/// All refusals that this host can show.
pub fn refusals(program: &Path) -> anyhow::Result<Outcome> {
    let root = target()
        .join("e2e")
        .join(format!("refusals-{}", std::process::id()));
    let up = |command: &mut Command| -> anyhow::Result<String> {
        let output = command
            .args(["up", "--exit", "--root"])
            .arg(&root)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("     | {}", said.trim());
        ensure!(!output.status.success(), "it went on");
        ensure!(!said.contains("panicked"), "it panicked: {said}");
        ensure!(!root.exists(), "it left {}", root.display());
        Ok(said)
    };

    // The program must be where another user may run it.
    let copy = std::env::temp_dir().join(format!("orlop-{}", std::process::id()));
    run(Command::new("cp").arg(program).arg(&copy))?;
    let not_root = up(Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy));
    std::fs::remove_file(copy)?;
    let not_root = not_root?;
    ensure!(
        not_root.contains("root") && not_root.contains("sudo"),
        "not root: {not_root}"
    );

    let busy = TcpListener::bind("127.0.0.1:6443")?;
    let occupied = up(&mut Command::new(program))?;
    ensure!(occupied.contains("6443"), "an occupied port: {occupied}");
    drop(busy);

    full_disk(program)?;
    Ok(Outcome::Passed)
}

/// A folder on a file system with no room, in a mount namespace of the test's own.
fn full_disk(program: &Path) -> anyhow::Result<()> {
    let folder = target()
        .join("e2e")
        .join(format!("full-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs {0} && '{1}' up --exit --root {0}/root; status=$?; ls -A {0}; exit $status",
        folder.display(),
        program.display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()?;
    std::fs::remove_dir(&folder)?;
    let said = String::from_utf8_lossy(&output.stderr);
    println!("     | {}", said.trim());
    ensure!(!output.status.success(), "a full disk: it went on");
    ensure!(said.contains("free"), "a full disk: {said}");
    ensure!(
        output.stdout.is_empty(),
        "a full disk: it left {}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}
