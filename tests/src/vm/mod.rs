//! Virtual machines: Debian's cloud kernel under qemu, with an initramfs made here.
//!
//! ```no_run
//! let exit = vm::Machine::new()
//!     .with_program("orlop", &program)
//!     .run(&["orlop", "up", "--demo", "--exit"], Duration::from_secs(300), |line| println!("{line}"))?;
//! ```
//!
//! The guest has cgroup v2, all capabilities, a root on tmpfs, busybox, the modules that a node needs, `lo` and
//! `eth0` (10.0.2.15/24, leading nowhere). A command's output comes line by line; its exit status by a second serial
//! port, where nothing that it prints can be mistaken for it. There is no KVM on the test hosts, so the guest runs some
//! ten times slower than the host: its limits are proved here, never its speed.

mod cpio;
mod kernel;
mod kernel_tests;
mod machine;
mod systemd;

pub use kernel::Kernel;
pub use kernel_tests::{kernel_tests, oci_tests};
pub use machine::Machine;

use std::time::Duration;

use crate::workspace::orlop;

/// Longer than anything that a person would wait for.
const A_WHILE: Duration = Duration::from_secs(1800);

/// `cargo xtask vm COMMAND…`: runs a command in a guest that has `orlop`, and shows what it prints. Whether it succeeded.
pub fn command(words: &[&str]) -> anyhow::Result<bool> {
    let machine = Machine::new().with_program("orlop", &orlop()?);
    let code = machine.run(words, A_WHILE, |line| println!("{line}"))?;
    println!("exit status {code}");
    Ok(code == 0)
}
