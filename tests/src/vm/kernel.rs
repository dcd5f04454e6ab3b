//! Debian's cloud kernel and its modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace::{run, tools};

/// An unpacked kernel package.
pub struct Kernel {
    /// What qemu boots.
    pub image: PathBuf,
    /// Each module's file by its name, in which `-` is `_`.
    modules: BTreeMap<String, PathBuf>,
}

/// Depends on the current kernel's package.
const PACKAGE: &str = "linux-image-cloud-amd64";

impl Kernel {
    /// The kernel, downloaded and unpacked if it isn't here yet. Nothing is installed.
    pub fn ensure() -> anyhow::Result<Self> {
        let dir = tools().join("vm");
        if let Ok(kernel) = Self::open(&dir) {
            return Ok(kernel);
        }
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let depends = run(Command::new("apt-cache").args(["depends", PACKAGE]))?;
        let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
        let name = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        let name =
            name.with_context(|| format!("{PACKAGE} names no kernel: is there an apt source?"))?;
        run(Command::new("apt-get")
            .current_dir(&dir)
            .args(["download", &format!("linux-image-{name}")]))?;
        let package = files_below(&dir)?
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "deb"));
        let package =
            package.with_context(|| format!("no package was downloaded to {}", dir.display()))?;
        run(Command::new("dpkg").arg("-x").args([&package, &dir]))?;
        fs::remove_file(&package)?;
        Self::open(&dir)
    }

    fn open(dir: &Path) -> anyhow::Result<Self> {
        let boot = files_below(&dir.join("boot"))?;
        let is_image = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
        };
        let image = boot.into_iter().find(is_image).context("no kernel image")?;
        let modules = files_below(&dir.join("lib/modules"))?;
        let modules = modules
            .into_iter()
            .filter_map(|path| Some((module_name(&path)?, path)))
            .collect();
        Ok(Self { image, modules })
    }

    /// The files of these modules and of those that they need, each after what it needs. What is not a module is taken
    /// to be built in.
    pub fn in_order(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order, 0)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<PathBuf>, depth: u32) -> anyhow::Result<()> {
        const DEEPEST: u32 = 32;
        if depth > DEEPEST {
            bail!("modules that need one another: {name}");
        }
        let Some(path) = self.modules.get(&name.replace('-', "_")) else {
            return Ok(());
        };
        if order.contains(path) {
            return Ok(());
        }
        for needed in needs(path)? {
            self.visit(&needed, order, depth + 1)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

/// `nf-tables.ko` -> `nf_tables`
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// The modules that a module's file names in its `.modinfo` section, a list of zero-terminated `key=value`.
fn needs(path: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let key = b"\0depends=";
    let Some(at) = bytes.windows(key.len()).position(|window| window == key) else {
        return Ok(Vec::new());
    };
    let value = bytes[at + key.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    Ok(text
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}
