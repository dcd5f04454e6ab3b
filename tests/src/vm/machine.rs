//! One virtual machine, from boot to power-off.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::cpio::Archive;
use super::{Kernel, systemd};
use crate::workspace::{run, tools};

/// A guest to be booted: what is in it.
pub struct Machine {
    programs: Vec<(String, PathBuf)>,
    files: Vec<(String, Vec<u8>)>,
    modules: Vec<String>,
    memory_mib: u32,
    /// The host's programs beside systemd, with which the guest is booted then.
    systemd: Option<Vec<String>>,
}

/// What a node, its pods and its network need. What the kernel has built in is passed over.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "overlay",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_numgen",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nfnetlink",
    "tun",
    "fuse",
];

/// The bus has a user of its own.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\nuser:x:1000:1000::/tmp:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\nmessagebus:x:100:\nuser:x:1000:\n";

/// Longest command line, address and status are far below; a line without an end is cut here.
const LONGEST_LINE: u64 = 1 << 20;

impl Machine {
    /// A guest with busybox and the modules of a node.
    pub fn new() -> Self {
        Self {
            programs: vec![("busybox".to_owned(), PathBuf::from("/bin/busybox"))],
            files: Vec::new(),
            modules: MODULES.iter().map(|name| (*name).to_owned()).collect(),
            memory_mib: 2048,
            systemd: None,
        }
    }

    /// Adds a static program as `/bin/NAME`, without its debug information.
    pub fn with_program(mut self, name: &str, path: &Path) -> Self {
        self.programs.push((name.to_owned(), path.to_owned()));
        self
    }

    /// Adds a file.
    pub fn with_file(mut self, path: &str, content: &[u8]) -> Self {
        self.files.push((path.to_owned(), content.to_owned()));
        self
    }

    /// Boots with systemd as the first process, whose service the command is, and adds these programs of the host's, by
    /// their paths, with the libraries that they are linked with.
    pub fn with_systemd(mut self, programs: &[&str]) -> Self {
        self.systemd = Some(programs.iter().map(|path| (*path).to_owned()).collect());
        self
    }

    /// Loads more modules, after those of a node.
    pub fn with_modules(mut self, names: &[&str]) -> Self {
        self.modules
            .extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Boots, runs `command` as root, gives each line that it prints (on either stream) to `each`, and powers off.
    /// The command's exit status.
    ///
    /// # Errors
    /// If the guest doesn't come up, doesn't end within `timeout`, or ends without the command having done so.
    pub fn run(
        &self,
        command: &[&str],
        timeout: Duration,
        mut each: impl FnMut(&str),
    ) -> anyhow::Result<i32> {
        let kernel = Kernel::ensure()?;
        let dir = tools().join(format!("vm-run-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let outcome = self.run_in(&kernel, &dir, command, timeout, &mut each);
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        outcome
    }

    fn run_in(
        &self,
        kernel: &Kernel,
        dir: &Path,
        command: &[&str],
        timeout: Duration,
        each: &mut dyn FnMut(&str),
    ) -> anyhow::Result<i32> {
        let initramfs = dir.join("initramfs");
        fs::write(&initramfs, self.initramfs(kernel, dir, command)?)
            .context("write the initramfs")?;
        let status = dir.join("status");
        let mut qemu = self
            .qemu(kernel, &initramfs, &status)
            .spawn()
            .context("start qemu")?;
        let ended = follow(&mut qemu, timeout, each);
        if ended.is_err() {
            // It may have ended by now.
            let _ = qemu.kill();
        }
        qemu.wait().context("wait for qemu")?;
        ended?;
        let status = fs::read_to_string(&status).unwrap_or_default();
        let Some(code) = status
            .trim()
            .strip_prefix("exit ")
            .and_then(|code| code.parse().ok())
        else {
            bail!("the guest ended before its command did (status {status:?})");
        };
        Ok(code)
    }

    fn qemu(&self, kernel: &Kernel, initramfs: &Path, status: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-no-reboot"])
            .args(["-m", &format!("{}M", self.memory_mib), "-display", "none", "-monitor", "none"])
            .args(["-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,netdev=net0,romfile="])
            .args(["-serial", "stdio", "-serial", &format!("file:{}", status.display())])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/vm/init cgroup_no_v1=all net.ifnames=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        qemu
    }

    fn initramfs(&self, kernel: &Kernel, dir: &Path, command: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.console();
        archive.folder("/etc");
        archive.program("/vm/init", include_bytes!("init.sh"));
        for (name, path) in &self.programs {
            archive.program(
                &format!("/bin/{name}"),
                &stripped(path, &dir.join("stripped"))?,
            );
        }
        for applet in applets()? {
            archive.link(&format!("/bin/{applet}"), "busybox");
        }
        archive.file("/etc/passwd", PASSWD);
        archive.file("/etc/group", GROUP);
        archive.file("/etc/hostname", b"vm\n");
        for (path, content) in &self.files {
            archive.file(path, content);
        }
        if let Some(programs) = &self.systemd {
            systemd::add(&mut archive, programs)?;
        }
        let names: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        let mut list = String::new();
        for path in kernel.in_order(&names)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            archive.file(&format!("/modules/{name}"), &fs::read(&path)?);
            list.push_str(&name);
            list.push('\n');
        }
        archive.folder("/modules");
        archive.file("/vm/modules", list.as_bytes());
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        archive.file(
            "/vm/command",
            format!("exec {}\n", words.join(" ")).as_bytes(),
        );
        Ok(archive.finish())
    }
}

/// A word of the shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The names that busybox answers to.
fn applets() -> anyhow::Result<Vec<String>> {
    let output = run(Command::new("/bin/busybox").arg("--list"))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect())
}

/// A program without its debug information, which would only be carried into the guest's memory.
fn stripped(program: &Path, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    run(Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .args([scratch, program]))?;
    fs::read(scratch).with_context(|| format!("read {}", scratch.display()))
}

/// Hands over what the guest prints until it ends.
fn follow(qemu: &mut Child, timeout: Duration, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let output = qemu.stdout.take().context("qemu's output is not piped")?;
    let (send, lines) = channel();
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while (&mut output)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            if send.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let deadline = Instant::now() + timeout;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => each(&line),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest's command did not end within {timeout:?}")
            }
        }
    }
}
