//! A cluster under test: `orlop up` as a user starts it, in a folder of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::setup;
use crate::workspace::{run, target};

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);

/// A running `orlop up`.
pub struct Cluster {
    program: PathBuf,
    root: PathBuf,
    keep: bool,
    child: Option<Child>,
}

impl Cluster {
    /// Starts a cluster in a new folder, and waits until it says that it is ready.
    pub fn start(program: &Path, name: &str, keep: bool) -> anyhow::Result<Self> {
        let root = target()
            .join("e2e")
            .join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root)?;
        let mut cluster = Self {
            program: program.to_owned(),
            root,
            keep,
            child: None,
        };
        cluster.spawn()?;
        Ok(cluster)
    }

    /// Starts `orlop up` in the folder of a cluster that was stopped with its containers kept.
    pub fn resume(program: &Path, root: &Path) -> anyhow::Result<Self> {
        let mut cluster = Self {
            program: program.to_owned(),
            root: root.to_owned(),
            keep: false,
            child: None,
        };
        cluster.spawn()?;
        Ok(cluster)
    }

    /// Starts `orlop up` again in the same folder.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["up", "--root"]).arg(&self.root);
        if self.keep {
            command.arg("--keep");
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.root.join("stderr.log"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                println!("     | {line}");
                let _ = sender.send(line);
            }
        });
        self.child = Some(child);
        let deadline = Instant::now() + START;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.trim_start().starts_with("ready") => return Ok(()),
                Ok(_) => {}
                Err(_) => {
                    let said = fs::read_to_string(self.root.join("stderr.log")).unwrap_or_default();
                    bail!("orlop up did not become ready; it said:\n{said}");
                }
            }
        }
    }

    /// The cluster's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A kubectl command against this cluster.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(setup::kubectl()?);
        command
            .env("KUBECONFIG", self.root.join("admin.kubeconfig"))
            .env("HOME", &self.root)
            .args(words);
        Ok(command)
    }

    /// What kubectl prints; an error if it fails.
    pub fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&run(&mut self.command(words)?)?.stdout).into_owned())
    }

    /// What kubectl complains of; an error if it doesn't.
    pub fn kubectl_refused(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.command(words)?.output()?;
        ensure!(
            !output.status.success(),
            "kubectl {words:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs kubectl with this text as its input.
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        use std::io::Write;
        let mut command = self.command(words)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "kubectl {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Kills `orlop up` without warning. The keeper, the scribe and the containers go on.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the cluster is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops it as Ctrl-C does, and waits for its end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        run(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(
                    status.success(),
                    "orlop up ended with {status} after Ctrl-C"
                );
                return Ok(());
            }
            if start.elapsed() > STOP {
                child.kill()?;
                child.wait()?;
                bail!("orlop up did not end within {STOP:?} of Ctrl-C");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it and removes its folder.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.stop()?;
        fs::remove_dir_all(&self.root)?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.child.is_some() {
            // A failed scenario must not leave its cluster to the next one.
            if let Err(error) = self.stop() {
                println!("     | {error:#}");
            }
        }
    }
}
