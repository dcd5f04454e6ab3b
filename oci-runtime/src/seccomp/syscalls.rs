//! System calls' numbers by name and architecture.

use std::sync::OnceLock;

/// An architecture that this build compiles filters for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
}

/// Set in x32's numbers, whose architecture is x86_64's otherwise.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// What this program runs on; `None` if no table is there for it.
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Architecture::X86_64),
            "aarch64" => Some(Architecture::Aarch64),
            "x86" => Some(Architecture::X86),
            _ => None,
        }
    }

    /// `AUDIT_ARCH_*`, as `struct seccomp_data` has it.
    pub fn audit(self) -> u32 {
        match self {
            Architecture::X86_64 | Architecture::X32 => 0xc000_003e,
            Architecture::X86 => 0x4000_0003,
            Architecture::Aarch64 => 0xc000_00b7,
        }
    }

    /// Whether all 64 bits of an argument are compared. x32's are not, although its registers have them: profiles are
    /// written for what libseccomp makes of them.
    pub fn wide(self) -> bool {
        matches!(self, Architecture::X86_64 | Architecture::Aarch64)
    }

    fn column(self) -> usize {
        match self {
            Architecture::X86_64 => 0,
            Architecture::X86 => 1,
            Architecture::X32 => 2,
            Architecture::Aarch64 => 3,
        }
    }
}

type Row = (&'static str, [Option<u32>; 4]);

fn table() -> &'static [Row] {
    static TABLE: OnceLock<Vec<Row>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = include_str!("syscalls.tsv")
            .lines()
            .filter(|line| !line.starts_with('#'));
        let mut rows: Vec<Row> = lines
            .filter_map(|line| {
                let mut fields = line.split('\t');
                let name = fields.next()?;
                let mut number = || fields.next().and_then(|text| text.parse().ok());
                Some((name, [number(), number(), number(), number()]))
            })
            .collect();
        rows.sort_unstable_by_key(|(name, _)| *name);
        rows
    })
}

/// The number of a system call, without x32's marker bit; `None` if the architecture doesn't have it or this build
/// doesn't know it.
pub(crate) fn number(name: &str, architecture: Architecture) -> Option<u32> {
    let table = table();
    let row = table
        .binary_search_by_key(&name, |(known, _)| *known)
        .ok()?;
    table
        .get(row)?
        .1
        .get(architecture.column())
        .copied()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_running_kernels() {
        for (name, value) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
        ] {
            assert_eq!(
                number(name, Architecture::native().unwrap()).map(i64::from),
                Some(value),
                "{name}"
            );
        }
        assert_eq!(number("no_such_call", Architecture::X86_64), None);
        assert_eq!(number("socketcall", Architecture::X86), Some(102));
    }
}
